"""Counter-based randomness: the same key gives the same numbers on any rank, in any order, after any restart."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def seed_of(*key: object) -> int:
    """A seed for torch that depends on ``key`` alone."""
    text = "\x1f".join(str(part) for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") & (2**63 - 1)


def generator(*key: object) -> torch.Generator:
    """A CPU generator seeded by ``key``, e.g. (seed, epoch, clip_id, "noise")."""
    return torch.Generator().manual_seed(seed_of(*key))


def normal(shape: tuple[int, ...], *key: object) -> Tensor:
    """Standard normal numbers (fp32, CPU) that depend on ``key`` alone."""
    return torch.randn(shape, generator=generator(*key))


def uniform(*key: object) -> float:
    """A number in [0, 1) that depends on ``key`` alone."""
    return float(torch.rand((), generator=generator(*key)))
