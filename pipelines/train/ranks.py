"""What all ranks work out together; each function must be called by every one of them. A process alone is one rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def sum_over_ranks(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sum of each tensor over all ranks, in one message; equal to the bit on all of them."""
    flat = torch.cat([t.detach().float().flatten() for t in tensors])
    if dist.is_initialized():
        dist.all_reduce(flat)
    sums = flat.split([t.numel() for t in tensors])
    return [s.view_as(t).to(t.dtype) for s, t in zip(sums, tensors, strict=True)]


def on_all_ranks(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` is set on every rank."""
    (missing,) = sum_over_ranks([torch.tensor([float(not flag)], device=device)])
    return not bool(missing.any())
