"""What the one pass measured, as stored and read back, and the signals of a span of it."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from kineograph.store.commit import write_bytes
from kineograph.store.tensors import unpack
from pipelines.data.config import Filters

_ARRAYS = (
    "times",
    "difference",
    "palette",
    "cell",
    "luma",
    "dark",
    "motion_first",
    "motion_second",
    "motion_shift",
)


@dataclass(frozen=True)
class Analysis:
    """The measures of one source. Arrays over frames have ``frames`` entries unless said otherwise."""

    container: str
    codec: str
    media_type: str
    """image | video"""
    width: int
    height: int
    frames: int
    seconds: float
    warning: str
    times: np.ndarray
    """Start of each frame and end of the last in seconds, float64 (frames + 1,); zeros for an image."""
    difference: np.ndarray
    """Mean absolute change of luma and both chroma planes since the frame before, in levels, summed:
    0..765."""
    palette: np.ndarray
    """The part of ``difference`` that no motion explains: distance of the planes' histograms, in levels."""
    cell: np.ndarray
    """Largest change of a cell's mean, of 8 x 8 small pixels, in levels 0..255; 255 for the first frame."""
    luma: np.ndarray
    """Mean luma, 0..1."""
    dark: np.ndarray
    """Share of pixels with luma up to 0.1."""
    motion_first: np.ndarray
    """Index of the earlier frame of each flow sample, (samples,)."""
    motion_second: np.ndarray
    """Index of its later frame, (samples,)."""
    motion_shift: np.ndarray
    """Mean flow between them in frame diagonals, (samples,)."""
    thumbnails: tuple[tuple[int, bytes], ...]
    """(frame index, JPEG), ascending."""

    @property
    def is_image(self) -> bool:
        return self.media_type == "image"

    @property
    def fps(self) -> float:
        """Mean rate: frames / seconds; 0 for an image."""
        return self.frames / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class Signals:
    """The signals of a span. NaN where one was not measured."""

    luma: float
    """Mean luma, 0..1."""
    black: float
    """Share of frames that are black."""
    static: float
    """Share of frames, from the span's second on, that repeat the one before."""
    motion: float
    """Mean optical flow, frame diagonals per second."""


def measure(analysis: Analysis, start: int, end: int, filters: Filters) -> Signals:
    """The signals of frames [``start``, ``end``)."""
    black = analysis.dark[start:end] >= filters.black.picture
    repeats = analysis.cell[start + 1 : end] <= filters.static.level
    inside = (analysis.motion_first >= start) & (analysis.motion_second < end)
    first, second = analysis.motion_first[inside], analysis.motion_second[inside]
    speeds = analysis.motion_shift[inside] / (analysis.times[second] - analysis.times[first])
    return Signals(
        luma=float(analysis.luma[start:end].mean(dtype=np.float64)),
        black=float(black.mean()),
        static=float(repeats.mean()) if len(repeats) else float("nan"),
        motion=float(speeds.mean(dtype=np.float64)) if len(speeds) else float("nan"),
    )


def thumbnail(analysis: Analysis, start: int, end: int) -> bytes:
    """The JPEG nearest to the middle of frames [``start``, ``end``), of those within when there are any."""
    if not analysis.thumbnails:
        return b""
    middle = (start + end) / 2
    within = [t for t in analysis.thumbnails if start <= t[0] < end]
    return min(within or analysis.thumbnails, key=lambda t: (abs(t[0] - middle), t[0]))[1]


def save(path: Path, outcome: dict[str, Any]) -> None:
    """Commit ``outcome`` as gzipped JSON; the same outcome gives the same bytes."""
    text = json.dumps(outcome, sort_keys=True, separators=(",", ":"))
    write_bytes(path, gzip.compress(text.encode(), compresslevel=1, mtime=0))


def load(path: Path) -> dict[str, Any]:
    """What :func:`save` committed. Raises OSError, ValueError or EOFError when it is missing or damaged."""
    outcome: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return outcome


def parse(result: dict[str, Any]) -> Analysis:
    """The Analysis in what :func:`pipelines.data.analyse.analyse` returned."""
    values = {field.name: result[field.name] for field in fields(Analysis)}
    for name in _ARRAYS:
        cell = result[name]
        values[name] = unpack({**cell, "bytes": base64.b64decode(cell["bytes"])})
    values["thumbnails"] = tuple((index, base64.b64decode(jpeg)) for index, jpeg in result["thumbnails"])
    return Analysis(**values)
