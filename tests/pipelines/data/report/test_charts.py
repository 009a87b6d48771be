"""Charts show every clip, on the right side of the threshold."""

import re

import numpy as np
import pytest

from kineograph.media.geometry import Bucket
from kineograph.store.schema import Reason
from pipelines.data.report.charts import Axis, histogram, linear_ticks, log_ticks
from pipelines.data.report.columns import Clips
from pipelines.data.report.signals import signal_charts
from pipelines.data.report.sizes import sizes_chart


def bars(chart, name):
    """(left, top, width, height) of each bar of a layer."""
    path = next(path["d"] for path in chart["paths"] if path["name"] == name)
    number = r"(-?[\d.]+)"
    return [tuple(map(float, bar)) for bar in re.findall(rf"M{number} {number}h{number}v{number}", path)]


def chart_of(values, thresholds=(), **layers):
    axis = Axis(0, 1)
    return histogram(axis, 10, linear_ticks(0, 1), [("kept", np.array(values)), *layers.items()], thresholds)


def test_bars_are_as_high_as_their_counts():
    chart = chart_of([0.05] * 10 + [0.55] * 20)
    (_, _, _, low), (_, _, _, high) = bars(chart, "kept")
    assert high == pytest.approx(2 * low)


def test_layers_stand_on_each_other():
    chart = chart_of([0.05] * 10, fails=np.array([0.05] * 10))
    ((_, kept_top, _, kept_height),) = bars(chart, "kept")
    ((_, fails_top, _, fails_height),) = bars(chart, "fails")
    assert kept_top + kept_height == pytest.approx(chart["ground"])
    assert fails_top + fails_height == pytest.approx(kept_top)


def test_one_clip_among_many_can_be_seen():
    chart = chart_of([0.05] * 5000 + [0.25] * 4000 + [0.95])
    assert bars(chart, "kept")[-1][3] >= 1.5


def test_a_heap_at_zero_is_broken_off_and_its_count_written():
    chart = chart_of([0.0] * 4900 + [0.55] * 20 + [0.95] * 10)
    assert chart["broken"]["label"] == "4.9k"
    assert bars(chart, "kept")[-1][3] > 20
    assert chart_of([0.05] * 20 + [0.55] * 10)["broken"] is None


def test_values_beyond_the_axis_are_in_its_last_bars():
    chart = chart_of([-5.0, 7.0])
    assert len(bars(chart, "kept")) == 2


def test_a_logarithmic_axis_takes_zero_to_its_lower_end():
    axis = Axis(1e-4, 1, log=True)
    assert axis.share(np.array([0.0, 1e-4, 1e-2, 1.0])).tolist() == pytest.approx([0, 0, 0.5, 1])
    assert [label for _, label in log_ticks(1e-4, 1)] == ["0.0001", "0.001", "0.01", "0.1", "1"]


def test_labels_of_near_thresholds_do_not_touch():
    near = chart_of([0.5], [("min 0.5", 0.5), ("max 0.52", 0.52)])
    apart = chart_of([0.5], [("min 0.1", 0.1), ("max 0.9", 0.9)])
    assert [line["row"] for line in near["thresholds"]] == [0, 1]
    assert [line["row"] for line in apart["thresholds"]] == [0, 0]


@pytest.mark.parametrize("high", [1, 3, 7.5, 60, 2160, 0.26])
def test_ticks_are_few_and_within(high):
    ticks = linear_ticks(0, high)
    assert 2 <= len(ticks) <= 7
    assert ticks[-1][0] <= high


def test_a_signal_that_was_not_measured_has_no_chart(clip):
    clips = Clips.of([clip(i, blur=0.1 * i, aesthetic=float("nan"), learned=None) for i in range(5)])
    shown = {chart["id"] for chart in signal_charts(clips, None)}
    assert shown == {"seconds", "short_side", "aspect", "fps", "blur"}


def test_every_clip_of_a_chart_is_kept_or_fails_it_or_is_rejected_by_another(clip):
    blur, text = (Reason.BLUR, 0.7, 0.6), (Reason.TEXT, 0.2, 0.1)
    clips = [clip(0, blur=0.2), clip(1, [blur], blur=0.7), clip(2, [text], blur=0.3), clip(3, [text, blur], blur=0.8)]
    chart = next(c for c in signal_charts(Clips.of(clips), None) if c["id"] == "blur")
    assert "over 4 clips: 1 kept, 2 fail this check, 1 rejected by another" in chart["description"]


def test_thresholds_come_from_the_recipe_and_else_from_the_rejections(clip):
    clips = Clips.of([clip(0, motion=0.1), clip(1, [(Reason.MOTION_LOW, 0.001, 0.002)], motion=0.001)])

    def labels(filters):
        chart = next(c for c in signal_charts(clips, filters) if c["id"] == "motion")
        return [line["label"] for line in chart["thresholds"]]

    assert labels({"motion": {"min": 0.002, "max": 1.0}}) == ["min 0.002", "max 1"]
    assert labels({"motion": {"min": None, "max": None}}) == []
    assert labels(None) == ["min 0.002"]


def test_the_threshold_of_a_count_lies_between_the_bars_it_parts(clip):
    flashes = [clip(i, flashing=float(n)) for i, n in enumerate([0, 1, 2, 3])]
    clips = Clips.of([*flashes, clip(9, [(Reason.FLASHING, 4.0, 3.0)], flashing=4.0)])
    chart = next(c for c in signal_charts(clips, {"flashing": {"max": 3}}) if c["id"] == "flashing")
    ((rejected, _, _, _),) = bars(chart, "fails")
    last, _, width, _ = bars(chart, "kept")[-1]
    assert last + width <= chart["thresholds"][0]["x"] <= rejected


def test_a_disc_has_the_area_of_its_clips(clip):
    clips = [clip(i) for i in range(4)] + [clip(9, content=[0, 0, 2000, 2000])]
    chart = sizes_chart(Clips.of(clips), [Bucket(256, 256, 17)])
    large, small = (disc["all"] for disc in chart["discs"])
    assert large**2 / small**2 == pytest.approx(4, rel=0.05)
    assert chart["buckets"][0]["label"] == "256x256"


def test_labels_of_crowded_buckets_do_not_cover_each_other(clip):
    buckets = [Bucket(256 + 16 * i, 256 + 16 * j, 17) for i in range(4) for j in range(4)]
    placed = [mark["at"] for mark in sizes_chart(Clips.of([clip()]), buckets)["buckets"] if mark["at"]]
    assert placed
    for i, a in enumerate(placed):
        assert all(abs(a["x"] - b["x"]) >= 40 or abs(a["y"] - b["y"]) >= 11 for b in placed[:i])
