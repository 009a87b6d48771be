"""Buckets: the (height, width, frames) that a batch shares, which of them a clip goes to, and how it is made to fit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

_NAME = re.compile(r"^(\d+)x(\d+)x(\d+)$")

# A clip is as long as its frames' stamps make it; a bucket may ask for this much more.
TIME_TOLERANCE_S = 1e-3


@dataclass(frozen=True, order=True)
class Bucket:
    """Height and width in pixels, and number of frames; an image bucket has one frame."""

    height: int
    width: int
    frames: int

    @classmethod
    def parse(cls, name: str) -> Bucket:
        """The bucket called ``HxWxF``. Raises ValueError when ``name`` is not of that form or has a zero."""
        match = _NAME.match(name)
        if not match or not all(int(n) for n in match.groups()):
            raise ValueError(f"a bucket is written HEIGHTxWIDTHxFRAMES, e.g. 256x256x16, not {name!r}")
        return cls(*(int(n) for n in match.groups()))

    @property
    def name(self) -> str:
        return f"{self.height}x{self.width}x{self.frames}"

    @property
    def is_image(self) -> bool:
        return self.frames == 1

    def seconds(self, fps: float) -> float:
        """Time that the bucket's frames cover at ``fps``; 0 for an image."""
        return 0.0 if self.is_image else self.frames / fps

    def tokens(self, spatial_stride: int, temporal_stride: int) -> int:
        """Tokens that a transformer sees of one clip: (h / spatial) · (w / spatial) · (1 + (f - 1) / temporal).

        ``spatial_stride`` is pixels a token, the autoencoder's stride times the patch. What is no multiple counts
        as if it were padded to one.
        """
        rows, columns = -(-self.height // spatial_stride), -(-self.width // spatial_stride)
        return rows * columns * (1 - (1 - self.frames) // temporal_stride)


def cover_crop(width: int, height: int, bucket: Bucket) -> tuple[int, int, int, int]:
    """The centred crop (x, y, width, height) of a frame that has the bucket's aspect and loses least."""
    if width * bucket.height > height * bucket.width:  # too wide: lose the sides
        crop_width, crop_height = max(1, round(height * bucket.width / bucket.height)), height
    else:
        crop_width, crop_height = width, max(1, round(width * bucket.height / bucket.width))
    return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height


def kept_fraction(width: int, height: int, bucket: Bucket) -> float:
    """Share of a frame's area, 0..1, that :func:`cover_crop` keeps."""
    _, _, crop_width, crop_height = cover_crop(width, height, bucket)
    return crop_width * crop_height / (width * height)


def needs_upscale(width: int, height: int, bucket: Bucket) -> bool:
    """Whether the crop has fewer pixels than the bucket on either side."""
    _, _, crop_width, crop_height = cover_crop(width, height, bucket)
    return crop_width < bucket.width or crop_height < bucket.height


def assign(
    width: int, height: int, seconds: float, is_image: bool, buckets: Sequence[Bucket], fps: float
) -> Bucket | None:
    """Where a clip keeps most of itself: share of area times share of time. None when it fits nowhere.

    ``width`` and ``height`` are those of the picture without bars. No bucket that would enlarge it or ask for more
    seconds than it has; images go to image buckets and videos to the others. On a tie the bucket with more pixels,
    then the first by name.
    """
    table = _table(tuple(buckets), is_image, fps)
    fits = (table.height <= height) & (table.width <= width) & (table.seconds <= seconds + TIME_TOLERANCE_S)
    if not fits.any():
        return None
    # cover_crop of all at once.
    crop_width = np.minimum(width, np.maximum(1, np.rint(height * table.width / table.height)))
    crop_height = np.minimum(height, np.maximum(1, np.rint(width * table.height / table.width)))
    kept = crop_width * crop_height / (width * height)
    if not is_image:
        kept *= np.minimum(1.0, table.seconds / max(seconds, TIME_TOLERANCE_S))
    # Rounded, so that the last bit of a product decides nothing.
    return table.buckets[int(np.where(fits, np.round(kept, 9), -1.0).argmax())]


def why_nowhere(
    width: int, height: int, seconds: float, is_image: bool, buckets: Sequence[Bucket], fps: float
) -> tuple[float, float]:
    """What a clip that :func:`assign` places nowhere has, and the least that it would need.

    Its seconds when it is too short for every bucket of its kind; else its short side in pixels, and the one that a
    clip of its shape needs for the nearest bucket that it is long enough for. NaN when there is none of its kind.
    """
    alike = [bucket for bucket in buckets if bucket.is_image == is_image]
    least_seconds = min((bucket.seconds(fps) for bucket in alike), default=float("nan"))
    if seconds + TIME_TOLERANCE_S < least_seconds:
        return seconds, least_seconds
    side = min(width, height)
    sides = [
        max(-(-bucket.width * side // width), -(-bucket.height * side // height))
        for bucket in alike
        if bucket.seconds(fps) <= seconds + TIME_TOLERANCE_S
    ]
    return side, min(sides, default=float("nan"))


class _Table(NamedTuple):
    """Buckets of one kind in the order in which they win ties, and as arrays: pixels, and seconds that each covers."""

    buckets: tuple[Bucket, ...]
    height: np.ndarray
    width: np.ndarray
    seconds: np.ndarray


@lru_cache(maxsize=16)
def _table(buckets: tuple[Bucket, ...], is_image: bool, fps: float) -> _Table:
    alike = [bucket for bucket in buckets if bucket.is_image == is_image]
    ordered = sorted(alike, key=lambda b: (-b.height * b.width * b.frames, b.name))
    sides = np.array([(b.height, b.width) for b in ordered], np.int64).reshape(-1, 2)
    return _Table(tuple(ordered), sides[:, 0], sides[:, 1], np.array([b.seconds(fps) for b in ordered]))


def sample_times(start_s: float, frames: int, fps: float) -> np.ndarray:
    """The instants (seconds, float64) of ``frames`` frames at ``fps``, each in the middle of its interval."""
    return start_s + (np.arange(frames) + 0.5) / fps


def nearest_frames(timestamps: np.ndarray, times: np.ndarray) -> np.ndarray:
    """For each of ``times`` the index of the frame that is on screen then: the last one that starts no later.

    ``timestamps`` (seconds, ascending) are the frames' starts; times before the first give frame 0.
    """
    return np.clip(np.searchsorted(timestamps, times, side="right") - 1, 0, len(timestamps) - 1)
