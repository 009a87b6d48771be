"""A clip goes to the bucket where it keeps most of itself, and one that fits nowhere says what it lacks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kineograph.media.geometry import (
    TIME_TOLERANCE_S,
    Bucket,
    assign,
    cover_crop,
    kept_fraction,
    needs_upscale,
    why_nowhere,
)

FPS = 8.0
BUCKETS = [Bucket.parse(n) for n in ("64x64x1", "256x256x1", "128x128x9", "256x256x17", "256x448x17", "448x256x17")]


def by_hand(width, height, seconds, is_image, buckets):
    """The rule of assign, bucket by bucket."""

    def rank(bucket):
        share = kept_fraction(width, height, bucket)
        if not is_image:
            share *= min(1.0, bucket.seconds(FPS) / seconds)
        return -round(share, 9), -bucket.height * bucket.width * bucket.frames, bucket.name

    fitting = [
        b
        for b in buckets
        if b.is_image == is_image
        and not needs_upscale(width, height, b)
        and b.seconds(FPS) <= seconds + TIME_TOLERANCE_S
    ]
    return min(fitting, key=rank, default=None)


SIDES = st.integers(16, 2000)


@settings(deadline=None)
@given(SIDES, SIDES, st.floats(0.1, 60), st.booleans())
def test_a_clip_goes_where_it_keeps_most(width, height, seconds, is_image):
    expected = by_hand(width, height, seconds, is_image, BUCKETS)
    assert assign(width, height, seconds, is_image, BUCKETS, FPS) == expected


@settings(deadline=None)
@given(st.lists(st.builds(Bucket, st.integers(1, 99), st.integers(1, 99), st.integers(1, 9)), max_size=9), SIDES, SIDES)
def test_it_does_so_among_any_buckets(buckets, width, height):
    assert assign(width, height, 1.0, False, buckets, FPS) == by_hand(width, height, 1.0, False, buckets)


def test_of_two_that_keep_as_much_the_one_with_more_pixels_wins():
    assert assign(512, 512, 0.0, True, BUCKETS, FPS) == Bucket(256, 256, 1)


def test_a_hair_less_time_than_the_bucket_asks_for_is_enough():
    assert assign(256, 256, 17 / FPS - 0.9 * TIME_TOLERANCE_S, False, BUCKETS, FPS) == Bucket(256, 256, 17)
    assert assign(256, 256, 17 / FPS - 1.1 * TIME_TOLERANCE_S, False, BUCKETS, FPS) == Bucket(128, 128, 9)


@pytest.mark.parametrize(
    ("clip", "value", "threshold"),
    [
        ((640, 360, 1.0, False), 1.0, 9 / FPS),  # too short for every bucket
        ((100, 300, 5.0, False), 100, 128),  # too small
        ((300, 100, 1.2, False), 100, 128),  # too small for those it is long enough for
        ((60, 90, 0.0, True), 60, 64),
    ],
)
def test_what_fits_nowhere_says_what_it_lacks(clip, value, threshold):
    assert assign(*clip, BUCKETS, FPS) is None
    assert why_nowhere(*clip, BUCKETS, FPS) == (value, threshold)


@settings(deadline=None)
@given(SIDES, SIDES, st.floats(0.1, 60), st.booleans())
def test_what_it_lacks_is_more_than_it_has(width, height, seconds, is_image):
    if assign(width, height, seconds, is_image, BUCKETS, FPS) is None:
        value, threshold = why_nowhere(width, height, seconds, is_image, BUCKETS, FPS)
        assert value < threshold


def test_no_bucket_of_its_kind_has_no_threshold():
    assert np.isnan(why_nowhere(640, 360, 4.0, False, BUCKETS[:2], FPS)[1])


def test_tokens_are_latent_patches():
    assert Bucket(256, 256, 1).tokens(16, 4) == 256
    assert Bucket(256, 448, 17).tokens(16, 4) == 16 * 28 * 5
    assert Bucket(250, 250, 16).tokens(16, 4) == 256 * 5  # padded to whole ones


@settings(deadline=None)
@given(SIDES, SIDES)
def test_a_crop_lies_in_the_frame_and_has_the_buckets_aspect(width, height):
    x, y, w, h = cover_crop(width, height, Bucket(256, 448, 17))
    assert min(x, y) >= 0
    assert x + w <= width
    assert y + h <= height
    assert w == pytest.approx(h * 448 / 256, abs=1)
