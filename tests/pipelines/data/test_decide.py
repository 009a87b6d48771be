"""Decisions are pure: signals and thresholds in, a bucket or a reason with its numbers out."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kineograph.media.geometry import Bucket, kept_fraction, needs_upscale
from kineograph.store.schema import Reason
from pipelines.data.config import CurateConfig
from pipelines.data.decide import TIME_TOLERANCE_S, Candidate, best_bucket, decide
from pipelines.data.signals import Signals

NAN = float("nan")
GOOD = Candidate(False, 640, 360, 4.0, Signals(0.5, 0.0, 0.1, 0.05), "a cat")
CONFIG = CurateConfig.model_validate(
    {
        "clips": {"min_seconds": 2.0},
        "filters": {
            "resolution": {"min": 200},
            "black": {"max": 0.5},
            "static": {"max": 0.9},
            "motion": {"min": 0.01, "max": 0.5},
        },
        "buckets": {"sizes": ["256x256x1", "256x256x16", "256x448x16", "448x256x16", "128x128x8"], "fps": 8},
    }
)


def with_signals(**values):
    return replace(GOOD, signals=replace(GOOD.signals, **values))


REJECTED = [
    (replace(GOOD, seconds=1.5), Reason.DURATION, 1.5, 2.0),
    (replace(GOOD, height=180), Reason.RESOLUTION, 180, 200),
    (with_signals(black=0.6), Reason.BLACK, 0.6, 0.5),
    (with_signals(static=0.95), Reason.STATIC, 0.95, 0.9),
    (with_signals(motion=0.001), Reason.MOTION_LOW, 0.001, 0.01),
    (with_signals(motion=0.7), Reason.MOTION_HIGH, 0.7, 0.5),
    (replace(GOOD, caption=""), Reason.NO_CAPTION, 0.0, 1.0),
]


@pytest.mark.parametrize(("candidate", "reason", "value", "threshold"), REJECTED)
def test_each_check_rejects_with_what_it_measured_and_asked(candidate, reason, value, threshold):
    rejection = decide(candidate, CONFIG).rejection
    assert (rejection.reason, rejection.value, rejection.threshold) == (reason, value, threshold)


@pytest.mark.parametrize("number", range(len(REJECTED)))
def test_the_first_check_that_fails_names_the_reason(number):
    worst = Candidate(False, 100, 100, 0.5, Signals(0, 1.0, 1.0, 0.0), "")
    mended = {
        Reason.DURATION: {"seconds": 4.0},
        Reason.RESOLUTION: {"width": 640, "height": 360},
        Reason.BLACK: {"signals": replace(worst.signals, black=0.0)},
        Reason.STATIC: {"signals": Signals(0, 0.0, 0.0, 0.0)},
        Reason.MOTION_LOW: {"signals": Signals(0, 0.0, 0.0, 0.7)},
        Reason.MOTION_HIGH: {"signals": GOOD.signals},
    }
    for _, reason, _, _ in REJECTED[:number]:
        worst = replace(worst, **mended[reason])
    assert decide(worst, CONFIG).rejection.reason == REJECTED[number][1]


def test_what_was_not_measured_rejects_nothing():
    assert decide(with_signals(static=NAN, motion=NAN), CONFIG).bucket is not None


def test_a_clip_goes_where_it_keeps_most():
    assert best_bucket(GOOD, CONFIG) == Bucket(256, 448, 16)
    assert best_bucket(replace(GOOD, width=360, height=640), CONFIG) == Bucket(448, 256, 16)
    assert best_bucket(replace(GOOD, width=300, height=300), CONFIG) == Bucket(256, 256, 16)


def test_nothing_is_enlarged_and_no_second_invented():
    assert best_bucket(replace(GOOD, width=256, height=200), CONFIG) == Bucket(128, 128, 8)
    assert best_bucket(replace(GOOD, seconds=1.2), CONFIG) == Bucket(128, 128, 8)


def test_images_and_videos_keep_to_their_own_buckets():
    image = Candidate(True, 640, 360, 0.0, Signals(0.5, 0.0, NAN, NAN), "a cat")
    assert best_bucket(image, CONFIG) == Bucket(256, 256, 1)
    only_images = CONFIG.model_copy(update={"buckets": CONFIG.buckets.model_copy(update={"sizes": ("64x64x1",)})})
    assert decide(GOOD, only_images).rejection.reason == Reason.NO_BUCKET


@pytest.mark.parametrize(
    ("change", "value", "threshold"),
    [({"width": 220, "height": 220}, 220, 256), ({"seconds": 2.5}, 2.5, 4.0)],
)
def test_no_bucket_says_what_was_lacking(change, value, threshold):
    sizes = ("256x256x32",) if "seconds" in change else ("256x256x16",)
    config = CONFIG.model_copy(update={"buckets": CONFIG.buckets.model_copy(update={"sizes": sizes})})
    rejection = decide(replace(GOOD, **change), config).rejection
    assert (rejection.reason, rejection.value, rejection.threshold) == (Reason.NO_BUCKET, value, threshold)


@given(st.integers(16, 2000), st.integers(16, 2000), st.floats(0.1, 60))
def test_no_other_bucket_that_fits_keeps_more(width, height, seconds):
    candidate = replace(GOOD, width=width, height=height, seconds=seconds)

    def kept(bucket):
        return kept_fraction(width, height, bucket) * min(1.0, bucket.seconds(8) / seconds)

    fitting = [
        b
        for b in CONFIG.buckets.parsed
        if not b.is_image and not needs_upscale(width, height, b) and b.seconds(8) <= seconds + TIME_TOLERANCE_S
    ]
    best = best_bucket(candidate, CONFIG)
    if fitting:
        assert kept(best) >= max(kept(bucket) for bucket in fitting) - 1e-6
    else:
        assert best is None
