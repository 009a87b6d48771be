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
from pipelines.data.filters import Filters

_ARRAYS = (
    "times",
    "difference",
    "palette",
    "cell",
    "luma",
    "contrast",
    "saturation",
    "dark",
    "bars",
    "layout",
    "motion_frames",
    "motion_shift",
    "blur_frames",
    "blur",
)
# Share of the side from which dark rows or columns on both of its ends are bars; thinner ones are not worth a crop.
LEAST_BAR = 0.02
# Most that opposite bars may differ by, in shares of the side: bars are centred, dark scenery is not.
BARS_BALANCE = 0.03
# A flash is a rise and a fall of the mean luma by this much each, in shares of the range (WCAG 2.3.1).
FLASH_STEP = 0.1


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
    interlaced: float
    """Share of frames that are flagged so."""
    warning: str
    small: tuple[int, int]
    """Width and height of the frames that were measured."""
    times: np.ndarray
    """Start of each frame and end of the last in seconds, float64 (frames + 1,); zeros for an image."""
    difference: np.ndarray
    """Mean absolute change of luma and both chroma planes since the frame before, in levels, summed: 0..765."""
    palette: np.ndarray
    """The part of ``difference`` that no motion explains: distance of the planes' histograms, in levels."""
    cell: np.ndarray
    """Largest change of a cell's mean, of 8 x 8 small pixels, in levels 0..255; 255 for the first frame."""
    luma: np.ndarray
    """Mean luma, 0..1."""
    contrast: np.ndarray
    """Standard deviation of luma, 0..0.5."""
    saturation: np.ndarray
    """Mean distance of the chroma planes from grey, 0..1."""
    dark: np.ndarray
    """Share of pixels with luma up to 0.1."""
    bars: np.ndarray
    """Dark columns at left and right and dark rows at top and bottom, in small pixels: uint8 (frames, 4)."""
    layout: np.ndarray
    """Means of a 4 x 4 grid of the three planes: uint8 (frames, 48)."""
    motion_frames: np.ndarray
    """Indices of both frames of each flow sample: (samples, 2)."""
    motion_shift: np.ndarray
    """Mean flow between them, and its median to the right and down, in frame diagonals: (samples, 3)."""
    blur_frames: np.ndarray
    """Indices of the frames whose blur was measured: (samples,)."""
    blur: np.ndarray
    """Their blur, 0..1, NaN for a plain picture: (samples,)."""

    @property
    def is_image(self) -> bool:
        return self.media_type == "image"

    @property
    def fps(self) -> float:
        """Mean rate: frames / seconds; 0 for an image."""
        return self.frames / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class Signals:
    """The signals of a span, as the columns of the clips table. NaN where one was not measured."""

    luma: float
    contrast: float
    saturation: float
    black: float
    static: float
    motion: float
    pan: float
    pan_direction: float
    blur: float
    flashing: float


def measure(analysis: Analysis, start: int, end: int, filters: Filters) -> Signals:
    """The signals of frames [``start``, ``end``)."""
    black = analysis.dark[start:end] >= filters.black.picture
    repeats = analysis.cell[start + 1 : end] <= filters.static.level
    motion, pan_x, pan_y = _motion(analysis, start, end)
    blurs = analysis.blur[(analysis.blur_frames >= start) & (analysis.blur_frames < end)]
    nan = float("nan")
    return Signals(
        luma=_mean(analysis.luma[start:end]),
        contrast=_mean(analysis.contrast[start:end]),
        saturation=_mean(analysis.saturation[start:end]),
        black=float(black.mean()),
        static=float(repeats.mean()) if len(repeats) else nan,
        motion=motion,
        pan=float(np.hypot(pan_x, pan_y)),
        pan_direction=float(np.degrees(np.arctan2(-pan_y, pan_x)) % 360) if pan_x == pan_x else nan,
        blur=float(np.nanmedian(blurs)) if np.isfinite(blurs).any() else nan,
        flashing=nan if analysis.is_image else flashes(analysis.luma[start:end], analysis.times[start:end]),
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean(dtype=np.float64))


def _motion(analysis: Analysis, start: int, end: int) -> tuple[float, float, float]:
    """Mean speed and mean camera velocity to the right and down, frame diagonals per second; NaN without samples."""
    first, second = analysis.motion_frames[:, 0], analysis.motion_frames[:, 1]
    inside = (first >= start) & (second < end)
    if not inside.any():
        return float("nan"), float("nan"), float("nan")
    seconds = analysis.times[second[inside]] - analysis.times[first[inside]]
    speed, pan_x, pan_y = (analysis.motion_shift[inside] / seconds[:, None]).mean(axis=0, dtype=np.float64)
    return float(speed), float(pan_x), float(pan_y)


def flashes(luma: np.ndarray, times: np.ndarray) -> float:
    """The most flashes within any second of a span: pairs of opposite swings of the mean luma by FLASH_STEP or more.

    ``luma`` (frames,) in 0..1, ``times`` (frames,) in seconds. After the general flash of WCAG 2.3.1, without its
    weighting by dark images and area.
    """
    # Turning points of a zigzag that ignores swings below the step.
    turns: list[float] = []
    low = high = float(luma[0])
    direction = 0
    for value, time in zip(luma.astype(np.float64).tolist(), times.tolist(), strict=True):
        low, high = min(low, value), max(high, value)
        if direction <= 0 and value - low >= FLASH_STEP:
            turns.append(time)
            direction, high = 1, value
        elif direction >= 0 and high - value >= FLASH_STEP:
            turns.append(time)
            direction, low = -1, value
        if direction > 0:
            low = high
        elif direction < 0:
            high = low
    swings = np.array(turns)
    if len(swings) < 2:
        return 0.0
    return float((np.searchsorted(swings, swings + 1.0, side="left") - np.arange(len(swings))).max() // 2)


def content(analysis: Analysis, start: int, end: int, filters: Filters) -> tuple[int, int, int, int]:
    """The picture without black bars, (x, y, width, height) in source pixels.

    Bars are dark on every frame of the span that is not black itself, and about as wide on both sides. The crop
    lies a small pixel within the picture, so that nothing of the bar is left.
    """
    pictures = analysis.bars[start:end][analysis.dark[start:end] < filters.black.picture]
    box = [0, 0, analysis.width, analysis.height]
    if not len(pictures):
        return 0, 0, analysis.width, analysis.height
    least = pictures.min(axis=0).astype(int)
    for axis, (low, high) in enumerate(((least[0], least[1]), (least[2], least[3]))):
        small, full = analysis.small[axis], box[2 + axis]
        centred = abs(low - high) <= 2 + BARS_BALANCE * small
        if min(low, high) < max(1.5, LEAST_BAR * small) or not centred or low + high >= 0.8 * small:
            continue
        begin = _inside(low, full, small)
        box[axis], box[2 + axis] = begin, full - begin - _inside(high, full, small)
    return box[0], box[1], box[2], box[3]


def _inside(bar: int, full: int, small: int) -> int:
    """Source pixels of a bar of ``bar`` small pixels and the blended one behind it."""
    return -(-bar * full // small) + (full // small if full > small else 0)


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
        values[name] = array(result[name])
    return Analysis(**{**values, "small": tuple(values["small"])})


def array(cell: dict[str, Any]) -> np.ndarray:
    """The array of a tensor cell whose bytes are base64."""
    return unpack({**cell, "bytes": base64.b64decode(cell["bytes"])})
