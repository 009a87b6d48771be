"""The one pass over a source: decode every frame once and measure all that later decisions need.

Runs in the guarded child. What it returns is scores and no decision, so that thresholds can change without
it.
"""

from __future__ import annotations

import base64
from typing import Any

import cv2
import numpy as np

from kineograph.media.decode import Decoding, frame_times, planes_to_bgr, shown_size, small_planes
from kineograph.media.probe import MediaLimits, open_video
from kineograph.store.tensors import pack

# Part of the key under which an analysis is kept: raise it when a measure changes.
ANALYSIS_VERSION = 1
# Long side in pixels of the frames that are measured.
SMALL_SIDE = 160
# Side in pixels of the cells whose means tell a still picture from a moving one.
CELL_SIDE = 8
# Luma, 0..255, up to which a pixel is dark: 0.1 as in ffmpeg's blackdetect.
DARK_LUMA = 25
MOTION_SAMPLES_PER_SECOND = 2.0
# Least seconds between the frames of a flow sample: at 60 fps neighbours differ by less than the flow's own
# noise.
MOTION_STEP_S = 0.04
# DIS matches patches of 8 pixels on a pyramid; a smaller frame has none.
MOTION_LEAST_SIDE = 16
# Thumbnails of a source: one a second, thinned out evenly when there are more than this.
MAX_THUMBNAILS = 240
# Difference to the frame before, in levels, from which a frame gets a thumbnail at once.
NEW_PICTURE = 18.0


def analyse(path: str, limits: dict[str, Any]) -> dict[str, Any]:
    """Probe and measure the file at ``path``; JSON-able, read back by
    :class:`pipelines.data.signals.Analysis`.

    Raises MediaFault.
    """
    cv2.setNumThreads(1)
    with open_video(path, MediaLimits(**limits)) as (container, stream, probe):
        decoding = Decoding(container, stream, probe, MediaLimits(**limits))
        scores, motion, thumbnails = FrameScores(), MotionSamples(), Thumbnails()
        shown, now = (0, 0), 0.0
        for index, frame in enumerate(decoding):
            # Stamps out of order are mended when all are known; until then time only runs forward.
            now = max(now, decoding.pts[-1] or now)
            planes = small_planes(frame, SMALL_SIDE)
            if index == 0:
                shown = shown_size(frame.width, frame.height, frame.rotation)
                first_size = planes.shape[2], planes.shape[1]
            elif planes.shape[2:0:-1] != first_size:  # the size may change in mid-stream
                planes = np.stack([cv2.resize(p, first_size, interpolation=cv2.INTER_AREA) for p in planes])
            scores.add(planes)
            motion.add(index, now, planes[0])
            thumbnails.add(index, now, planes, scores.last_difference)
    times = frame_times(decoding)
    still = probe.still or (len(times) == 2 and probe.container in ("gif", "apng"))
    if still:
        times = np.zeros(2)
    return {
        "version": ANALYSIS_VERSION,
        "container": probe.container.partition(",")[0],
        "codec": probe.codec,
        "media_type": "image" if still else "video",
        "width": shown[0],
        "height": shown[1],
        "frames": len(times) - 1,
        "seconds": float(times[-1]),
        "warning": decoding.warning(),
        "times": to_json(times),
        **scores.to_json(),
        **motion.to_json(),
        "thumbnails": thumbnails.to_json(),
    }


class FrameScores:
    """What is measured on every frame, most of it against the frame before."""

    def __init__(self) -> None:
        self._before: np.ndarray | None = None
        self._levels: np.ndarray | None = None
        self._cells: np.ndarray | None = None
        self._difference: list[float] = []
        self._palette: list[float] = []
        self._cell: list[float] = []
        self._luma: list[float] = []
        self._dark: list[float] = []

    def add(self, planes: np.ndarray) -> None:
        """``planes``: uint8 (3, H, W), luma and chroma in full range."""
        pixels = planes[0].size
        counts = np.stack([cv2.calcHist([p], [0], None, [256], [0, 256]).ravel() for p in planes])
        levels = np.cumsum(counts, axis=1) / pixels
        cells = np.stack([_cell_means(plane) for plane in planes])
        if self._before is None or self._levels is None or self._cells is None:
            self._difference.append(0.0)
            self._palette.append(0.0)
            self._cell.append(255.0)
        else:
            change = cv2.absdiff(planes, self._before)
            self._difference.append(float(change.sum(dtype=np.int64)) / pixels)
            # Earth mover's distance between the planes' histograms: what of the difference no motion
            # explains.
            self._palette.append(float(np.abs(levels - self._levels).sum()))
            # Encoding a still picture again moves single pixels by 20 levels, and cells by 2.
            self._cell.append(float(np.abs(cells - self._cells).max()))
        self._luma.append(float(planes[0].mean()) / 255)
        self._dark.append(float(levels[0, DARK_LUMA]))
        self._before, self._levels, self._cells = planes, levels, cells

    @property
    def last_difference(self) -> float:
        return self._difference[-1]

    def to_json(self) -> dict[str, Any]:
        return {
            "difference": to_json(np.array(self._difference, np.float16)),
            "palette": to_json(np.array(self._palette, np.float16)),
            "cell": to_json(np.array(self._cell, np.float16)),
            "luma": to_json(np.array(self._luma, np.float16)),
            "dark": to_json(np.array(self._dark, np.float16)),
        }


class MotionSamples:
    """Optical flow between two near frames, about twice a second: mean magnitude in frame diagonals."""

    def __init__(self) -> None:
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self._anchor: tuple[int, float, np.ndarray] | None = None
        self._due = 0.0
        self._first: list[int] = []
        self._second: list[int] = []
        self._shift: list[float] = []

    def add(self, index: int, now: float, luma: np.ndarray) -> None:
        """``luma``: uint8 (H, W) of the frame shown at ``now`` seconds."""
        if min(luma.shape) < MOTION_LEAST_SIDE:
            return
        if self._anchor is not None and now - self._anchor[1] >= MOTION_STEP_S:
            flow = self._flow.calc(self._anchor[2], luma, None)
            self._first.append(self._anchor[0])
            self._second.append(index)
            self._shift.append(float(np.hypot(flow[..., 0], flow[..., 1]).mean() / np.hypot(*luma.shape)))
            self._anchor = None
        if self._anchor is None and now >= self._due:
            self._anchor = (index, now, luma)
            self._due = now + 1 / MOTION_SAMPLES_PER_SECOND

    def to_json(self) -> dict[str, Any]:
        return {
            "motion_first": to_json(np.array(self._first, np.int64)),
            "motion_second": to_json(np.array(self._second, np.int64)),
            "motion_shift": to_json(np.array(self._shift, np.float32)),
        }


class Thumbnails:
    """Small JPEGs, one a second or fewer, and one more where a shot may begin."""

    def __init__(self) -> None:
        self._every = 1.0
        self._due = 0.0
        self._least_gap = 0.2
        self._kept: list[tuple[int, bytes]] = []

    def add(self, index: int, now: float, planes: np.ndarray, difference: float) -> None:
        may_begin = difference >= NEW_PICTURE and now >= self._due - self._every + self._least_gap
        if index and now < self._due and not may_begin:
            return
        self._due = now + self._every
        _, jpeg = cv2.imencode(".jpg", planes_to_bgr(planes), [cv2.IMWRITE_JPEG_QUALITY, 80])
        self._kept.append((index, jpeg.tobytes()))
        if len(self._kept) > MAX_THUMBNAILS:
            self._kept = self._kept[::2]
            self._every *= 2
            self._least_gap *= 2

    def to_json(self) -> list[list[Any]]:
        return [[index, base64.b64encode(jpeg).decode()] for index, jpeg in self._kept]


def _cell_means(plane: np.ndarray) -> np.ndarray:
    """Means of the square cells of ``plane`` (H, W), float32."""
    size = tuple(max(1, side // CELL_SIDE) for side in plane.shape[::-1])
    return cv2.resize(plane.astype(np.float32), size, interpolation=cv2.INTER_AREA)


def to_json(array: np.ndarray) -> dict[str, Any]:
    """A tensor cell whose bytes are base64."""
    cell = pack(array)
    return {**cell, "bytes": base64.b64encode(cell["bytes"]).decode()}
