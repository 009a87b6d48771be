"""Where a patch is: sine-cosine codes that are added to tokens, and rotary angles (RoPE) that turn queries and keys.

Letters: S patches per frame, N tokens, D width, d width of a head.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Grid = Literal["centred", "fixed", "by_resolution"]


def sinusoidal(positions: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal features of real ``positions`` (any shape): [..., width], cosines first (Vaswani et al. 2017; DiT)."""
    half = width // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=positions.device) / half)
    angles = positions.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def sincos_1d(positions: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """As :func:`sinusoidal`, sines first: how position tables are laid out (MAE, DiT, Open-Sora)."""
    return sinusoidal(positions, width, max_period).roll(width // 2, dims=-1)


def sincos_2d(rows: Tensor, columns: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Code (S, width) of coordinates (S): one half for the column, the other for the row (MAE, DiT)."""
    return torch.cat([sincos_1d(c, width // 2, max_period) for c in (columns, rows)], dim=-1)


def grid_coordinates(grid: Grid, height: int, width: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column coordinates (height·width each) of ``height`` × ``width`` patches, row by row.

    centred: around the middle, the square root of the area being ``base`` long however many patches it has, so that a
    place means the same at every size (after PixArt-α, appendix). fixed: counted from the corner in units of ``base``
    (Open-Sora v1). by_resolution: counted from the corner, both sides stretched to √area / ``base`` (Open-Sora v1.2,
    where ``base`` is √pixels / 512).
    """
    rows, columns = torch.arange(height, device=device).float(), torch.arange(width, device=device).float()
    if grid == "centred":
        unit = base / math.sqrt(height * width)
        rows, columns = (rows - (height - 1) / 2) * unit, (columns - (width - 1) / 2) * unit
    else:
        rows, columns = rows / base, columns / base
    if grid == "by_resolution":
        side = round(math.sqrt(height * width))
        rows, columns = rows * (side / height), columns * (side / width)
    return rows.repeat_interleave(width), columns.repeat(height)


def rope_frequencies(channels: int, period: float) -> Tensor:
    """Radians per unit of position of each pair of channels (channels/2) (Su et al. 2021)."""
    return period ** (-torch.arange(0, channels, 2).float() / channels)


def rope_angles(positions: Tensor, frequencies: Tensor) -> Tensor:
    """Angles (N, d/2) of positions (N)."""
    return positions.float()[:, None] * frequencies


def rope_axes(coordinates: tuple[Tensor, ...], channels: int, period: float) -> Tensor:
    """RoPE over several axes: angles (N, channels/2) of N places, each axis turning a share of the channels.

    ``coordinates`` holds one tensor (N) per axis: rows and columns, or frames, rows and columns (3D RoPE, as in
    CogVideoX). The shares are even, and what does not divide goes to the first axis.
    """
    share = channels // len(coordinates) // 2 * 2
    shares = [channels - share * (len(coordinates) - 1)] + [share] * (len(coordinates) - 1)
    parts = [rope_angles(c, rope_frequencies(n, period).to(c.device)) for c, n in zip(coordinates, shares, strict=True)]
    return torch.cat(parts, dim=-1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate pairs of neighbouring channels of x (..., N, d) by ``angles`` (N, d/2)."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
