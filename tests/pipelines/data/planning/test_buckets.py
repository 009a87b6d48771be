"""Buckets are listed by hand or computed; what cannot be either is said on one line."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kineograph.config import dump_yaml, load_recipe, parse_config
from kineograph.errors import RecipeError
from kineograph.media.geometry import Bucket
from pipelines.data.planning.buckets import Buckets, fit_size, override_buckets

WIDE = {"areas": ["256x256"], "aspects": ["16:9"], "frames": [1, 17]}


def names(buckets):
    return [bucket.name for bucket in buckets.parsed]


def test_listed_sizes_are_the_buckets_sorted():
    assert names(Buckets(sizes=("256x256x17", "32x32x1"))) == ["32x32x1", "256x256x17"]


def test_every_area_is_made_in_every_aspect_and_number_of_frames():
    buckets = Buckets(areas=("256x256", 512 * 512), aspects=("1:1", "16:9", "9:16"), frames=(1, 17, 33))
    sizes = {"192x336", "256x256", "336x192", "368x656", "512x512", "656x368"}
    assert set(names(buckets)) == {f"{size}x{frames}" for size in sizes for frames in (1, 17, 33)}
    assert buckets.parsed == sorted(buckets.parsed)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(128**2, 512**2), st.integers(1, 30), st.integers(1, 30), st.sampled_from([8, 16]), st.floats(0.1, 0.3)
)
def test_no_size_of_that_area_is_nearer_in_aspect(area, wide, high, stride, tolerance):
    def aspect_error(height, width):
        return abs(math.log(width / height * high / wide))

    def all_sizes():
        for height in range(stride, area // stride + stride, stride):
            first = max(1, math.floor(area * math.exp(-tolerance) / height / stride))
            for columns in range(first, math.ceil(area * math.exp(tolerance) / height / stride) + 1):
                if abs(math.log(height * columns * stride / area)) <= tolerance - 1e-9:
                    yield height, columns * stride

    try:
        height, width = fit_size(area, f"{wide}:{high}", stride, tolerance)
    except ValueError:
        assert min((aspect_error(*size) for size in all_sizes()), default=1) > 0.19
        return
    assert height % stride == width % stride == 0
    assert abs(math.log(height * width / area)) <= tolerance + 1e-9
    assert aspect_error(height, width) <= min(aspect_error(*size) for size in all_sizes()) + 1e-6


def test_two_aspects_that_come_to_the_same_size_make_one_bucket():
    assert names(Buckets(areas=(65536,), aspects=("16:9", "1.75:1"), frames=(17,))) == ["192x336x17"]


def test_aspects_are_read_from_yaml_as_they_were_written(tmp_path):
    (tmp_path / "r.yaml").write_text("areas: [256x256]\naspects: [16:9, 1:1, 9:16, 21:9, 1.75]\nframes: [17]\n")
    buckets = load_recipe(tmp_path / "r.yaml", Buckets)
    assert buckets.aspects == ("16:9", "1:1", "9:16", "21:9", "1.75:1")
    (tmp_path / "again.yaml").write_text(dump_yaml(buckets))
    assert load_recipe(tmp_path / "again.yaml", Buckets) == buckets


WRONG = [
    ({}, "give at least one bucket"),
    ({"sizes": ["32x32x1"], **WIDE}, "not both (sizes and areas, aspects and frames are given)"),
    ({"areas": [65536], "frames": [17]}, "areas and frames without aspects"),
    ({**WIDE, "frames": [16]}, "the nearest are 13 and 17"),
    ({**WIDE, "frames": [3], "temporal_stride": 8}, "the nearest are 1 and 9"),
    ({**WIDE, "aspects": ["wide"]}, "an aspect is written WIDTH:HEIGHT"),
    ({**WIDE, "aspects": ["0:9"]}, "an aspect is written WIDTH:HEIGHT"),
    ({**WIDE, "areas": ["16x16"]}, "no 16:9 of about 256 pixels"),
    ({**WIDE, "areas": ["256p"]}, "valid integer"),
    ({**WIDE, "spatial_stride": 9}, "multiple of 2"),
    ({"sizes": ["31x32x1"]}, "are even"),
    ({"sizes": ["32x32x1", "32x32x1"]}, "listed twice"),
    ({"sizes": ["32x32"]}, "HEIGHTxWIDTHxFRAMES"),
    ({"size": ["32x32x1"]}, "did you mean 'sizes'"),
]


@pytest.mark.parametrize(("raw", "message"), WRONG)
def test_what_makes_no_buckets_is_said_on_one_line(raw, message):
    with pytest.raises(RecipeError) as error:
        parse_config(raw, Buckets)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_override_of_one_way_replaces_the_other():
    listed, computed = Buckets(sizes=("32x32x9",), fps=4), Buckets(**WIDE)
    other = override_buckets(listed, ["buckets.areas=[256x256]", "buckets.aspects=[16:9]", "frames=[17]"])
    assert (names(other), other.fps) == (["192x336x17"], 4)
    assert names(override_buckets(computed, ["sizes=[32x32x9]"])) == ["32x32x9"]
    assert names(override_buckets(computed, ["aspects=[1:1]"])) == ["256x256x1", "256x256x17"]


def test_the_stride_divides_what_is_computed():
    assert Buckets(**{**WIDE, "areas": ["32x32"], "spatial_stride": 8, "frames": [9]}).parsed == [Bucket(24, 40, 9)]
