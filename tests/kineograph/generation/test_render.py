"""Given frames come back unchanged, in their places, and what lies between them is made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from kineograph.diffusion.text_to_video import TextToVideo
from kineograph.generation.given import Scene, Strip, Strips
from kineograph.generation.render import MixedPrecision, makes_first, render, request_for, windows_to_sample
from kineograph.generation.timeline import plan_timeline
from kineograph.media.geometry import Bucket
from tests.kineograph.tiny_checkpoint import FPS, FRAMES, STRIDE, make_checkpoint

HEIGHT, WIDTH = 14, 22  # no multiples of the autoencoder's stride
WINDOW, OVERLAP = 5, 3


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return TextToVideo.load(make_checkpoint(tmp_path_factory.mktemp("train")))


@dataclass(frozen=True)
class Film:
    """Footage of frames in memory, which counts how many were read."""

    video: np.ndarray
    path: Path = Path("film")

    def frames(self, height, width, fps, start, stop):
        assert (height, width, fps) == (HEIGHT, WIDTH, FPS)
        yield from self.video[start:stop]


def film(frames, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (frames, HEIGHT, WIDTH, 3), dtype=np.uint8)


def scene_of(total, front=None, back=None, loop=False):
    counts = [0 if video is None else len(video) for video in (front, back)]
    timeline = plan_timeline(
        total, STRIDE, WINDOW, OVERLAP, front=max(counts[0], 1) if loop else counts[0], back=counts[1], loop=loop
    )
    strips = [None if video is None else Strip("--video", Film(video), 0, len(video)) for video in (front, back)]
    return Scene(timeline, Strips(*strips), HEIGHT, WIDTH, FPS)


def planned(model, scene, prompts=1, steps=2):
    request = model.request(["a cat"] * prompts, list(range(prompts)), Bucket(HEIGHT, WIDTH, 1), steps=steps)
    return request_for(scene, request)


def made(model, scene, **options):
    """The videos (B T H W 3), and the most frames that came at once."""
    pieces = list(render(model, planned(model, scene, **options), scene))
    return np.concatenate(pieces, axis=1), max(piece.shape[1] for piece in pieces)


@pytest.mark.parametrize(
    ("front", "back"), [(1, 0), (7, 0), (40, 0), (0, 1), (0, 3), (0, 21), (1, 1), (18, 30), (5, 2)]
)
@pytest.mark.parametrize("new", [8, 48])
def test_given_frames_come_back_unchanged(model, front, back, new):
    start, end = film(front, 1) if front else None, film(back, 2) if back else None
    scene = scene_of(front + new + back, start, end)
    (video,), most = made(model, scene)
    assert len(video) == front + new + back
    if front:
        assert np.array_equal(video[:front], start)
    if back:
        assert np.array_equal(video[front + new :], end)
    assert most <= FRAMES


def test_what_is_given_leads_what_is_made(model):
    """The same noise beside other given frames is another video."""
    (one,), _ = made(model, scene_of(FRAMES, film(1, 1)))
    (other,), _ = made(model, scene_of(FRAMES, film(1, 2)))
    assert (one[1:] != other[1:]).any(axis=(1, 2, 3)).all()


def test_a_known_end_leads_the_last_window_alone(model):
    (one,), _ = made(model, scene_of(60, film(1), film(1, 1)))
    (other,), _ = made(model, scene_of(60, film(1), film(1, 2)))
    differs = (one != other).any(axis=(1, 2, 3))
    assert not differs[: 60 - FRAMES].any()
    assert differs[-STRIDE - 1 :].all()


def test_a_loop_of_a_picture_begins_with_it_and_repeats_nothing(model):
    picture = film(1)
    (video,), _ = made(model, scene_of(17, picture, loop=True))
    assert len(video) == 17
    assert np.array_equal(video[0], picture[0])
    assert not np.array_equal(video[-1], picture[0])


@pytest.mark.parametrize("frames", [9, 41])
def test_a_loop_of_nothing_makes_its_first_frame_first(model, frames):
    scene = scene_of(frames, loop=True)
    assert makes_first(scene)
    (video,), _ = made(model, scene)
    assert len(video) == frames


def test_videos_at_once_share_what_is_given(model):
    start, end = film(30), film(6, 1)
    videos, _ = made(model, scene_of(60, start, end), prompts=2)
    assert videos.shape[:2] == (2, 60)
    for video in videos:
        assert np.array_equal(video[:30], start)
        assert np.array_equal(video[54:], end)
    assert (videos[0][30:54] != videos[1][30:54]).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize(
    ("total", "front", "back", "loop"), [(9, 0, 0, False), (60, 5, 3, False), (60, 0, 0, True), (25, 1, 1, False)]
)
def test_steps_are_foretold(model, total, front, back, loop):
    scene = scene_of(total, film(front) if front else None, film(back) if back else None, loop)
    request, steps = planned(model, scene), []
    for _ in render(model, request, scene, on_step=lambda *step: steps.append(step)):
        pass
    assert len(steps) == 2 * windows_to_sample(model, request, makes_first(scene))


def test_mixed_precision_changes_little(tmp_path):
    model = TextToVideo.load(make_checkpoint(tmp_path / "train"))
    exact = model.generate(["a cat"], [0]).astype(int)
    model.model = MixedPrecision(model.model)
    mixed = model.generate(["a cat"], [0])
    assert 0 < np.abs(exact - mixed).max() <= 16
