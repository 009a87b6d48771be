"""Decisions are pure: signals and thresholds in, a bucket or reasons with their numbers out."""

import pytest

from kineograph.config import parse_config
from kineograph.errors import RecipeError
from kineograph.store.schema import Reason
from pipelines.data.config import CurateConfig
from pipelines.data.decide import caption_failures, decide

NAN = float("nan")
RAW = {
    "clips": {"min_seconds": 2.0},
    "scores": {
        "text_area": {},
        "safety": {},
        "clip": {"aesthetic_head": "head"},
        "learned": {"model": "m", "label": 0},
    },
    "filters": {
        "resolution": {"min": 200},
        "aspect": {"min": 0.5, "max": 2.4},
        "fps": {"min": 10},
        "black": {"max": 0.5},
        "static": {"max": 0.9},
        "motion": {"min": 0.01, "max": 0.5},
        "blur": {"max": 0.6},
        "flashing": {"max": 3},
        "text": {"max": 0.1},
        "unsafe": {"max": 0.5},
        "aesthetic": {"min": 4.5},
        "learned": {"min": 0.7},
        "caption_match": {"min": 0.2},
    },
    "buckets": {"sizes": ["256x256x1", "256x256x16", "256x448x16", "448x256x16", "128x128x8"], "fps": 8},
}
CONFIG = CurateConfig.model_validate(RAW)
GOOD = {
    "media_type": "video",
    "start_s": 1.0,
    "end_s": 5.0,
    "content": [0, 0, 640, 360],
    "fps": 25.0,
    "black": 0.0,
    "static": 0.1,
    "motion": 0.05,
    "blur": 0.3,
    "flashing": 0.0,
    "text_area": 0.0,
    "unsafe": 0.0,
    "aesthetic": 5.0,
    "learned": 0.9,
    "caption": "a cat",
    "caption_match": 0.3,
    "part": "",
}
REJECTED = [
    ({"part": "outside_span"}, Reason.OUTSIDE_SPAN, 4.0, 0.0),
    ({"part": "transition"}, Reason.TRANSITION, 4.0, 0.0),
    ({"end_s": 2.5}, Reason.DURATION, 1.5, 2.0),
    ({"content": [0, 90, 640, 180]}, Reason.RESOLUTION, 180, 200),
    ({"content": [0, 0, 640, 256]}, Reason.ASPECT, 2.5, 2.4),
    ({"content": [0, 0, 320, 800]}, Reason.ASPECT, 0.4, 0.5),
    ({"fps": 8.0}, Reason.FPS, 8.0, 10),
    ({"black": 0.6}, Reason.BLACK, 0.6, 0.5),
    ({"static": 0.95}, Reason.STATIC, 0.95, 0.9),
    ({"motion": 0.001}, Reason.MOTION_LOW, 0.001, 0.01),
    ({"motion": 0.7}, Reason.MOTION_HIGH, 0.7, 0.5),
    ({"blur": 0.8}, Reason.BLUR, 0.8, 0.6),
    ({"flashing": 4.0}, Reason.FLASHING, 4.0, 3),
    ({"text_area": 0.2}, Reason.TEXT, 0.2, 0.1),
    ({"unsafe": 0.9}, Reason.UNSAFE, 0.9, 0.5),
    ({"aesthetic": 3.0}, Reason.AESTHETIC, 3.0, 4.5),
    ({"learned": 0.1}, Reason.LEARNED, 0.1, 0.7),
]


@pytest.mark.parametrize(("change", "reason", "value", "threshold"), REJECTED)
def test_each_check_rejects_with_what_it_measured_and_asked(change, reason, value, threshold):
    failed, bucket = decide({**GOOD, **change}, CONFIG)
    assert (failed[0].reason, failed[0].value, failed[0].threshold) == (reason, value, threshold)
    assert bucket == ""


def test_all_that_fails_is_listed_in_the_order_of_the_reasons():
    worst = dict(GOOD)
    for change, *_ in REJECTED[1:]:
        worst.update(change)
    reasons = [one.reason for one in decide(worst, CONFIG)[0]]
    order = list(Reason)
    assert reasons == sorted(reasons, key=order.index)
    assert set(reasons) >= {reason for _, reason, _, _ in REJECTED[1:]} - {Reason.MOTION_LOW, Reason.RESOLUTION}


def test_what_was_not_measured_rejects_nothing():
    names = ("static", "motion", "blur", "flashing", "text_area", "unsafe", "aesthetic", "learned")
    assert decide({**GOOD, **dict.fromkeys(names, NAN)}, CONFIG) == ([], "256x448x16")


def test_images_are_asked_neither_for_seconds_nor_for_a_rate():
    image = {**GOOD, "media_type": "image", "start_s": 0.0, "end_s": 0.0, "fps": 0.0}
    assert decide(image, CONFIG) == ([], "256x256x1")


@pytest.mark.parametrize(
    ("sizes", "change", "value", "threshold"),
    [
        (["256x256x16"], {"content": [0, 0, 220, 220]}, 220, 256),
        (["256x256x32"], {"end_s": 3.5}, 2.5, 4.0),
    ],
)
def test_no_bucket_says_what_was_lacking(sizes, change, value, threshold):
    config = CurateConfig.model_validate({**RAW, "buckets": {"sizes": sizes, "fps": 8}})
    (failed,), bucket = decide({**GOOD, **change}, config)
    assert (failed.reason, failed.value, failed.threshold) == (Reason.NO_BUCKET, value, threshold)
    assert bucket == ""


def test_a_caption_must_be_there_and_fit():
    assert [one.reason for one in caption_failures({**GOOD, "caption": ""}, CONFIG)] == [Reason.NO_CAPTION]
    (failed,) = caption_failures({**GOOD, "caption_match": 0.1}, CONFIG)
    assert (failed.reason, failed.value, failed.threshold) == (Reason.CAPTION_MATCH, 0.1, 0.2)
    assert list(caption_failures({**GOOD, "caption_match": NAN}, CONFIG)) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [("text.max", 0.1), ("unsafe.max", 0.5), ("aesthetic.min", 5), ("learned.min", 0.5), ("caption_match.min", 0.2)],
)
def test_a_threshold_on_what_nobody_measures_is_an_error(key, value):
    raw = {"buckets": RAW["buckets"]}
    with pytest.raises(RecipeError, match=rf"filters.{key} needs scores\."):
        parse_config(raw, CurateConfig, [f"filters.{key}={value}"])
