"""What of a clip an autoencoder is trained and measured on: sizes that divide into latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kineograph.diffusion.random import uniform
from kineograph.media.geometry import Bucket
from kineograph.models.vae import to_unit_range
from kineograph.store.loader import LoadedClip
from pipelines.train.kinds.vae.config import CropConfig
from pipelines.train.plan.plan import Slot

Strides = tuple[int, int, int]


class Size(NamedTuple):
    """Of a stretch of a clip."""

    frames: int
    height: int
    width: int


def crop_size(bucket: Bucket, crop: CropConfig, strides: Strides) -> Size:
    """The largest size within bucket and crop that divides into latents; sides are 0 where none does."""
    height, width = crop.size or (bucket.height, bucket.width)
    frames = min(bucket.frames, crop.frames or bucket.frames)
    height, width = min(bucket.height, height), min(bucket.width, width)
    return Size(frames - (frames - 1) % strides[0], height - height % strides[1], width - width % strides[2])


def whole_size(bucket: Bucket, strides: Strides) -> Size:
    """As much of a clip as divides into latents."""
    return crop_size(bucket, CropConfig(), strides)


def cut_centre(picture: Tensor, size: Size) -> Tensor:
    """The first frames and the middle of them, (3 T H W) in [-1, 1], of a picture uint8 (T H W 3)."""
    top, left = (picture.shape[1] - size.height) // 2, (picture.shape[2] - size.width) // 2
    return to_unit_range(picture[: size.frames, top : top + size.height, left : left + size.width])


def cut_random(picture: Tensor, size: Size, flip: bool, *key: object) -> Tensor:
    """A stretch and place that depend on ``key`` alone, (3 T H W) in [-1, 1], of a picture uint8 (T H W 3)."""
    room = (n - s + 1 for n, s in zip(picture.shape, size, strict=False))
    start, top, left = (int(uniform(*key, name) * n) for name, n in zip(("start", "top", "left"), room, strict=True))
    part = picture[start : start + size.frames, top : top + size.height, left : left + size.width]
    if flip and uniform(*key, "flip") < 0.5:
        part = torch.flip(part, dims=(2,))
    return to_unit_range(part)


@dataclass(frozen=True)
class Crops:
    """Makes a batch (B 3 T H W) in [-1, 1] of clips: of each what :func:`cut_random` sees of it in its epoch."""

    crop: CropConfig
    strides: Strides
    seed: int

    def __call__(self, clips: Sequence[LoadedClip], slots: Sequence[Slot]) -> Tensor:
        frames, height, width, _ = clips[0].picture.shape
        size = crop_size(Bucket(height, width, frames), self.crop, self.strides)
        pairs = zip(clips, slots, strict=True)
        keys = [(clip.picture, (self.seed, slot.epoch, slot.clip_id)) for clip, slot in pairs]
        return torch.stack([cut_random(picture, size, self.crop.flip, *key) for picture, key in keys])
