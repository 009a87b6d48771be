"""Videos as files while their frames come: encoded beside the work that makes them, and complete or absent."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from queue import Empty, Full, Queue
from types import TracebackType

import cv2
import numpy as np

from kineograph.media.encode import write_mp4

SHEET_FRAMES = 8
SHEET_SIDE = 192
"""Pixels of the short side of a frame in a contact sheet, at most."""
POLL_S = 0.2


class _StoppedError(Exception):
    """The frames end because the work that makes them has failed."""


class VideoFile:
    """An mp4 that takes frames as they come. A context manager: the file is there when its block has ended well.

    It is written by a thread of its own, which at most two stretches of frames wait for. A failure to write is raised by
    the next call.
    """

    def __init__(self, path: Path, fps: float, metadata: Mapping[str, str]) -> None:
        self._queue: Queue[np.ndarray | None] = Queue(maxsize=2)
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._encode, args=(path, fps, metadata), name=f"encode {path.name}")

    def __enter__(self) -> VideoFile:
        self._thread.start()
        return self

    def write(self, frames: np.ndarray) -> None:
        """Take frames (T H W 3), uint8, that nobody changes any more."""
        self._put(frames)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._put(None)
            else:
                self._stopped.set()
        except BaseException:
            self._stopped.set()
            raise
        finally:
            self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def _put(self, frames: np.ndarray | None) -> None:
        while True:
            if self._error is not None:
                raise self._error
            try:
                self._queue.put(frames, timeout=POLL_S)
                return
            except Full:
                continue

    def _encode(self, path: Path, fps: float, metadata: Mapping[str, str]) -> None:
        try:
            write_mp4(path, self._frames(), fps, metadata=metadata)
        except _StoppedError:
            pass
        except BaseException as error:  # noqa: BLE001 - raised by the thread that uses this one
            self._error = error

    def _frames(self) -> Iterator[np.ndarray]:
        while True:
            try:
                frames = self._queue.get(timeout=POLL_S)
            except Empty:
                frames = np.empty(0)
            if self._stopped.is_set():
                raise _StoppedError
            if frames is None:
                return
            yield from frames


class KeptFrames:
    """A few frames of a video, equally spaced and small, for its contact sheet."""

    def __init__(self, total: int) -> None:
        self._wanted = spaced(total)
        self._seen = 0
        self._kept: list[np.ndarray] = []

    def add(self, frames: np.ndarray) -> None:
        """Look at the next frames (T H W 3)."""
        for number in self._wanted:
            if self._seen <= number < self._seen + len(frames):
                self._kept.append(small(frames[number - self._seen][None])[0])
        self._seen += len(frames)

    @property
    def frames(self) -> np.ndarray:
        """uint8 (n H W 3)."""
        return np.stack(self._kept)


def spaced(total: int) -> list[int]:
    """At most SHEET_FRAMES of ``total`` numbers, the first and the last among them."""
    return sorted(set(np.linspace(0, total - 1, min(SHEET_FRAMES, total)).round().astype(int).tolist()))


def small(frames: np.ndarray) -> np.ndarray:
    """Frames (T H W 3) with a short side of at most SHEET_SIDE pixels, as a copy."""
    height, width = frames.shape[1:3]
    scale = SHEET_SIDE / min(height, width)
    if scale >= 1:
        return frames.copy()
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])
