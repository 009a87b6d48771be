"""The buckets of a recipe: listed by hand, or computed from areas, aspects and numbers of frames.

Computed ones follow Open-Sora's multi-resolution buckets (Zheng et al. 2024), which come from tables: for every area
and aspect the height and width that the autoencoder and the patches divide, nearest in aspect at about that area.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator

from kineograph.config import Config, parse_config
from kineograph.media.geometry import Bucket, assign, why_nowhere

__all__ = ["GENERATED", "Buckets", "assign", "fit_size", "override_buckets", "why_nowhere"]

GENERATED = ("areas", "aspects", "frames")
"""The keys that are given together, in place of ``sizes``."""

# e to the 0.2: a size whose aspect is a fifth off is not that aspect.
_MOST_ASPECT_ERROR = 0.2
_AREA = re.compile(r"^(\d+)x(\d+)$")
_ASPECT = re.compile(r"^(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)$")


def _area(value: Any) -> Any:
    """Pixels of ``256x256``; anything else as it is."""
    match = _AREA.match(value) if isinstance(value, str) else None
    return int(match[1]) * int(match[2]) if match else value


def _aspect(value: Any) -> Any:
    """``16:9`` as it was written."""
    if isinstance(value, int) and value > 60:
        # YAML 1.1 reads 16:9 as sixteen minutes nine: 969.
        return f"{value // 60}:{value % 60}"
    return f"{value:g}:1" if isinstance(value, int | float) else value


class Buckets(Config):
    """The shapes that clips are written in: either ``sizes``, or ``areas``, ``aspects`` and ``frames``."""

    sizes: tuple[str, ...] = ()
    """Buckets as HEIGHTxWIDTHxFRAMES; one frame is an image bucket."""
    areas: tuple[Annotated[int, BeforeValidator(_area), Field(gt=0)], ...] = ()
    """Pixels of a frame, as a number or as 256x256; every area is made in every aspect and number of frames."""
    aspects: tuple[Annotated[str, BeforeValidator(_aspect)], ...] = ()
    """Width to height, e.g. 16:9."""
    frames: tuple[Annotated[int, Field(gt=0)], ...] = ()
    """Frames of a clip: 1 for images, else 1 + k·temporal_stride."""
    fps: float = Field(8.0, gt=0)
    """Frames per second of the videos written."""
    spatial_stride: int = Field(16, ge=2, multiple_of=2)
    """Pixels a token is high and wide: the autoencoder's stride times the model's patch, 8·2 in Open-Sora. Computed
    heights and widths are multiples of it; even, since H.264 stores even sizes."""
    temporal_stride: int = Field(4, ge=1)
    """Frames per latent after the first, which is a latent of its own."""
    area_tolerance: float = Field(0.1, gt=0, le=1)
    """How far the area of a computed size may be from the one asked for: most |ln(area / asked)|."""

    @field_validator("sizes")
    @classmethod
    def _are_buckets(cls, sizes: tuple[str, ...]) -> tuple[str, ...]:
        for size in sizes:
            bucket = Bucket.parse(size)
            if bucket.height % 2 or bucket.width % 2:
                raise ValueError(f"height and width of a bucket are even (H.264 stores them so), not {size}")
        if len(set(sizes)) < len(sizes):
            raise ValueError("a bucket is listed twice")
        return sizes

    @field_validator("aspects")
    @classmethod
    def _are_aspects(cls, aspects: tuple[str, ...]) -> tuple[str, ...]:
        for aspect in aspects:
            match = _ASPECT.match(aspect)
            if not match or not all(float(side) for side in match.groups()):
                raise ValueError(f"an aspect is written WIDTH:HEIGHT, e.g. 16:9, not {aspect!r}")
        return aspects

    @model_validator(mode="after")
    def _one_way(self) -> Buckets:
        given = [key for key in GENERATED if getattr(self, key)]
        if self.sizes and given:
            raise ValueError(f"give sizes, or {_listed(GENERATED)}, not both (sizes and {_listed(given)} are given)")
        if not self.sizes and not given:
            raise ValueError(f"give at least one bucket: sizes, e.g. [256x256x17], or {_listed(GENERATED)}")
        if given and len(given) < len(GENERATED):
            missing = [key for key in GENERATED if key not in given]
            raise ValueError(f"{_listed(given)} without {_listed(missing)}: computed buckets need all three")
        for count in self.frames:
            if (count - 1) % self.temporal_stride:
                raise ValueError(_wrong_frames(count, self.temporal_stride))
        assert self.parsed
        return self

    @property
    def parsed(self) -> list[Bucket]:
        """The buckets, sorted."""
        if self.sizes:
            return list(_parsed(self.sizes))
        shape = (self.spatial_stride, self.area_tolerance)
        return list(_generated(self.areas, self.aspects, self.frames, *shape))


def override_buckets(buckets: Buckets, overrides: Iterable[str]) -> Buckets:
    """``buckets`` with ``key=value`` or ``buckets.key=value`` overrides; the two ways of giving them replace each other.

    Raises RecipeError as :func:`kineograph.config.parse_config`.
    """
    overrides = [override.strip().removeprefix("buckets.") for override in overrides]
    keys = {override.partition("=")[0].strip() for override in overrides}
    raw = buckets.model_dump(mode="json")
    if "sizes" in keys:
        raw.update(dict.fromkeys(GENERATED, ()))
    elif keys & set(GENERATED):
        raw["sizes"] = ()
    return parse_config(raw, Buckets, overrides, name="buckets")


def fit_size(area: int, aspect: str, stride: int, tolerance: float) -> tuple[int, int]:
    """Height and width, multiples of ``stride``, nearest in aspect to ``aspect`` (width:height) with an area (pixels)
    within ``tolerance`` of ``area``, both errors being of logarithms; the nearer area on a tie.

    Raises ValueError when there is none.
    """
    wide, high = (float(side) for side in aspect.split(":"))
    candidates = []
    for rows in range(1, math.floor(area * math.exp(tolerance) / stride**2) + 1):
        ideal = rows * wide / high
        most = area * math.exp(tolerance) / (rows * stride**2)
        least = area * math.exp(-tolerance) / (rows * stride**2)
        for columns in {math.floor(ideal), math.ceil(ideal), math.ceil(least), math.floor(most)}:
            if max(1, least) <= columns <= most:
                aspect_error = abs(math.log(columns / ideal))
                area_error = abs(math.log(rows * columns * stride**2 / area))
                candidates.append((round(aspect_error, 9), round(area_error, 9), rows, columns))
    if not candidates or min(candidates)[0] > _MOST_ASPECT_ERROR:
        raise ValueError(
            f"no {aspect} of about {area} pixels has sides that are multiples of {stride}: "
            "ask for a larger area, a smaller spatial_stride or a larger area_tolerance"
        )
    _, _, rows, columns = min(candidates)
    return rows * stride, columns * stride


@lru_cache(maxsize=64)
def _parsed(sizes: tuple[str, ...]) -> tuple[Bucket, ...]:
    return tuple(sorted(Bucket.parse(size) for size in sizes))


@lru_cache(maxsize=64)
def _generated(
    areas: tuple[int, ...], aspects: tuple[str, ...], frames: tuple[int, ...], stride: int, tolerance: float
) -> tuple[Bucket, ...]:
    sizes = {fit_size(area, aspect, stride, tolerance) for area in areas for aspect in aspects}
    return tuple(sorted(Bucket(height, width, count) for height, width in sizes for count in set(frames)))


def _wrong_frames(count: int, stride: int) -> str:
    below = 1 + (count - 1) // stride * stride
    return (
        f"frames are 1 + k·{stride} (temporal_stride), which {count} is not: "
        f"the nearest are {below} and {below + stride}"
    )


def _listed(keys: Iterable[str]) -> str:
    *first, last = keys
    return f"{', '.join(first)} and {last}" if first else last
