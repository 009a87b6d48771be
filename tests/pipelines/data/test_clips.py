"""Cuts and clips on made signals: the partition holds for any shot lengths and any stamps."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kineograph.store.schema import Reason
from pipelines.data.clips import Span, clip_id, find_cuts, split, windows
from pipelines.data.config import Clips, Cuts


def signals(difference, times=None):
    difference = np.array(difference, np.float16)
    times = np.arange(len(difference) + 1) / 10 if times is None else times
    palette = np.zeros_like(difference)
    # Every frame looks unlike every other, so that no cut is taken for a flash.
    layout = np.arange(len(difference), dtype=np.uint8)[:, None] * 17 + np.zeros((1, 48), np.uint8)
    frames = len(difference)
    luma = np.full(frames, 0.5, np.float16)
    return SimpleNamespace(
        difference=difference, palette=palette, layout=layout, luma=luma, frames=frames, times=times, is_image=False
    )


steps = st.lists(st.floats(1e-3, 5), min_size=1, max_size=60)


@given(steps, st.data())
def test_clips_part_a_source_exactly_and_each_is_whole_or_a_leftover(steps, data):
    times = np.concatenate([[0], np.cumsum(steps)])
    difference = data.draw(st.lists(st.floats(0, 700), min_size=len(steps), max_size=len(steps)))
    least = data.draw(st.floats(0.1, 5))
    clips = Clips(min_seconds=least, max_seconds=data.draw(st.floats(least, 20)))
    spans = split(signals(difference, times), Cuts(), clips)
    assert spans[0].start == 0
    assert spans[-1].end == len(steps)
    assert [span.start for span in spans[1:]] == [span.end for span in spans[:-1]]
    assert all(span.start < span.end for span in spans)
    longest_frame = max(steps)
    assert all(times[s.end] - times[s.start] <= clips.max_seconds + longest_frame + 1e-6 for s in spans)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (1.0, [1.0]),
        (4.0, [4.0]),
        (5.0, [2.5, 2.5]),
        (4.1, [4.0, 0.1]),
        (12.0, [4.0, 4.0, 4.0]),
        (9.0, [3.0] * 3),
    ],
)
def test_long_shots_become_equal_windows_or_whole_ones_and_a_leftover(seconds, expected):
    times = np.arange(round(seconds * 10) + 1) / 10
    found = windows(times, 0, len(times) - 1, Clips(min_seconds=2, max_seconds=4))
    assert [times[b] - times[a] for a, b in found] == pytest.approx(expected)


def test_a_cut_is_a_peak_and_not_a_level():
    assert find_cuts(signals([0, 3, 3, 90, 3, 3, 3]), Cuts()).tolist() == [3]
    assert find_cuts(signals([0, 60, 70, 80, 75, 66, 70]), Cuts()).tolist() == []  # fast motion
    assert find_cuts(signals([0, 0, 0, 10, 0, 0, 0]), Cuts()).tolist() == []  # under the floor


def test_cuts_are_found_at_both_ends_and_close_together():
    assert find_cuts(signals([0, 90, 2, 2, 2, 2]), Cuts()).tolist() == [1]
    assert find_cuts(signals([0, 2, 2, 2, 2, 90]), Cuts()).tolist() == [5]
    assert find_cuts(signals([0, 2, 2, 90, 2, 2, 90, 2, 2]), Cuts()).tolist() == [3, 6]


@pytest.mark.parametrize("frames", [1, 2])
def test_one_or_two_frames_have_no_neighbours_to_fail_on(frames):
    assert find_cuts(signals([0] * frames), Cuts()).tolist() == []


def test_an_image_is_one_clip():
    image = SimpleNamespace(is_image=True, frames=1)
    assert split(image, Cuts(), Clips()) == [Span(0, 0, 1)]


def test_clip_ids_depend_on_content_and_span_alone():
    assert clip_id("a", Span(0, 1, 5)) == clip_id("a", Span(3, 1, 5))
    assert len({clip_id("a", Span(0, 1, 5)), clip_id("b", Span(0, 1, 5)), clip_id("a", Span(0, 1, 6))}) == 3


def test_a_flash_is_no_cut_and_a_cut_to_another_picture_is():
    found = signals([0, 2, 2, 90, 90, 2, 2, 2, 90, 2, 2, 2])
    found.layout = np.array([20, 20, 20, 220, 20, 20, 20, 20, 120, 120, 120, 120], np.uint8)[:, None] + found.layout[:1]
    assert find_cuts(found, Cuts()).tolist() == [8]
    assert find_cuts(found, Cuts(flash_seconds=0)).tolist() == [3, 4, 8]


def test_a_cut_into_flashes_is_found():
    found = signals([0, 2, 2, 90, 120, 120, 120, 120, 120, 2, 2])
    levels = np.array([140, 140, 140, 60, 200, 60, 200, 60, 200, 200, 200], np.uint8)
    found.layout, found.luma = levels[:, None] + found.layout[:1], levels / 255
    assert find_cuts(found, Cuts()).tolist() == [3]


def test_transitions_are_cut_out_and_part_two_shots():
    spans = split(signals([0] + [2] * 59), Cuts(), Clips(min_seconds=1, max_seconds=9), transitions=[(20, 26)])
    assert spans == [Span(0, 0, 20), Span(1, 20, 26, Reason.TRANSITION), Span(1, 26, 60)]


def test_what_a_manifest_does_not_name_is_outside_and_its_stretches_stay_apart():
    spans = split(signals([0] + [2] * 59), Cuts(), Clips(min_seconds=1, max_seconds=9), spans=[(1.0, 3.0), (3.0, 5.0)])
    assert spans == [
        Span(0, 0, 10, Reason.OUTSIDE_SPAN),
        Span(0, 10, 30),
        Span(1, 30, 50),
        Span(2, 50, 60, Reason.OUTSIDE_SPAN),
    ]
