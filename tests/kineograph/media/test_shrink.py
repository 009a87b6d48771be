"""Shrinking by halves is the mean of areas, within rounding."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kineograph.media.shrink import shrink


def picture(height, width):
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    return (127 + 100 * np.sin(5 * columns + 1) * np.cos(4 * rows)).astype(np.uint8)


@pytest.mark.parametrize("factor", [1, 2, 4, 8, 12])
def test_whole_factors_are_within_rounding_of_area_means(factor):
    plane = np.random.default_rng(0).integers(0, 255, (48 * factor, 80 * factor), np.uint8)
    exact = plane.reshape(48, factor, 80, factor).mean(axis=(1, 3))
    # Each halving rounds half up: a quarter of a level on average, and not more than half a level each time.
    assert np.abs(shrink(plane, (80, 48)) - exact).max() <= 0.5 * (1 + np.log2(factor)) + 1e-6


@given(st.integers(2, 900), st.integers(2, 900), st.integers(16, 200))
def test_any_size_is_near_opencv_s_area_means(height, width, longest):
    scale = min(1.0, longest / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    plane = picture(height, width)
    found = shrink(plane, size)
    assert found.shape == size[::-1]
    area = cv2.resize(plane, size, interpolation=cv2.INTER_AREA)
    # Odd rows and columns left out on the way move the picture by about a small pixel at most.
    step = max(np.abs(np.diff(area.astype(int), axis=axis)).max(initial=0) for axis in (0, 1))
    assert np.abs(found.astype(int) - area).max() <= 3 + 1.5 * step
