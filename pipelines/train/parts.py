"""Tensors that lie in parts on the ranks: each rank's own, and the whole on rank 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

NUMBERS_AT_ONCE = 2**24
"""Sent to rank 0 at once by all ranks together."""


class Part(NamedTuple):
    """A rank's part of a tensor."""

    start: int
    """Where it begins in the flattened tensor."""
    values: Tensor
    """(N)"""


Parts = Mapping[str, Part]
"""By the tensors' names: a rank has at most one part of each."""
Layout = dict[str, tuple[int, int]]
"""Start and length of a rank's parts, in order."""


def fill(parts: Parts, whole: Mapping[str, Tensor]) -> None:
    """Copy into each part what it is of the tensor of its name."""
    with torch.no_grad():
        for name, (start, values) in parts.items():
            values.copy_(whole[name].reshape(-1)[start : start + values.numel()])


def gather(parts: Parts, shapes: Mapping[str, torch.Size], device: torch.device) -> dict[str, Tensor]:
    """The whole tensors of ``shapes``, fp32 on the CPU, on rank 0; {} on the others. Every rank must call it.

    ``device``: where the process group's tensors must be. Rank 0 needs memory for them twice.
    """
    layouts: list[Layout] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(layouts, {name: (part.start, part.values.numel()) for name, part in parts.items()})
    mine = torch.cat([torch.empty(0), *(part.values.detach().float().cpu() for part in parts.values())])
    rows = _rows(mine, [sum(length for _, length in layout.values()) for layout in layouts], device)
    if dist.get_rank() != 0:
        return {}
    whole = {name: torch.zeros(shape) for name, shape in shapes.items()}
    for layout, row in zip(layouts, rows, strict=True):
        first = 0
        for name, (start, length) in layout.items():
            whole[name].view(-1)[start : start + length] = row[first : first + length]
            first += length
    return whole


def _rows(mine: Tensor, lengths: list[int], device: torch.device) -> list[Tensor]:
    """What every rank gives as ``mine``, of ``lengths``, on rank 0; [] on the others."""
    is_first = dist.get_rank() == 0
    rows = [torch.empty(length) for length in lengths] if is_first else []
    step = max(1, NUMBERS_AT_ONCE // len(lengths))
    for first in range(0, max(lengths), step):
        size = min(step, max(lengths) - first)
        piece = torch.zeros(size, device=device)  # of one size on all ranks, as gather wants it
        piece[: max(0, mine.numel() - first)] = mine[first : first + size].to(device)
        pieces = [torch.empty_like(piece) for _ in lengths] if is_first else None
        dist.gather(piece, pieces)
        for row, received in zip(rows, pieces or (), strict=True):
            row[first : first + size] = received[: max(0, row.numel() - first)].cpu()
    return rows


def dealt(sizes: Mapping[str, int], ranks: int) -> dict[str, int]:
    """Name to rank, so that every rank has about the same sum of ``sizes``: largest first, to the one that has least."""
    loads = [0] * ranks
    owners: dict[str, int] = {}
    for name, size in sorted(sizes.items(), key=lambda item: -item[1]):
        owners[name] = loads.index(min(loads))
        loads[owners[name]] += size
    return owners
