"""What is kept of a source to find its copies: a small colour layout and a 64-bit hash, some times a second.

Both are taken of the picture without its black borders, squeezed to a square, so that scale, aspect, bars,
rate and encoding of a copy do not matter. The hash holds the signs of the lowest frequencies of luma and
chroma, after the pHash of Zauner, "Implementation and benchmarking of perceptual image hash functions"
(2010); it finds candidates. The layout tells whether they are copies.
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from kineograph.store.tensors import pack, unpack

# Part of the key under which fingerprints are kept: raise it when they change.
FINGERPRINT_VERSION = 1
SAMPLES_PER_SECOND = 8.0
# Samples of one source: 2.3 hours at full rate, 13 MB. A longer source is thinned out evenly.
MAX_SAMPLES = 65536
# Seconds by which a container rounds a time stamp at most.
_STAMP_ERROR_S = 1e-3
# Cells on each side of the layout.
GRID = 8
LAYOUT_SIZE = 3 * GRID * GRID
# Luma, 0..255, up to which a border is dark: 0.1 as in ffmpeg's blackdetect.
DARK_LUMA = 25
# Seconds before and after a sample in which a border must be dark to be trimmed.
BORDER_WINDOW_S = 2.0
# Pieces of a row or column of which each must be dark: bright detail on a dark ground is picture.
BORDER_PIECES = 16
# Least share of each side that is left: a night scene is not trimmed to its lamp.
LEAST_PICTURE = 0.3
# Standard deviation, levels, of the cells of every plane up to which a picture shows too little.
FLAT_LEVEL = 2.5
# Low frequencies whose signs are the hash: luma, and each chroma plane.
_LUMA_BITS, _CHROMA_BITS = 40, 12
# What a frequency must exceed for its bit to be set: a wave of half a level, so that noise sets no bits of a
# smooth picture.
_LEAST_WAVE = 0.5 * (GRID / 2) ** 2


@dataclass(frozen=True)
class FingerprintArrays:
    """The samples of a source in order of time; n is 0 when nothing was decoded."""

    frame: np.ndarray
    """Index of the sampled frame, int32 (n,)."""
    seconds: np.ndarray
    """Its time, float64 (n,), ascending."""
    hash: np.ndarray
    """Signs of the low frequencies, uint64 (n,)."""
    layout: np.ndarray
    """Cell means of luma and both chroma planes, uint8 (n, LAYOUT_SIZE), plane by plane, row by row."""
    flat: np.ndarray
    """Whether the picture has too little structure to be evidence (black, plain), bool (n,)."""

    def to_json(self) -> dict[str, Any]:
        """JSON-able; :meth:`from_json` reads it back."""
        stored = {
            "frame": self.frame,
            "seconds": self.seconds,
            "hash": self.hash.view(np.int64),
            "layout": self.layout,
            "flat": self.flat.view(np.uint8),
        }
        cells = {name: pack(array) for name, array in stored.items()}
        return {name: {**cell, "bytes": base64.b64encode(cell["bytes"]).decode()} for name, cell in cells.items()}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> FingerprintArrays:
        """What :meth:`to_json` gave. Raises KeyError or ValueError when it is damaged."""
        read = {name: unpack({**cell, "bytes": base64.b64decode(cell["bytes"])}) for name, cell in stored.items()}
        return cls(
            frame=read["frame"],
            seconds=read["seconds"],
            hash=read["hash"].view(np.uint64),
            layout=read["layout"],
            flat=read["flat"].view(np.bool_),
        )


class Fingerprints:
    """Gathers the fingerprint of a source while it is decoded; holds at most 4 s of pictures."""

    def __init__(self) -> None:
        self._step = 1 / SAMPLES_PER_SECOND
        self._due = 0.0
        self._frame: list[int] = []
        self._seconds: list[float] = []
        self._layout: list[bytes] = []
        self._waiting: deque[tuple[int, float, np.ndarray]] = deque()
        self._borders: deque[tuple[float, np.ndarray, np.ndarray]] = deque()

    def add(self, index: int, seconds: float, planes: np.ndarray) -> None:
        """Take the frame as a sample when one is due.

        Args:
            index: the frame's place in the stream.
            seconds: its time, not less than that of the frame before.
            planes: uint8 (3, H, W), full-range luma and chroma, upright. It is kept for some seconds: pass an
                array that nobody changes.
        """
        if seconds < self._due - _STAMP_ERROR_S:
            return
        self._due = (float(self._slot(seconds)) + 1) * self._step
        if self._waiting and self._waiting[0][2].shape != planes.shape:
            self._settle(np.inf)
            self._borders.clear()
        self._waiting.append((index, seconds, planes))
        self._borders.append((seconds, *_border_luma(planes[0])))
        self._settle(seconds - BORDER_WINDOW_S)
        if len(self._frame) > MAX_SAMPLES:
            self._thin_out()

    def finish(self) -> FingerprintArrays:
        """The fingerprint of all frames added."""
        self._settle(np.inf)
        layout = np.frombuffer(b"".join(self._layout), np.uint8).reshape(len(self._layout), LAYOUT_SIZE)
        return FingerprintArrays(
            frame=np.array(self._frame, np.int32),
            seconds=np.array(self._seconds, np.float64),
            hash=layout_hash(layout),
            layout=layout,
            flat=is_flat(layout),
        )

    def _settle(self, until: float) -> None:
        """Trim and shrink the samples up to ``until``: all that can move their borders has been seen."""
        while self._waiting and self._waiting[0][1] <= until:
            index, seconds, planes = self._waiting.popleft()
            while self._borders[0][0] < seconds - BORDER_WINDOW_S:
                self._borders.popleft()
            near = [item for item in self._borders if item[0] <= seconds + BORDER_WINDOW_S]
            top, bottom = _picture(np.max([rows for _, rows, _ in near], axis=0))
            left, right = _picture(np.max([columns for _, _, columns in near], axis=0))
            picture = planes[:, top:bottom, left:right].astype(np.float32)
            cells = _areas(bottom - top, GRID) @ (picture @ _areas(right - left, GRID).T)  # 3 GRID GRID
            self._frame.append(index)
            self._seconds.append(seconds)
            self._layout.append(np.rint(cells).astype(np.uint8).tobytes())

    def _thin_out(self) -> None:
        """Take samples half as often: of those so far the first of each step of time is left."""
        self._step *= 2
        times = np.array(self._seconds + [seconds for _, seconds, _ in self._waiting])
        slots = self._slot(times)
        first = np.diff(slots, prepend=-1) > 0
        keep = np.flatnonzero(first[: len(self._frame)]).tolist()
        waiting = first[len(self._frame) :].tolist()
        self._frame, self._seconds = [self._frame[i] for i in keep], [self._seconds[i] for i in keep]
        self._layout = [self._layout[i] for i in keep]
        self._waiting = deque(item for item, kept in zip(self._waiting, waiting, strict=True) if kept)
        self._due = (float(slots[-1]) + 1) * self._step

    def _slot(self, seconds: np.ndarray | float) -> np.ndarray:
        """Number of the step of time that holds ``seconds``; stamps may be off by a little."""
        slot: np.ndarray = np.floor((np.asarray(seconds) + _STAMP_ERROR_S) / self._step)
        return slot


def _border_luma(luma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean luma of the brightest piece of every row (H,) and of every column (W,), float32."""
    levels = luma.astype(np.float32)
    rows = levels @ _areas(luma.shape[1], BORDER_PIECES).T
    columns = _areas(luma.shape[0], BORDER_PIECES) @ levels
    return rows.max(axis=1), columns.max(axis=0)


@lru_cache(maxsize=512)
def _areas(pixels: int, pieces: int) -> np.ndarray:
    """The share of each pixel in the mean of each of ``pieces`` equal stretches: float32 (pieces, pixels).

    A product of two small matrices is several times as fast as an area resize to other than a whole fraction.
    """
    edges = np.arange(pieces + 1) * pixels / pieces
    pixel = np.arange(pixels)
    low, high = np.maximum(edges[:-1, None], pixel), np.minimum(edges[1:, None], pixel + 1)
    shares: np.ndarray = (np.maximum(high - low, 0) * pieces / pixels).astype(np.float32)
    return shares


def _picture(brightest: np.ndarray) -> tuple[int, int]:
    """First row that is not dark and the row after the last; all rows when hardly one is left."""
    bright = np.flatnonzero(brightest > DARK_LUMA)
    if not len(bright):
        return 0, len(brightest)
    first, end = int(bright[0]), int(bright[-1]) + 1
    # A row that is half bar and half picture would darken the cells at the edge.
    if first and first + 1 < end and brightest[first] < 0.8 * brightest[first + 1]:
        first += 1
    if end < len(brightest) and end - 2 > first and brightest[end - 1] < 0.8 * brightest[end - 2]:
        end -= 1
    return (first, end) if end - first >= LEAST_PICTURE * len(brightest) else (0, len(brightest))


def is_flat(layout: np.ndarray) -> np.ndarray:
    """Whether no plane of a layout (n, LAYOUT_SIZE) varies over its cells: bool (n,)."""
    flat = np.empty(len(layout), bool)
    for part in _parts(len(layout)):
        planes = layout[part].reshape(-1, 3, GRID * GRID).astype(np.float32)
        flat[part] = (planes.std(axis=2) < FLAT_LEVEL).all(axis=1)
    return flat


def layout_hash(layout: np.ndarray) -> np.ndarray:
    """The hash of each layout (n, LAYOUT_SIZE), uint64 (n,).

    Neighbouring bits belong to neighbouring frequencies of one plane.
    """
    bits = np.empty((len(layout), 64), np.uint8)
    for part in _parts(len(layout)):
        planes = layout[part].reshape(-1, 3, GRID * GRID).astype(np.float32)
        planes -= planes.mean(axis=2, keepdims=True)  # exactly 0 for a plane without colour
        luma, chroma = planes[:, 0] @ _DCT, planes[:, 1:] @ _DCT[:, :_CHROMA_BITS]
        bits[part] = np.concatenate([luma, chroma[:, 0], chroma[:, 1]], axis=1) > _LEAST_WAVE
    return np.ascontiguousarray(np.packbits(bits, axis=1)).view(np.uint64).ravel()


def _parts(length: int) -> Iterator[slice]:
    """Stretches of a long source whose layouts fit in little memory as floats."""
    return (slice(start, start + 4096) for start in range(0, length, 4096))


def _dct() -> np.ndarray:
    """The basis of the lowest frequencies of a grid but the constant, float32 (GRID * GRID, _LUMA_BITS)."""
    place = (np.arange(GRID) + 0.5) * np.pi / GRID
    waves = np.cos(np.arange(GRID)[:, None] * place)  # frequency, place
    order = sorted(((v, u) for v in range(GRID) for u in range(GRID) if u or v), key=lambda f: (f[0] + f[1], f))
    return np.stack([np.outer(waves[v], waves[u]).ravel() for v, u in order[:_LUMA_BITS]], axis=1).astype(np.float32)


_DCT = _dct()
