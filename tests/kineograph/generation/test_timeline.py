"""What is given keeps its place, and what is asked for is made, at any length, stride and window."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kineograph.diffusion.windows import known_ending, known_latents, latents_of, plan_windows
from kineograph.errors import UserError
from kineograph.generation.timeline import plan_timeline


@st.composite
def asked(draw: st.DrawFn) -> dict[str, int | bool]:
    loop = draw(st.booleans())
    front = draw(st.integers(1 if loop else 0, 30))
    back = 0 if loop else draw(st.integers(0, 30))
    window = draw(st.integers(3, 9))
    return {
        "total": front + back + draw(st.integers(1, 80)),
        "stride": draw(st.sampled_from([1, 2, 4, 8])),
        "window": window,
        "overlap": draw(st.integers(1, window - 1)),
        "front": front,
        "back": back,
        "loop": loop,
    }


@settings(max_examples=300, deadline=None)
@given(asked())
def test_every_frame_has_its_place(asked):
    timeline = plan_timeline(**asked)
    stride = asked["stride"]
    assert (timeline.front, timeline.back) == (asked["front"], asked["back"])
    assert timeline.head >= 0
    assert timeline.head + len(timeline.kept) + timeline.back - timeline.shown == timeline.total
    # Rounded only where both ends are fixed, by half a latent at most where there is room.
    if not (asked["front"] and (asked["back"] or asked["loop"])):
        assert timeline.total == asked["total"]
    else:
        assert timeline.new % stride == 0
        assert abs(timeline.total - asked["total"]) <= max(stride // 2, stride - 1 if timeline.new == stride else 0)


@settings(max_examples=300, deadline=None)
@given(asked())
def test_the_model_sees_whole_latents_and_always_has_something_to_lead_with(asked):
    timeline, stride = plan_timeline(**asked), asked["stride"]
    assert timeline.context == 0 or timeline.context % stride == 1 % stride
    assert bool(timeline.context) == bool(asked["front"])
    assert bool(timeline.ending) == bool(asked["back"] or asked["loop"])
    known = [*range(timeline.context), *range(timeline.sampled - timeline.ending, timeline.sampled)]
    latents = latents_of(timeline.sampled, stride)
    seen = dict.fromkeys(known)
    if timeline.ending:  # the known frames at the end are whole latents too
        assert known_ending(latents, seen, stride) * stride == timeline.ending
    windows = list(plan_windows(latents, asked["window"], asked["overlap"], known_ending(latents, seen, stride)))
    last = windows[-1]
    free = last.length - last.given - len(known_latents(last, seen, stride))
    assert free >= 1  # what is made last is made with the end in sight
    covered = [latent for w in windows for latent in range(w.start + w.given + w.blended, w.start + w.length)]
    assert covered == list(range(latents))
    assert all(w.length <= asked["window"] and (w.given > 0 or not i) for i, w in enumerate(windows))


def test_one_window_is_filled_with_what_is_given_on_both_sides():
    timeline = plan_timeline(total=60, stride=4, window=9, overlap=4, front=26, back=26)
    assert (timeline.new, timeline.context, timeline.ending) == (8, 13, 12)  # 4 + 2 + 3 latents


def test_a_picture_at_the_end_is_a_still_of_one_latent_and_one_frame_of_the_video():
    timeline = plan_timeline(total=10, stride=4, window=9, overlap=4, front=1, back=1)
    assert (timeline.context, timeline.new, timeline.ending, timeline.shown) == (1, 8, 4, 1)
    assert (timeline.sampled, timeline.kept, timeline.total) == (13, range(10), 10)


def test_a_loop_leads_to_a_still_that_is_not_shown():
    timeline = plan_timeline(total=9, stride=4, window=9, overlap=4, front=1, loop=True)
    assert (timeline.new, timeline.ending, timeline.kept, timeline.total) == (8, 4, range(9), 9)


@pytest.mark.parametrize(("total", "front", "back"), [(10, 10, 0), (10, 6, 4), (3, 5, 0), (1, 1, 0)])
def test_nothing_left_to_make_is_a_users_error(total, front, back):
    with pytest.raises(UserError, match=r"nothing is left to make.*--seconds"):
        plan_timeline(total, 4, 9, 4, front=front, back=back)


def test_a_window_without_room_between_two_ends_is_a_users_error():
    with pytest.raises(UserError, match="--window"):
        plan_timeline(100, 4, 2, 1, front=1, back=1)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(2, 9), st.integers(1, 8), st.integers(0, 4))
def test_windows_before_a_known_end_overlap_as_asked(latents, window, overlap, ending):
    assume(overlap < window and ending + 2 <= window and ending < latents)
    windows = list(plan_windows(latents, window, overlap, ending))
    assert all(w.given + w.blended >= min(overlap, window - ending - 1) for w in windows[1:])
    assert windows[-1].start + windows[-1].length == latents
