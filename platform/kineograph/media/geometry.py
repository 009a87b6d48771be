"""Buckets: the (height, width, frames) that a batch shares, and how a clip is made to fit one."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

_NAME = re.compile(r"^(\d+)x(\d+)x(\d+)$")


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


def sample_times(start_s: float, frames: int, fps: float) -> np.ndarray:
    """The instants (seconds, float64) of ``frames`` frames at ``fps``, each in the middle of its interval."""
    return start_s + (np.arange(frames) + 0.5) / fps


def nearest_frames(timestamps: np.ndarray, times: np.ndarray) -> np.ndarray:
    """For each of ``times`` the index of the frame that is on screen then: the last one that starts no later.

    ``timestamps`` (seconds, ascending) are the frames' starts; times before the first give frame 0.
    """
    return np.clip(np.searchsorted(timestamps, times, side="right") - 1, 0, len(timestamps) - 1)
