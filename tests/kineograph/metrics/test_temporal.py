"""Flicker is VBench's: 1 for what stands still, lower the more neighbouring frames differ."""

import numpy as np
import pytest

from kineograph.metrics.temporal import flicker


def test_flicker_is_one_minus_the_mean_error_of_neighbouring_frames():
    video = np.random.default_rng(0).integers(0, 256, size=(5, 6, 7, 3), dtype=np.uint8)
    errors = [np.abs(video[t].astype(float) - video[t - 1]).mean() / 255 for t in range(1, 5)]
    assert flicker(video) == pytest.approx(1 - np.mean(errors))


def test_a_still_video_has_none_and_black_to_white_all():
    still = np.full((4, 8, 8, 3), 77, np.uint8)
    assert flicker(still) == 1.0
    blink = np.zeros((4, 8, 8, 3), np.uint8)
    blink[1::2] = 255
    assert flicker(blink) == 0.0


@pytest.mark.parametrize("shape", [(1, 8, 8, 3), (4, 8, 8), (0, 8, 8, 3)])
def test_what_is_no_video_is_refused(shape):
    with pytest.raises(ValueError, match=r"frames|shape"):
        flicker(np.zeros(shape, np.uint8))
