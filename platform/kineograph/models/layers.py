"""Layers that the transformers share. Letters in trailing comments: B batch, T frames, S patches per frame, N tokens,
L text tokens, D width, H heads, d width of a head."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """adaLN: x·(1 + scale) + shift, on normalised x (Peebles & Xie 2022, DiT)."""
    return x * (1 + scale) + shift


POSITION_PERIOD = 100.0
"""Longest wavelength of position codes. Grids of patches are short: with the usual 10,000 nearly all channels would be the
same everywhere."""


def sinusoidal(positions: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal features of real ``positions`` (any shape): [..., width], cosines first (Vaswani et al. 2017)."""
    half = width // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=positions.device) / half)
    angles = positions.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def grid_coordinates(height: int, width: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column coordinates (height·width each) of a grid of patches around its centre, scaled to resolution.

    The square root of the area is ``base`` long, whatever the number of patches (PixArt-α, appendix).
    """
    unit = base / math.sqrt(height * width)
    rows = (torch.arange(height, device=device) - (height - 1) / 2) * unit
    columns = (torch.arange(width, device=device) - (width - 1) / 2) * unit
    return rows.repeat_interleave(width), columns.repeat(height)


def spatial_positions(rows: Tensor, columns: Tensor, dim: int) -> Tensor:
    """2D sine-cosine code (S, dim) of coordinates (S): one half for the row, one for the column."""
    halves = [sinusoidal(c, dim // 2, POSITION_PERIOD) for c in (rows, columns)]
    return torch.cat(halves, dim=-1)


def rotary_angles(positions: Tensor, channels: int) -> Tensor:
    """RoPE angles (len(positions), channels/2) (Su et al. 2021)."""
    frequencies = POSITION_PERIOD ** (-torch.arange(0, channels, 2, device=positions.device) / channels)
    return positions.float()[:, None] * frequencies


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate pairs of channels of x (..., N, d) by ``angles`` (N, d/2)."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


class Attention(nn.Module):
    """Self- or cross-attention over SDPA with QK-norm (RMS per head; Dehghani et al. 2023) and optional RoPE."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.query_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.key_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        angles: Tensor | None = None,
    ) -> Tensor:
        """x (B N D) attends to ``context`` (B M D; itself when None). ``mask`` (B M) is True where there is something
        to attend to; ``angles`` (N d/2) rotate queries and keys."""
        source = x if context is None else context
        query = self.query_norm(self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2))  # B H N d
        key, value = self.key_value(source).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # B H M d
        key = self.key_norm(key)
        if angles is not None:
            query, key = rotate(query, angles), rotate(key, angles)
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=None if mask is None else mask[:, None, None]
        )
        return self.out(attended.transpose(1, 2).flatten(-2))  # B N D


class MLP(nn.Module):
    """Two linear layers with tanh-GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class ScalarEmbedding(nn.Module):
    """A real number per item (a timestep, a frame rate, a size) as a vector of ``width``: sinusoid, then an MLP."""

    def __init__(self, width: int, features: int = 256) -> None:
        super().__init__()
        self.features = features
        self.up = nn.Linear(features, width)
        self.down = nn.Linear(width, width)

    def forward(self, value: Tensor) -> Tensor:
        code = sinusoidal(value, self.features).to(self.up.weight.dtype)
        return self.down(F.silu(self.up(code)))
