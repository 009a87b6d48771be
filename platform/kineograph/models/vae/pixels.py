"""Pixels as autoencoders take them."""

from __future__ import annotations

import torch
from torch import Tensor


def to_unit_range(frames: Tensor) -> Tensor:
    """uint8 (... T H W 3) to float (... 3 T H W) in [-1, 1]."""
    return frames.movedim(-1, -4).float().div(127.5).sub(1)


def to_uint8(video: Tensor) -> Tensor:
    """float (... 3 T H W) in [-1, 1] to uint8 (... T H W 3)."""
    return video.movedim(-4, -1).add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
