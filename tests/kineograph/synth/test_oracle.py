"""The oracle tells colour, shape and direction of rendered truth, and says None of nothing."""

import io

import av
import cv2
import numpy as np
import pytest

from kineograph.media.encode import encode_h264
from kineograph.synth.oracle import Observation, grade, observe
from kineograph.synth.scene import Scene, caption, render, sample_scene, still, still_caption

TIMES = (np.arange(8) + 0.5) / 4


def through_h264(video: np.ndarray) -> np.ndarray:
    with av.open(io.BytesIO(encode_h264(video, 4, crf=18))) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def accuracy(graded: list[dict[str, bool | None]]) -> dict[str, float]:
    return {key: float(np.mean([bool(item[key]) for item in graded])) for key in graded[0]}


def drawn(count: int, seed: int, two_objects: float = 0.0) -> list[tuple[Scene, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [(sample_scene(rng, two_objects=two_objects), TIMES + rng.uniform(0, 6)) for _ in range(count)]


@pytest.mark.parametrize(("width", "height", "count"), [(32, 32, 400), (40, 24, 300), (24, 40, 300), (64, 64, 300)])
def test_rendered_truth_is_graded_right(width: int, height: int, count: int) -> None:
    graded = [grade(render(s, width, height, times), caption(s)) for s, times in drawn(400, width)]
    assert min(accuracy(graded).values()) >= 0.98


def test_encoded_truth_is_graded_right() -> None:
    graded = [grade(through_h264(render(s, 32, 32, times)), caption(s)) for s, times in drawn(300, 1)]
    assert min(accuracy(graded).values()) >= 0.98


def test_soft_and_noisy_truth_is_graded_right() -> None:
    rng = np.random.default_rng(2)
    graded = []
    for scene, times in drawn(200, 2):
        soft = [cv2.GaussianBlur(frame, (0, 0), 1.0) for frame in render(scene, 32, 32, times)]
        noisy = np.clip(np.stack(soft) + rng.normal(0, 12, (8, 32, 32, 3)), 0, 255).astype(np.uint8)
        graded.append(grade(noisy, caption(scene)))
    assert min(accuracy(graded).values()) >= 0.98


def test_colour_and_direction_survive_a_centred_crop() -> None:
    graded = []
    for scene, times in drawn(200, 3):
        wide = render(scene, 128, 96, times)[:, :, 16:112]
        small = np.stack([cv2.resize(frame, (32, 32), interpolation=cv2.INTER_AREA) for frame in wide])
        graded.append(grade(small, caption(scene)))
    assert accuracy(graded)["colour"] >= 0.95
    assert accuracy(graded)["direction"] >= 0.95


def test_the_first_of_two_objects_is_graded() -> None:
    pairs = drawn(200, 4, two_objects=1.0)
    graded = [grade(render(scene, 32, 32, times), caption(scene)) for scene, times in pairs]
    assert min(accuracy(graded).values()) >= 0.95


def test_a_wrong_prompt_is_graded_wrong() -> None:
    for scene, times in drawn(50, 5):
        video = render(scene, 32, 32, times)
        item = scene.objects[0]
        assert grade(video[::-1], caption(scene))["direction"] is False
        other = "a yellow" if item.colour != "yellow" else "a blue"
        assert grade(video, f"{other} {item.shape} moving {item.direction}")["colour"] is False
        shape = "circle" if item.shape != "circle" else "square"
        assert grade(video, f"a {item.colour} {shape} moving {item.direction}")["shape"] is False


def test_a_still_has_colour_and_shape_and_no_direction() -> None:
    graded = []
    for scene, _ in drawn(200, 6):
        graded.append(grade(render(scene, 32, 32, np.zeros(1)), still_caption(scene)))
        assert observe(render(still(scene), 32, 32, TIMES))[0].direction is None
    assert {item["direction"] for item in graded} == {None}
    assert min(accuracy([{k: g[k] for k in ("colour", "shape")} for g in graded]).values()) >= 0.98


@pytest.mark.parametrize("frames", [1, 8])
def test_nothing_saturated_gives_no_answer(frames: int) -> None:
    rng = np.random.default_rng(8)
    nothing = [Observation(None, None, None)]
    for _ in range(50):
        shape = (frames, 32, 32)
        grey_noise = np.repeat(rng.integers(0, 256, (*shape, 1)), 3, axis=-1)
        colour_noise = rng.integers(0, 256, (*shape, 3))
        flat = np.broadcast_to(rng.integers(0, 256, 3), (*shape, 3))
        for video in (grey_noise, colour_noise, flat):
            assert observe(video.astype(np.uint8)) == nothing
    for scene, times in drawn(50, 9):
        empty = Scene(scene.seed, (), scene.background)
        assert observe(render(empty, 32, 32, times[:frames])) == nothing


def test_an_empty_picture_fails_every_grade() -> None:
    grey = np.full((8, 32, 32, 3), 128, np.uint8)
    assert grade(grey, "a red circle moving left") == {"colour": False, "shape": False, "direction": False}


def test_what_is_no_video_or_no_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        observe(np.zeros((8, 32, 32, 3), np.float32))
    with pytest.raises(ValueError, match="not a caption"):
        grade(np.zeros((8, 32, 32, 3), np.uint8), "a dog on a beach")
