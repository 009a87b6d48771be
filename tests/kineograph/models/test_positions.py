"""Positions: codes as published, grids that mean the same at any size, rotations that know offsets alone."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kineograph.models.positions import (
    grid_coordinates,
    rope_angles,
    rope_axes,
    rope_frequencies,
    rotate,
    sincos_1d,
    sincos_2d,
    sinusoidal,
)

CPU = torch.device("cpu")
sides = st.integers(1, 12)
periods = st.sampled_from([100.0, 10_000.0])


def numpy_code(positions, width, period):
    """sin | cos of positions over wavelengths in geometric progression (Vaswani et al. 2017, §3.5), in float64."""
    frequencies = 1.0 / period ** (np.arange(width // 2, dtype=np.float64) / (width // 2))
    angles = np.outer(positions, frequencies)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


class TestCodes:
    @settings(deadline=None, max_examples=40)
    @given(
        positions=st.lists(st.floats(-64, 64, width=32), min_size=1, max_size=9),
        half=st.integers(1, 20),
        period=periods,
    )
    def test_of_a_line_are_the_formula(self, positions, half, period):
        code = sincos_1d(torch.tensor(positions), 2 * half, period)
        np.testing.assert_allclose(code, numpy_code(positions, 2 * half, period), atol=2e-5)

    def test_of_a_number_have_cosines_first(self):
        value = torch.tensor([3.0])
        assert torch.equal(sinusoidal(value, 8), torch.cat(sincos_1d(value, 8).chunk(2, 1)[::-1], 1))

    @settings(deadline=None, max_examples=40)
    @given(rows=sides, columns=sides, quarter=st.integers(1, 8), scale=st.sampled_from([0.5, 2 / 3, 1.0, 3.0]))
    def test_of_a_grid_are_the_published_table(self, rows, columns, quarter, scale):
        x, y = np.meshgrid(np.arange(columns) / scale, np.arange(rows) / scale)
        halves = [numpy_code(axis.ravel(), 2 * quarter, 10_000.0) for axis in (x, y)]  # the column's code comes first
        made = sincos_2d(*grid_coordinates("fixed", rows, columns, scale, CPU), 4 * quarter)
        np.testing.assert_allclose(made, np.concatenate(halves, axis=1), atol=2e-5)

    @settings(deadline=None, max_examples=40)
    @given(rows=sides, columns=sides, side=st.floats(64, 2048))
    def test_by_resolution_are_those_of_open_sora(self, rows, columns, side):
        base_size = round((rows * columns) ** 0.5)
        x, y = np.arange(columns) / (side / 512), np.arange(rows) / (side / 512)
        x, y = np.meshgrid(x * base_size / columns, y * base_size / rows)
        made = grid_coordinates("by_resolution", rows, columns, side / 512, CPU)
        np.testing.assert_allclose(torch.stack(made), [y.ravel(), x.ravel()], rtol=1e-5, atol=1e-5)


class TestCentredGrid:
    @settings(deadline=None, max_examples=40)
    @given(rows=sides, columns=sides, factor=st.integers(2, 5))
    def test_is_free_of_scale(self, rows, columns, factor):
        """Each coarse patch is the mean of the fine ones that it consists of."""
        coarse = torch.stack(grid_coordinates("centred", rows, columns, 8.0, CPU))
        fine = torch.stack(grid_coordinates("centred", rows * factor, columns * factor, 8.0, CPU))
        blocks = fine.view(2, rows, factor, columns, factor).mean((2, 4)).flatten(1)
        torch.testing.assert_close(blocks, coarse, atol=1e-4, rtol=0)

    @settings(deadline=None, max_examples=40)
    @given(rows=sides, columns=sides, base=st.floats(1, 32))
    def test_covers_an_area_of_base_squared_around_the_middle(self, rows, columns, base):
        row, column = grid_coordinates("centred", rows, columns, base, CPU)
        unit = base / math.sqrt(rows * columns)
        assert float(row.max() - row.min() + unit) == pytest.approx(rows * unit, rel=1e-4)
        assert float(column.max() - column.min() + unit) == pytest.approx(columns * unit, rel=1e-4)
        torch.testing.assert_close(row + row.flip(0), torch.zeros_like(row), atol=1e-4, rtol=0)
        torch.testing.assert_close(column + column.flip(0), torch.zeros_like(column), atol=1e-4, rtol=0)


@pytest.mark.parametrize("grid", ["centred", "fixed", "by_resolution"])
def test_places_are_counted_row_by_row(grid):
    row, column = (c.view(3, 4) for c in grid_coordinates(grid, 3, 4, 2.0, CPU))
    assert torch.equal(row, row[:, :1].expand(3, 4))
    assert torch.equal(column, column[:1].expand(3, 4))
    assert (row.diff(dim=0) > 0).all()
    assert (column.diff(dim=1) > 0).all()


def vectors(channels, seed):
    return torch.randn(2, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).unbind(0)


def turned(vector, place, period):
    """A vector (d) at a place of one, two or three coordinates."""
    coordinates = tuple(torch.tensor([float(c)]) for c in place)
    return rotate(vector[None], rope_axes(coordinates, len(vector), period))[0]


axes = st.sampled_from([1, 2, 3])
heads = st.sampled_from([6, 8, 16, 20, 64, 72])
whole = st.integers(-20, 20)


class TestRotation:
    @settings(deadline=None, max_examples=80)
    @given(data=st.data(), number=axes, channels=heads, period=periods, seed=st.integers(0, 99))
    def test_a_score_depends_on_the_offset_along_each_axis_alone(self, data, number, channels, period, seed):
        query, key = vectors(channels, seed)
        place, offset, elsewhere = (data.draw(st.tuples(*[whole] * number)) for _ in range(3))

        def score(at):
            moved = [a + o for a, o in zip(at, offset, strict=True)]
            return turned(query, moved, period) @ turned(key, at, period)

        torch.testing.assert_close(score(place), score(elsewhere), atol=1e-3, rtol=0)

    @pytest.mark.parametrize(("number", "axis"), [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)])
    def test_a_score_tells_offsets_along_every_axis_apart(self, number, axis):
        query = torch.ones(24, dtype=torch.float64)
        scores = []
        for offset in (0, 1, 2):
            place = [offset if a == axis else 0 for a in range(number)]
            scores.append(float(turned(query, place, 100.0) @ query))
        assert scores[0] > scores[1] + 0.1
        assert scores[1] > scores[2] + 0.1

    @settings(deadline=None, max_examples=40)
    @given(data=st.data(), number=axes, channels=heads, seed=st.integers(0, 99))
    def test_lengths_are_kept(self, data, number, channels, seed):
        vector, _ = vectors(channels, seed)
        place = data.draw(st.tuples(*[whole] * number))
        torch.testing.assert_close(turned(vector, place, 100.0).norm(), vector.norm(), rtol=1e-6, atol=0)

    @settings(deadline=None, max_examples=60)
    @given(data=st.data(), number=axes, channels=heads, period=periods, seed=st.integers(0, 99))
    def test_is_a_product_of_complex_numbers(self, data, number, channels, period, seed):
        vector, _ = vectors(channels, seed)
        place = data.draw(st.tuples(*[whole] * number))
        share = channels // 2 // number  # pairs of each axis; the first takes what is left over
        pairs = [channels // 2 - share * (number - 1)] + [share] * (number - 1)
        turns = np.concatenate([c * period ** (-np.arange(n) / n) for c, n in zip(place, pairs, strict=True) if n])
        expected = (vector[0::2].numpy() + 1j * vector[1::2].numpy()) * np.exp(1j * turns)
        said = turned(vector, place, period).numpy()
        np.testing.assert_allclose(said[0::2] + 1j * said[1::2], expected, atol=2e-5)

    def test_over_one_axis_it_is_that_over_time(self):
        index = torch.arange(7)
        assert torch.equal(rope_axes((index,), 12, 100.0), rope_angles(index, rope_frequencies(12, 100.0)))

    def test_at_zero_nothing_turns(self):
        x = torch.randn(2, 3, 4, 8)
        assert torch.equal(rotate(x, rope_axes((torch.zeros(4), torch.zeros(4)), 8, 100.0)), x)
