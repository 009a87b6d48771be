"""Files that are given: where a stretch of one begins and ends, and which of those that bear its name is it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kineograph.errors import UserError
from kineograph.generation import given as given_files
from kineograph.generation.given import find_given, open_strips, record_given
from kineograph.media.footage import Footage
from kineograph.media.guard import GuardLimits
from kineograph.media.probe import MediaLimits


def footage(frames: int, fps: float) -> Footage:
    times = np.arange(frames + 1) / fps
    return Footage(Path("film.mp4"), 24, 16, times, False, MediaLimits(), GuardLimits())


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 200), st.floats(0, 25), st.floats(0.01, 25), st.sampled_from([1, 2, 4, 8]))
def test_a_stretch_grows_to_whole_latents_and_leaves_what_it_can(frames, start, length, stride):
    film, fps = footage(frames, 8.0), 8.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(given_files, "_open", lambda slot, path: film)
        try:
            strips = open_strips({"fill": film.path}, (start, start + length), fps, stride)
        except UserError:  # too long, beyond the end, or nothing of it
            return
    front, back = strips.counts
    assert front + strips.gap + back == frames
    assert front <= round(start * fps)
    assert front + strips.gap >= min(round((start + length) * fps), frames)
    assert front or back
    if front and back:
        assert strips.gap % stride == 0
        assert strips.gap < round((start + length) * fps) - round(start * fps) + stride
        assert strips.back.first == front + strips.gap


def test_a_file_is_found_by_its_name_and_bytes_alone(tmp_path):
    for folder, text in (("one", b"other"), ("two", b"this")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(text)
    found = record_given({"image": tmp_path / "two" / "a.png"}, None, False)
    assert find_given(found, [tmp_path / "one", tmp_path / "two"]) == {"image": tmp_path / "two" / "a.png"}
    elsewhere = found.model_copy(update={"image": found.image.model_copy(update={"name": "../two/a.png"})})
    with pytest.raises(UserError, match="is another file by now"):
        find_given(elsewhere, [tmp_path / "one"])
