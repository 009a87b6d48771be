"""A file is there when its frames have all come, and nothing is when they have not."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from kineograph.generation.files import SHEET_FRAMES, SHEET_SIDE, KeptFrames, VideoFile, small, spaced
from kineograph.media.encode import write_mp4

VIDEO = np.random.default_rng(0).integers(0, 256, (40, 16, 24, 3), dtype=np.uint8)
COMMENT = {"comment": "{}"}


def test_frames_that_come_in_pieces_give_the_bytes_of_the_whole(tmp_path):
    write_mp4(tmp_path / "whole.mp4", VIDEO, 8.0, metadata=COMMENT)
    with VideoFile(tmp_path / "pieces.mp4", 8.0, COMMENT) as file:
        for start in range(0, 40, 3):
            file.write(VIDEO[start : start + 3])
    assert (tmp_path / "pieces.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def write(path, times, error=None):
    with VideoFile(path, 8.0, COMMENT) as file:
        for _ in range(times):
            file.write(VIDEO)
        if error is not None:
            raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_video_leaves_no_file_and_no_thread(tmp_path, error):
    threads = threading.active_count()
    with pytest.raises(error):
        write(tmp_path / "a.mp4", 1, error)
    assert (list(tmp_path.iterdir()), threading.active_count()) == ([], threads)


FULL = """
import resource
from pathlib import Path
import tests.kineograph.generation.test_files as files
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # a disk that takes no more than 20 kB
files.write(Path("a.mp4"), 100)
"""


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    """In a process of its own: the limit also holds for a log that this one's output may go to."""
    where = {**os.environ, "PYTHONPATH": os.getcwd()}
    run = subprocess.run([sys.executable, "-c", FULL], cwd=tmp_path, env=where, capture_output=True, text=True)
    assert run.returncode == 1
    assert "DiskFullError" in run.stderr
    assert "the disk is full" in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_stops_the_work_that_makes_it(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr("kineograph.generation.files.write_mp4", broken)
    with pytest.raises(OSError, match="no"):
        write(tmp_path / "a.mp4", 10)  # more than wait in its queue


@pytest.mark.parametrize("total", [1, 5, 8, 40])
def test_the_kept_frames_are_equally_spaced_however_they_come(total):
    kept = KeptFrames(total)
    for start in range(0, total, 7):
        kept.add(VIDEO[start : min(start + 7, total)])
    assert np.array_equal(kept.frames, VIDEO[spaced(total)])
    assert len(kept.frames) == min(total, SHEET_FRAMES)
    assert (spaced(total)[0], spaced(total)[-1]) == (0, total - 1)


def test_large_frames_are_kept_small():
    assert small(np.zeros((2, 1080, 1920, 3), np.uint8)).shape == (2, SHEET_SIDE, 341, 3)
    assert small(VIDEO).base is None  # a copy, which holds no batch in memory
