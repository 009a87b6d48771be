"""What is measured while frames go by: each class takes every frame of a source and keeps what it needs of it.

All but the samples read the small planes of a frame, uint8 (3, H, W): luma and chroma in full range, upright.
"""

from __future__ import annotations

import base64
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from kineograph.media.decode import planes_to_bgr, small_planes
from kineograph.store.tensors import pack

# Side in pixels of the cells whose means tell a still picture from a moving one.
CELL_SIDE = 8
# Rows and columns of the coarse layout that tells whether a picture is back after a flash.
LAYOUT_SIDE = 4
# Luma, 0..255, up to which a pixel is dark: 0.1 as in ffmpeg's blackdetect.
DARK_LUMA = 25
# Luma up to which a pixel may belong to a black bar: encoding rings into it from the picture. ffmpeg's cropdetect takes 24
# of limited range, which is 9 of full range and leaves bars of bad encodings.
BAR_LUMA = 20
MOTION_SAMPLES_PER_SECOND = 2.0
# Least seconds between the frames of a flow sample: at 60 fps neighbours differ by less than the flow's own noise.
MOTION_STEP_S = 0.04
# DIS matches patches of 8 pixels on a pyramid; a smaller frame has none. Below 32 pixels on a side OpenCV 5.0 crashes on
# some shapes: there the border is repeated.
MOTION_LEAST_SIDE = 16
DIS_LEAST_SIDE = 32
# Pixels over which blur is measured: the filter of Crete et al.
BLUR_WINDOW = 11
# Part of the steepest gradient from which a pixel is an edge. Of 0, 0.3, 0.5 and 0.7 this parts the synthetic world's
# scenes in focus (0.34 at most) from those that are not (0.60 at least) best; real clips are at 0.10 to 0.39.
STEEPEST = 0.5
# Samples of a source, thinned out evenly when there are more: one a second for half an hour.
MAX_SAMPLES = 2048
SAMPLE_QUALITY = 88
# Difference to the frame before, in levels, from which a frame is sampled at once.
NEW_PICTURE = 18.0
# Frames measured at a time: their small planes are a megabyte.
BATCH = 24
LEVELS = np.arange(256, dtype=np.float32)
FROM_GREY = np.abs(LEVELS - 128)


class FrameScores:
    """What is measured on every frame, most of it against the frame before.

    Frames are measured by the batch: between two frames of the decoder everything that measuring needs is out of
    the processor's caches, which costs more than the measuring itself.
    """

    def __init__(self) -> None:
        self._before: np.ndarray | None = None
        self._waiting: list[np.ndarray] = []
        self._differences: list[float] = []
        self._shares: np.ndarray | None = None
        self._cells: np.ndarray | None = None
        self._scores: list[np.ndarray] = []
        self._bars: list[tuple[int, ...]] = []
        self._layouts: list[np.ndarray] = []
        self.size = (0, 0)

    def add(self, planes: np.ndarray) -> None:
        """Take one frame's small planes, which nobody may change afterwards."""
        difference = 0.0
        if self._before is not None:
            levels = cv2.norm(planes.reshape(1, -1), self._before.reshape(1, -1), cv2.NORM_L1)
            difference = float(levels) / planes[0].size
        self._differences.append(difference)
        self._before = planes
        self.size = planes.shape[2], planes.shape[1]
        self._waiting.append(planes)
        if len(self._waiting) == BATCH:
            self._measure()

    def _measure(self) -> None:
        """Measure the frames that wait."""
        if not self._waiting:
            return
        planes = np.stack(self._waiting)  # frames 3 H W
        self._waiting.clear()
        pixels = planes[0, 0].size
        counts = np.stack(
            [cv2.calcHist([p], [0], None, [256], [0, 256]).ravel() for p in planes.reshape(-1, *planes.shape[2:])]
        )
        counts = counts.reshape(len(planes), 3, 256)
        shares, cells = counts.cumsum(axis=2) / pixels, _cell_means(planes)
        # Earth mover's distance between the planes' histograms: what of the difference no motion explains.
        palette = np.abs(_steps(shares, self._shares, 0.0)).sum(axis=(1, 2))
        # Encoding a still picture again moves single pixels by 20 levels, and cells by 2.
        cell = np.abs(_steps(cells, self._cells, 255.0)).max(axis=(1, 2, 3))
        luma = counts[:, 0] @ LEVELS / pixels
        contrast = np.sqrt(np.maximum(0.0, counts[:, 0] @ LEVELS**2 / pixels - luma**2))
        saturation = (counts[:, 1] + counts[:, 2]) @ FROM_GREY / (2 * 128 * pixels)
        dark = shares[:, 0, DARK_LUMA]
        difference = np.array(self._differences)
        self._differences = self._differences[-1:]
        self._scores.append(
            np.stack([difference[-len(planes) :], palette, cell, luma / 255, contrast / 255, saturation, dark])
        )
        self._bars.extend(_bars(p) for p in planes[:, 0])
        self._layouts.append(_layout(cells))
        self._shares, self._cells = shares[-1], cells[-1]

    @property
    def last_difference(self) -> float:
        return self._differences[-1]

    def to_json(self) -> dict[str, Any]:
        self._measure()
        names = ("difference", "palette", "cell", "luma", "contrast", "saturation", "dark")
        columns = np.concatenate(self._scores, axis=1).astype(np.float16)
        return {
            **{name: to_json(column) for name, column in zip(names, columns, strict=True)},
            "bars": to_json(np.array(self._bars, np.uint8)),
            "layout": to_json(np.concatenate(self._layouts).astype(np.uint8)),
            "small": list(self.size),
        }


def _steps(values: np.ndarray, before: np.ndarray | None, first: float) -> np.ndarray:
    """Each of ``values`` (frames, …) less the one before it; all ``first`` where there is none."""
    steps = np.empty_like(values)
    np.subtract(values[1:], values[:-1], out=steps[1:])
    steps[0] = first if before is None else values[0] - before
    return steps


def _cell_means(planes: np.ndarray) -> np.ndarray:
    """Means of the square cells of ``planes`` (…, H, W), float32 (…, rows, columns)."""
    rows, columns = (max(1, side // CELL_SIDE) for side in planes.shape[-2:])
    means: np.ndarray = area_weights(rows, planes.shape[-2]) @ planes.astype(np.float32)
    return means @ area_weights(columns, planes.shape[-1]).T


def _layout(cells: np.ndarray) -> np.ndarray:
    """Means of a coarse grid of the picture, (frames, 48) from ``cells`` (frames, 3, rows, columns)."""
    rows, columns = (area_weights(LAYOUT_SIDE, side) for side in cells.shape[-2:])
    return (rows @ cells @ columns.T).reshape(len(cells), -1)


@lru_cache(maxsize=64)
def area_weights(parts: int, pixels: int) -> np.ndarray:
    """How much of each of ``pixels`` lies in each of ``parts`` equal stretches of them, rows that add up to 1:
    float32 (parts, pixels). A product with it is OpenCV's INTER_AREA at any ratio, and faster at odd ones."""
    edges = np.linspace(0, pixels, parts + 1)
    starts = np.arange(pixels)
    overlap = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    weights: np.ndarray = (np.clip(overlap, 0, None) * (parts / pixels)).astype(np.float32)
    return weights


def _bars(luma: np.ndarray) -> tuple[int, int, int, int]:
    """Dark columns at the left and right, dark rows at the top and bottom; all of them in a black frame."""
    columns, rows = luma.max(axis=0) > BAR_LUMA, luma.max(axis=1) > BAR_LUMA
    if not columns.any():
        return luma.shape[1], luma.shape[1], luma.shape[0], luma.shape[0]
    return int(columns.argmax()), int(columns[::-1].argmax()), int(rows.argmax()), int(rows[::-1].argmax())


class MotionSamples:
    """Dense optical flow (Kroeger et al. 2016, DIS) between two near frames, about twice a second.

    Kept in frame diagonals: the mean magnitude, and the median vector, which is the camera's where most of the
    picture is background.
    """

    def __init__(self) -> None:
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self._anchor: tuple[int, float, np.ndarray] | None = None
        self._due = 0.0
        self._frames: list[tuple[int, int]] = []
        self._shift: list[tuple[float, float, float]] = []

    def add(self, index: int, now: float, luma: np.ndarray) -> None:
        """``luma``: uint8 (H, W) of the frame shown at ``now`` seconds."""
        if min(luma.shape) < MOTION_LEAST_SIDE:
            return
        if self._anchor is not None and now - self._anchor[1] >= MOTION_STEP_S:
            flow = self._flow.calc(_padded(self._anchor[2]), _padded(luma), None)[: luma.shape[0], : luma.shape[1]]
            x, y = flow[..., 0], flow[..., 1]
            diagonal = float(np.hypot(*luma.shape))
            mean, pan_x, pan_y = float(cv2.magnitude(x, y).mean()), float(np.median(x)), float(np.median(y))
            self._frames.append((self._anchor[0], index))
            self._shift.append((mean / diagonal, pan_x / diagonal, pan_y / diagonal))
            self._anchor = None
        if self._anchor is None and now >= self._due:
            self._anchor = (index, now, luma)
            self._due = now + 1 / MOTION_SAMPLES_PER_SECOND

    def to_json(self) -> dict[str, Any]:
        return {
            "motion_frames": to_json(np.array(self._frames, np.int64).reshape(-1, 2)),
            "motion_shift": to_json(np.array(self._shift, np.float32).reshape(-1, 3)),
        }


def _padded(luma: np.ndarray) -> np.ndarray:
    """``luma`` with both sides at least DIS_LEAST_SIDE, its last row or column repeated."""
    below, right = (max(0, DIS_LEAST_SIDE - side) for side in luma.shape)
    return cv2.copyMakeBorder(luma, 0, below, 0, right, cv2.BORDER_REPLICATE) if below or right else luma


class BlurSamples:
    """No-reference perceptual blur (Crete et al. 2007) about twice a second, on larger frames than the rest."""

    def __init__(self) -> None:
        self._due = 0.0
        self._frames: list[int] = []
        self._blur: list[float] = []

    def due(self, now: float) -> bool:
        """Whether the frame shown at ``now`` seconds is to be measured."""
        return now >= self._due

    def add(self, index: int, now: float, luma: np.ndarray) -> None:
        """``luma``: uint8 (H, W)."""
        self._due = now + 1 / MOTION_SAMPLES_PER_SECOND
        self._frames.append(index)
        self._blur.append(blur(luma))

    def to_json(self) -> dict[str, Any]:
        return {
            "blur_frames": to_json(np.array(self._frames, np.int64)),
            "blur": to_json(np.array(self._blur, np.float32)),
        }


def blur(luma: np.ndarray, steepest: float = STEEPEST) -> float:
    """How little of a picture's edges a second blurring takes away, 0 (sharp) .. 1; NaN for a plain picture.

    Crete et al. 2007, "The blur effect": the larger of both axes' B = 1 - sum(max(0, D - D_blurred)) / sum(D),
    D the gradient along the axis. The sums are over its steepest pixels: a picture is as sharp as its sharpest edges,
    and skies and backgrounds out of focus say nothing. ``luma``: uint8 (H, W). ``steepest`` 0 takes all pixels.
    """
    found = []
    for window, order in (((1, BLUR_WINDOW), (0, 1)), ((BLUR_WINDOW, 1), (1, 0))):
        # Sums in place of means, and gradients in whole numbers: twice as fast.
        again = cv2.boxFilter(luma, cv2.CV_32F, window, normalize=False, borderType=cv2.BORDER_REFLECT)
        sharp = cv2.absdiff(cv2.Sobel(luma, cv2.CV_16S, *order), 0)[2:-1, 2:-1]
        if not sharp.size or not sharp.any():
            continue
        edges = np.flatnonzero(sharp >= steepest * _steepest(sharp))
        soft = np.abs(cv2.Sobel(again, cv2.CV_32F, *order)[2:-1, 2:-1].ravel()[edges]) / BLUR_WINDOW
        steep = sharp.ravel()[edges].astype(np.float32)
        found.append(1 - float(np.maximum(steep - soft, 0).sum() / steep.sum()))
    return max(found, default=float("nan"))


def _steepest(gradients: np.ndarray) -> float:
    """The 0.999 quantile of ``gradients``, int16 from 0 on: np.quantile's, by counting."""
    counts = cv2.calcHist([np.ascontiguousarray(gradients).view(np.uint16)], [0], None, [2048], [0, 2048]).ravel()
    place = 0.999 * (gradients.size - 1)
    upto = counts.cumsum(dtype=np.float64)
    low, high = (int(np.searchsorted(upto, rank, side="right")) for rank in (np.floor(place), np.ceil(place)))
    return low + (high - low) * (place - np.floor(place))


class SampledFrames:
    """JPEGs for people and models: a few a second, and one more where a shot may begin."""

    def __init__(self, side: int, per_second: float) -> None:
        self._side = side
        self._every = 1 / per_second
        self._due = 0.0
        self._least_gap = 0.2
        self._kept: list[tuple[int, bytes]] = []

    def add(self, index: int, now: float, frame: Any, difference: float) -> None:
        """``frame``: the av.VideoFrame shown at ``now``, ``difference`` in levels to the one before."""
        may_begin = difference >= NEW_PICTURE and now >= self._due - self._every + self._least_gap
        if index and now < self._due and not may_begin:
            return
        self._due = now + self._every
        pixels = planes_to_bgr(small_planes(frame, self._side))
        _, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, SAMPLE_QUALITY])
        self._kept.append((index, jpeg.tobytes()))
        if len(self._kept) > MAX_SAMPLES:
            self._kept = self._kept[::2]
            self._every *= 2
            self._least_gap *= 2

    def to_json(self) -> list[list[Any]]:
        return [[index, base64.b64encode(jpeg).decode()] for index, jpeg in self._kept]


def to_json(array: np.ndarray) -> dict[str, Any]:
    """A tensor cell whose bytes are base64."""
    cell = pack(array)
    return {**cell, "bytes": base64.b64encode(cell["bytes"]).decode()}
