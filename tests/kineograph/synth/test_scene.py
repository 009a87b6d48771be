"""The world looks the same at every size, moves as its captions say, and is never ambiguous."""

from dataclasses import replace

import numpy as np
import pytest

from kineograph.synth.oracle import Expected, expected
from kineograph.synth.scene import (
    COLOURS,
    SHAPES,
    Background,
    Scene,
    SceneObject,
    caption,
    render,
    sample_scene,
    shape_coverage,
    still_caption,
)


def scenes(count: int, **options: float) -> list[Scene]:
    rng = np.random.default_rng(7)
    return [sample_scene(rng, **options) for _ in range(count)]


def test_captions_parse_back_to_the_truth() -> None:
    for scene in scenes(500, two_objects=0.4):
        told = expected(caption(scene))
        truth = [
            Expected(o.colour, o.shape, o.direction, o.speed if scene.tells_speed else None) for o in scene.objects
        ]
        assert told == truth
        assert expected(still_caption(scene)) == [Expected(o.colour, o.shape) for o in scene.objects]


def test_captions_read_as_the_design_says() -> None:
    red = SceneObject("red", "circle", "left", "slow", 0.2, 0.2, (0.5, 0.5))
    blue = SceneObject("blue", "square", "up", "fast", 0.4, 0.16, (0.5, 0.5))
    ground = Background(140, (0, 0, 0), 0)
    assert caption(Scene(0, (red,), ground)) == "a red circle moving left"
    assert caption(Scene(0, (red,), ground, tells_speed=True)) == "a red circle moving left slowly"
    assert caption(Scene(0, (red, blue), ground)) == "a red circle moving left and a blue square moving up"
    assert still_caption(Scene(0, (red, blue), ground, tells_speed=True)) == "a red circle and a blue square"


def test_another_sentence_is_no_caption_of_this_world() -> None:
    for prompt in (
        "",
        "a dog",
        "a red circle moving sideways",
        "a red circle and",
        "red circle",
        "a pink circle",
    ):
        assert expected(prompt) is None


def test_two_objects_differ_in_colour_and_a_cut_changes_colours_and_brightness() -> None:
    rng = np.random.default_rng(0)
    before = sample_scene(rng)
    for _ in range(300):
        after = sample_scene(rng, two_objects=0.5, unlike=before)
        colours = {o.colour for o in after.objects}
        assert len(colours) == len(after.objects)
        assert not colours & {o.colour for o in before.objects}
        assert abs(after.background.level - before.background.level) >= 80
        before = after


def test_the_same_scene_renders_the_same_bytes_and_a_moment_does_not_depend_on_the_others() -> None:
    scene = scenes(1)[0]
    times = np.arange(8) / 4
    video = render(scene, 40, 24, times)
    assert video.dtype == np.uint8
    assert video.shape == (8, 24, 40, 3)
    assert (render(scene, 40, 24, times[3:5]) == video[3:5]).all()


def test_a_scene_looks_the_same_at_every_size() -> None:
    for scene in scenes(20, two_objects=0.5):
        large = render(scene, 320, 320, np.array([0.0, 1.0])).astype(np.float32)
        small = render(scene, 32, 32, np.array([0.0, 1.0])).astype(np.float32)
        shrunk = large.reshape(2, 32, 10, 32, 10, 3).mean(axis=(2, 4))
        assert np.abs(shrunk - small).mean() < 2


def test_objects_come_back_at_the_other_edge() -> None:
    scene = scenes(1)[0]
    item = replace(scene.objects[0], direction="right", speed="fast", rate=0.5)
    scene = replace(scene, objects=(item,))
    now, one_turn_on = render(scene, 64, 64, np.array([0.3, 2.3]))
    assert np.abs(now.astype(int) - one_turn_on).max() <= 1


def test_no_background_is_black_or_saturated() -> None:
    for scene in scenes(100):
        ground = render(replace(scene, objects=()), 64, 48, np.zeros(1))
        assert ground.min() >= 40
        assert (ground.max(axis=-1).astype(int) - ground.min(axis=-1)).max() <= 14


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_one_size_have_one_area(shape: str) -> None:
    grid = np.arange(-60, 61, dtype=np.float32)
    assert shape_coverage(shape, 30, grid, grid).sum() == pytest.approx(np.pi * 30**2, rel=0.01)


def test_the_palette_is_well_apart_in_hue() -> None:
    import colorsys

    hues = sorted(colorsys.rgb_to_hsv(*(c / 255 for c in colour.rgb))[0] * 360 for colour in COLOURS.values())
    assert min(b - a for a, b in zip(hues, [*hues[1:], hues[0] + 360], strict=True)) > 45


def test_a_frame_too_small_to_tell_a_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="8 pixels"):
        render(scenes(1)[0], 4, 32, np.zeros(1))
