"""Grades a video of the synthetic world without weights: which colour, which shape, which way does it move?

Saturation is what tells objects from the grey background, so the object's mask is the projection of a pixel's
chroma (its colour less its grey part) on the chroma of the nearest colour of the palette. On masks, the
centre is the phase of the first Fourier coefficient, which wraps round the frame as the world does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from kineograph.synth.scene import ADVERBS, COLOURS, DIRECTIONS, SHAPES, shape_coverage

_LEAST_CHROMA = 45.0  # of about 110..150 that the palette has; the tint of a background stays under 10
_LEAST_AREA, _MOST_AREA = 0.012, 0.45  # share of the frame that an object covers
_LEAST_SHARE = 0.22  # of all that is saturated; noise in every hue has a sixth for each
_LEAST_COMPACTNESS = 0.35  # |first Fourier coefficient| / mass: 0 for noise, 0.8 for an object
_LEAST_TRAVEL = 0.08  # short sides over the whole video; the slowest object makes 0.26 in 8 frames at 4 fps
_LEAST_STEADINESS = 0.5  # travel over path: what jumps to and fro moves in no direction
_LEAST_LIKENESS = 0.75  # correlation of the mean mask with the best template
_BLURS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)  # sigma in radii; generated edges are soft

_CHROMA_BASIS = np.array([[2, -1, -1], [0, np.sqrt(3), -np.sqrt(3)]], np.float32).T / np.sqrt(6)  # 3 2


@dataclass(frozen=True)
class Observation:
    """What is seen of one object; None for what cannot be told.

    Attributes:
        colour: a key of COLOURS.
        shape: one of SHAPES.
        direction: a key of DIRECTIONS; None for a still and for what does not move.
        travel: (right, down) over the whole video, in short sides.
        area: share of the frame that it covers, 0..1, mean over the frames.
    """

    colour: str | None
    shape: str | None
    direction: str | None
    travel: tuple[float, float] = (0.0, 0.0)
    area: float = 0.0


@dataclass(frozen=True)
class Expected:
    """What a prompt demands of one object; None where it demands nothing."""

    colour: str
    shape: str
    direction: str | None = None
    speed: str | None = None


_SPEED_OF = {adverb: speed for speed, adverb in ADVERBS.items()}
_CLAUSE = re.compile(
    rf"an? ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
    rf"(?: moving ({'|'.join(DIRECTIONS)})(?: ({'|'.join(_SPEED_OF)}))?)?"
)


def expected(prompt: str) -> list[Expected] | None:
    """The objects of ``prompt``, a caption of this world, in its order; None for any other prompt."""
    objects = []
    for clause in prompt.strip().rstrip(".").lower().split(" and "):
        match = _CLAUSE.fullmatch(clause.strip())
        if match is None:
            return None
        colour, shape, direction, adverb = match.groups()
        objects.append(Expected(colour, shape, direction, _SPEED_OF.get(adverb)))
    return objects


def grade(video: np.ndarray, prompt: str) -> dict[str, bool | None]:
    """Whether ``video`` shows the first object of ``prompt``: keys ``colour``, ``shape``, ``direction``.

    ``direction`` is None where the prompt tells of no motion. Of several objects in the picture, the one of
    the demanded colour is graded. ``video`` is uint8 RGB (T, H, W, 3). Raises ValueError on a prompt that is
    no caption of this world.
    """
    demands = expected(prompt)
    if demands is None:
        raise ValueError(f"not a caption of the synthetic world: {prompt!r}")
    demand = demands[0]
    seen = observe(video, max_objects=len(demands))
    found = next((item for item in seen if item.colour == demand.colour), seen[0])
    return {
        "colour": found.colour == demand.colour,
        "shape": found.shape == demand.shape,
        "direction": None if demand.direction is None else found.direction == demand.direction,
    }


def observe(video: np.ndarray, max_objects: int = 1) -> list[Observation]:
    """What is seen in ``video``, uint8 RGB (T, H, W, 3), the largest object first.

    There are between 1 and ``max_objects`` observations; where nothing saturated is seen there is one, all of
    it None. Raises ValueError on another dtype or shape.
    """
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3 or 0 in video.shape:
        raise ValueError(f"a video is uint8 of shape (T, H, W, 3), not {video.dtype} of shape {video.shape}")
    masks = [(name, mask) for name, mask in _colour_masks(video) if _is_object(mask)]
    masks.sort(key=lambda named: -float(named[1].sum()))
    seen = [_observe_one(name, mask) for name, mask in masks[:max_objects]]
    return seen or [Observation(None, None, None)]


def _colour_masks(video: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """For each colour that is there, how much of each pixel has it: float32 (T, H, W), 0..1."""
    chroma = video.astype(np.float32) @ _CHROMA_BASIS  # T H W 2
    chroma -= np.median(chroma, axis=(0, 1, 2))
    strength = np.sqrt(np.einsum("thwc,thwc->thw", chroma, chroma))
    names, directions = _palette()
    projections = chroma @ directions.T  # T H W colours
    nearest = np.argmax(projections, axis=-1)
    masks = []
    for index, name in enumerate(names):
        own = (nearest == index) & (strength > _LEAST_CHROMA)
        if own.mean() < max(_LEAST_AREA / 4, _LEAST_SHARE * (strength > _LEAST_CHROMA).mean()):
            continue
        peak = float(np.percentile(strength[own], 75))
        alpha = np.where(nearest == index, projections[..., index], 0) / peak
        masks.append((name, np.clip((alpha - 0.12) / 0.8, 0, 1)))
    return masks


@lru_cache(maxsize=1)
def _palette() -> tuple[tuple[str, ...], np.ndarray]:
    chroma = np.array([colour.rgb for colour in COLOURS.values()], np.float32) @ _CHROMA_BASIS
    return tuple(COLOURS), chroma / np.linalg.norm(chroma, axis=1, keepdims=True)


def _is_object(mask: np.ndarray) -> bool:
    """Whether the mask is of the size of an object and, in most frames that have it, in one place."""
    area = mask.mean(axis=(1, 2))
    if not _LEAST_AREA <= area.mean() <= _MOST_AREA:
        return False
    shown = area > 0.3 * area.max()
    return all(float(np.median(np.abs(coefficient[shown]))) > _LEAST_COMPACTNESS for coefficient in _first_modes(mask))


def _first_modes(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First Fourier coefficient along x and along y over the mass, complex (T,): its phase is the centre."""
    mass = np.maximum(mask.sum(axis=(1, 2)), 1e-6)
    height, width = mask.shape[1:]
    across = np.exp(2j * np.pi * (np.arange(width) + 0.5) / width)
    down = np.exp(2j * np.pi * (np.arange(height) + 0.5) / height)
    return mask.sum(axis=1) @ across / mass, mask.sum(axis=2) @ down / mass


def _observe_one(colour: str, mask: np.ndarray) -> Observation:
    travel, path = _travel(mask)
    return Observation(colour, _shape(mask), _direction(travel, path), travel, float(mask.mean()))


def _travel(mask: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    """How far the mask goes, (right, down) in short sides, and the length of the path there along each axis.

    Each step is taken the short way round the torus. Frames with little of the object are passed over: they
    are those in which it is behind the edge of a crop.
    """
    height, width = mask.shape[1:]
    area = mask.sum(axis=(1, 2))
    shown = area > 0.25 * area.max()
    travel, path = [], []
    for modes, side in zip(_first_modes(mask), (width, height), strict=True):
        phases = np.angle(modes[shown])
        steps = np.angle(np.exp(1j * np.diff(phases)))
        unit = side / min(height, width) / (2 * np.pi)
        travel.append(float(steps.sum()) * unit)
        path.append(float(np.abs(steps).sum()) * unit)
    return (travel[0], travel[1]), (path[0], path[1])


def _direction(travel: tuple[float, float], path: tuple[float, float]) -> str | None:
    axis = int(abs(travel[1]) > abs(travel[0]))
    if abs(travel[axis]) < max(_LEAST_TRAVEL, _LEAST_STEADINESS * path[axis]):
        return None
    sign = 1 if travel[axis] > 0 else -1
    return next(name for name, step in DIRECTIONS.items() if step[axis] == sign)


def _shape(mask: np.ndarray) -> str | None:
    """The shape whose template, of equal area and some blur, is most like the mean of the centred masks."""
    height, width = mask.shape[1:]
    area = mask.sum(axis=(1, 2))
    shown = area > 0.6 * area.max()
    radius = float(np.sqrt(np.median(area[shown]) / np.pi))
    side = int(min(np.ceil(radius * 4.4), min(height, width)))
    modes_x, modes_y = _first_modes(mask)
    centred = np.zeros((side, side), np.float32)
    for frame, mode_x, mode_y in zip(mask[shown], modes_x[shown], modes_y[shown], strict=True):
        x = np.angle(mode_x) / (2 * np.pi) * width
        y = np.angle(mode_y) / (2 * np.pi) * height
        centred += _cut_out(frame, x, y, side)
    likeness = {
        shape: max(_correlation(centred, t) for t in _templates(shape, side, round(radius, 2))) for shape in SHAPES
    }
    best = max(likeness, key=lambda shape: likeness[shape])
    return best if likeness[best] >= _LEAST_LIKENESS else None


def _cut_out(frame: np.ndarray, x: float, y: float, side: int) -> np.ndarray:
    """The square of ``side`` pixels about (x, y), wrapped round the edges, at sub-pixel precision."""
    tiled = np.tile(frame, (3, 3))
    height, width = frame.shape
    centre = (x % width + width - 0.5, y % height + height - 0.5)
    return cv2.getRectSubPix(tiled.astype(np.float32), (side, side), centre)


@lru_cache(maxsize=256)
def _templates(shape: str, side: int, radius: float) -> tuple[np.ndarray, ...]:
    grid = np.arange(side, dtype=np.float32) - (side - 1) / 2
    drawn = shape_coverage(shape, radius, grid, grid)
    drawn = _cut_out(np.pad(drawn, side), *_centre(np.pad(drawn, side)), side)
    return tuple(cv2.GaussianBlur(drawn, (0, 0), blur * radius) if blur else drawn for blur in _BLURS)


def _centre(image: np.ndarray) -> tuple[float, float]:
    modes = _first_modes(image[None])
    x, y = (float(np.angle(mode[0]) / (2 * np.pi) * side) for mode, side in zip(modes, image.shape[::-1], strict=True))
    return x, y


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    a, b = first.ravel() - first.mean(), second.ravel() - second.mean()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-9))
