"""The synthetic world: coloured shapes that move over a grey background, and captions that say so.

Lengths are in short sides of the frame and positions count from the top left of its central square, so a
scene looks the same at every size and aspect. Objects leave at one edge and come back at the other: what the
caption says of their motion stays true however long the scene is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np


class Colour(NamedTuple):
    """A name that captions use and what it looks like, 8-bit RGB."""

    name: str
    rgb: tuple[int, int, int]


COLOURS = {
    colour.name: colour
    for colour in (
        Colour("red", (225, 40, 40)),
        Colour("green", (40, 180, 60)),
        Colour("blue", (40, 70, 225)),
        Colour("yellow", (240, 215, 40)),
        Colour("purple", (165, 45, 200)),
        Colour("cyan", (40, 205, 215)),
    )
}
SHAPES = ("circle", "square", "triangle")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SPEEDS = {"slow": (0.15, 0.25), "fast": (0.35, 0.55)}
ADVERBS = {"slow": "slowly", "fast": "quickly"}

BACKGROUND_LEVELS = (60, 100, 140, 180, 220)
_LEAST_CONTRAST = 34  # luma between an object and its background: motion must show to who reads luma alone
_LEAST_CUT = 80  # luma between the backgrounds of scenes that a hard cut joins
_SIZES = {1: (0.16, 0.24), 2: (0.15, 0.18)}  # radius by number of objects; two must fit side by side
_TRIANGLE = (4 * np.pi / (3 * np.sqrt(3))) ** 0.5  # circumradius of the triangle that has a unit disc's area


@dataclass(frozen=True)
class SceneObject:
    """A shape of one colour that moves along one axis, or stands still.

    Attributes:
        colour: a key of COLOURS.
        shape: one of SHAPES.
        direction: a key of DIRECTIONS; None stands still.
        speed: a key of SPEEDS; None stands still.
        rate: short sides per second, within the range of ``speed``; 0 stands still.
        size: radius in short sides of the circle that has the object's area.
        start: centre at time 0, (x, y) in short sides from the top left of the central square.
    """

    colour: str
    shape: str
    direction: str | None
    speed: str | None
    rate: float
    size: float
    start: tuple[float, float]


@dataclass(frozen=True)
class Background:
    """A grey ground with a slight tint.

    Attributes:
        level: mean brightness, 0..255.
        tint: added to red, green and blue, a few units.
        texture: amplitude of the pattern of waves, in units of brightness; 0 is plain.
    """

    level: int
    tint: tuple[float, float, float]
    texture: float


@dataclass(frozen=True)
class Scene:
    """One shot of the world; ``seed`` fixes its texture, ``tells_speed`` whether captions name the speed."""

    seed: int
    objects: tuple[SceneObject, ...]
    background: Background
    tells_speed: bool = False


def caption(scene: Scene) -> str:
    """What the scene shows: "a red circle moving left", "a red circle" where nothing moves."""
    return " and ".join(_clause(item, scene.tells_speed) for item in scene.objects)


def still_caption(scene: Scene) -> str:
    """What one frame of the scene shows: "a red circle and a blue square"."""
    return caption(still(scene))


def still(scene: Scene) -> Scene:
    """``scene`` with its objects standing where they start."""
    objects = tuple(replace(item, direction=None, speed=None, rate=0.0) for item in scene.objects)
    return replace(scene, objects=objects, tells_speed=False)


def _clause(item: SceneObject, tells_speed: bool) -> str:
    clause = f"a {item.colour} {item.shape}"
    if item.direction is None:
        return clause
    clause += f" moving {item.direction}"
    return f"{clause} {ADVERBS[item.speed]}" if tells_speed and item.speed else clause


def sample_scene(
    rng: np.random.Generator,
    *,
    two_objects: float = 0.25,
    textured: float = 0.5,
    unlike: Scene | None = None,
) -> Scene:
    """Draw a scene: every object differs from its background in luma, the objects differ in colour.

    Args:
        rng: where the chances come from; the same state gives the same scene.
        two_objects: chance of two objects, 0..1.
        textured: chance of a textured background, 0..1.
        unlike: the scene before a cut: colours and brightness of the new one differ from it visibly.
    """
    count = 2 if rng.random() < two_objects else 1
    while True:
        colours = tuple(str(name) for name in rng.choice(list(COLOURS), size=count, replace=False))
        levels = [level for level in BACKGROUND_LEVELS if _shows(colours, level, unlike)]
        if levels:
            break
    waves = rng.random() < textured
    background = Background(
        level=int(rng.choice(levels)),
        tint=_floats(rng.uniform(-6, 6, size=3)),
        texture=float(rng.uniform(10, 18)) if waves else 0.0,
    )
    tells_speed = count == 1 and bool(rng.random() < 0.5)
    return Scene(int(rng.integers(2**31)), _sample_objects(rng, colours), background, tells_speed)


def _shows(colours: tuple[str, ...], level: int, unlike: Scene | None) -> bool:
    if any(abs(_luma(COLOURS[name].rgb) - level) < _LEAST_CONTRAST for name in colours):
        return False
    if unlike is None:
        return True
    return abs(level - unlike.background.level) >= _LEAST_CUT and not {o.colour for o in unlike.objects} & set(colours)


def _luma(rgb: tuple[int, int, int]) -> float:
    return float(np.dot(rgb, (0.299, 0.587, 0.114)))


def _floats(values: np.ndarray) -> tuple[float, float, float]:
    red, green, blue = (round(float(value), 3) for value in values)
    return red, green, blue


def _sample_objects(rng: np.random.Generator, colours: tuple[str, ...]) -> tuple[SceneObject, ...]:
    directions = [str(name) for name in rng.choice(list(DIRECTIONS), size=len(colours))]
    # Two objects start in two halves of the square, split so that those on parallel courses never meet.
    split = 1 if DIRECTIONS[directions[0]][0] else 0
    objects = []
    for place, (colour, direction) in enumerate(zip(colours, directions, strict=True)):
        shape, speed = str(rng.choice(SHAPES)), str(rng.choice(list(SPEEDS)))
        size = round(float(rng.uniform(*_SIZES[len(colours)])), 4)
        low, high = _extent(shape, size)
        span = np.array([[0.0, 1.0], [0.0, 1.0]])
        if len(colours) == 2:
            span[split] = (0.5 * place, 0.5 * place + 0.5)
        x, y = (round(float(rng.uniform(span[i, 0] + low[i], span[i, 1] - high[i])), 4) for i in (0, 1))
        rate = round(float(rng.uniform(*SPEEDS[speed])), 4)
        objects.append(SceneObject(colour, shape, direction, speed, rate, size, (x, y)))
    return tuple(objects)


def _extent(shape: str, size: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """How far the shape reaches from its centre: (left, up) and (right, down), in the unit of ``size``."""
    if shape == "circle":
        return (size, size), (size, size)
    if shape == "square":
        half = size * np.sqrt(np.pi) / 2
        return (half, half), (half, half)
    radius = size * _TRIANGLE
    half = radius * np.sqrt(3) / 2
    return (half, radius), (half, radius / 2)


def render(scene: Scene, width: int, height: int, times: np.ndarray) -> np.ndarray:
    """The scene at ``times`` (seconds from its start) as uint8 RGB (T, height, width, 3), antialiased.

    Raises ValueError when a side is under 8 pixels, where no shape can be told.
    """
    frames = list(render_frames(scene, width, height, times))
    return np.stack(frames) if frames else np.zeros((0, height, width, 3), np.uint8)


def render_frames(scene: Scene, width: int, height: int, times: np.ndarray) -> Iterator[np.ndarray]:
    """As :func:`render`, one frame (height, width, 3) at a time, so that a long scene needs little memory."""
    if min(width, height) < 8:
        raise ValueError(f"a scene needs sides of 8 pixels or more, not {width}x{height}")
    ground = render_background(scene, width, height)
    ground_8bit = np.rint(ground).astype(np.uint8)
    for time in times:
        frame = ground_8bit.copy()
        for item in reversed(scene.objects):  # the first object of the caption is on top
            _draw(frame, item, float(time))
        yield frame


def render_background(scene: Scene, width: int, height: int) -> np.ndarray:
    """The scene without its objects: float32 RGB (height, width, 3), 0..255."""
    short = min(width, height)
    x = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / short
    y = (np.arange(height, dtype=np.float32) + 0.5 - height / 2) / short
    level = np.full((height, width), scene.background.level, np.float32)
    if scene.background.texture:
        rng = np.random.default_rng(scene.seed)
        angles, phases = rng.uniform(0, np.pi, 6), rng.uniform(0, 2 * np.pi, 6)
        cycles = rng.uniform(1.5, 6, 6)
        for angle, phase, count in zip(angles, phases, cycles, strict=True):
            turns = count * (np.cos(angle) * x[None, :] + np.sin(angle) * y[:, None])
            level += scene.background.texture / np.sqrt(3) * np.sin(2 * np.pi * turns + phase).astype(np.float32)
    return np.clip(level[:, :, None] + np.array(scene.background.tint, np.float32), 40, 250)


def _draw(frame: np.ndarray, item: SceneObject, time: float) -> None:
    height, width = frame.shape[:2]
    short = min(width, height)
    dx, dy = DIRECTIONS[item.direction] if item.direction else (0, 0)
    x = (width / 2 + (item.start[0] - 0.5 + dx * item.rate * time) * short) % width
    y = (height / 2 + (item.start[1] - 0.5 + dy * item.rate * time) * short) % height
    radius = item.size * short
    low, high = _extent(item.shape, radius)
    left, top = int(np.floor(x - low[0] - 1)), int(np.floor(y - low[1] - 1))
    right, bottom = int(np.ceil(x + high[0] + 1)), int(np.ceil(y + high[1] + 1))
    across = np.arange(left, right, dtype=np.float32) + np.float32(0.5 - x)
    down = np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - y)
    coverage = shape_coverage(item.shape, radius, across, down)
    for rows, part_rows in _wrapped(top, bottom, height):
        for columns, part_columns in _wrapped(left, right, width):
            alpha = coverage[part_rows, part_columns]
            for channel, value in enumerate(COLOURS[item.colour].rgb):  # seven times as fast as all three at once
                part = frame[rows, columns, channel]
                frame[rows, columns, channel] = part + alpha * (np.float32(value) - part) + np.float32(0.5)


def shape_coverage(shape: str, radius: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Share of each pixel, 0..1, that a shape about (0, 0) covers: float32 (len(y), len(x)).

    ``radius`` is that of the disc of equal area; ``x`` and ``y`` are the centres of pixel columns and rows,
    in pixels.
    """
    x, y = x[None, :].astype(np.float32), y[:, None].astype(np.float32)
    if shape == "circle":
        return np.clip(np.float32(radius + 0.5) - np.sqrt(x * x + y * y), 0, 1)
    if shape == "square":
        half = np.float32(radius * np.sqrt(np.pi) / 2 + 0.5)
        return np.clip(half - np.abs(y), 0, 1) * np.clip(half - np.abs(x), 0, 1)
    inner = np.float32(radius * _TRIANGLE / 2 + 0.5)
    sides = inner - (np.float32(np.sqrt(3) / 2) * np.abs(x) - y / 2)
    return np.clip(np.minimum(sides, inner - y), 0, 1)


def _wrapped(start: int, stop: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Cut start..stop of a torus of ``size`` into (slice of the frame, slice of the patch) pairs."""
    done = start
    while done < stop:
        at = done % size
        length = min(stop - done, size - at)
        yield slice(at, at + length), slice(done - start, done - start + length)
        done += length
