"""What a step's micro-batches, on all ranks, come to: exact means over the global batch, and what ranks tell each other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from kineograph.media.geometry import Bucket
from pipelines.train.kinds.base import Losses
from pipelines.train.plan.plan import Slot

FLAGS = ("stop", "save")
"""What one rank may ask of all: to stop after this step, to save after it."""
_HALF = 2**26  # sums of so small numbers are exact in float64 for 2^27 clips


class Tally:
    """Sums of one rank's step. Every rank of a run has the same ``buckets`` and ``names``."""

    def __init__(self, buckets: Sequence[Bucket], names: Sequence[str], device: torch.device) -> None:
        """``names`` are of the means that a kind's losses may have (Kind.mean_names)."""
        self._fixed = ["loss", "loss_image", "loss_video", *(f"loss_{b.name}" for b in buckets), *names]
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._ids = [0, 0]
        self._left_out = 0
        self._flags = dict.fromkeys(FLAGS, 0.0)
        self._device = device

    def add(self, bucket: Bucket, losses: Losses, slots: Sequence[Slot], weights: Tensor) -> None:
        """Count a micro-batch; ``weights`` (B) are 0 for clips that are left out."""
        media = "loss_image" if bucket.is_image else "loss_video"
        total = losses.total.detach()
        for name in ("loss", media, f"loss_{bucket.name}"):
            self._count(name, (total * weights).sum(), weights.sum())
        for name, part in losses.parts.items():
            self._count(name, (part.detach() * weights).sum(), weights.sum())
        for name, (numbers, count) in losses.means.items():
            self._count(name, numbers.detach(), count)
        for slot, weight in zip(slots, weights.tolist(), strict=True):
            if weight:
                low, high = _halves(slot)
                self._ids = [self._ids[0] + low, self._ids[1] + high]
            else:
                self._left_out += 1

    def ask(self, flag: str) -> None:
        """Ask something of all ranks."""
        self._flags[flag] = 1.0

    def over_ranks(self, copies: int = 1) -> Totals:
        """All ranks' sums together; every rank must call it. ``copies`` ranks have each clip."""
        parts = sorted(self._sums.keys() - set(self._fixed))  # the same on every rank
        names = [*self._fixed, *parts]
        zero = torch.zeros((), device=self._device)
        numbers = [*(self._sums.get(n, zero) for n in names), *(self._counts.get(n, zero) for n in names)]
        local = [float(n) for n in (*self._ids, self._left_out)] + [self._flags[flag] for flag in FLAGS]
        vector = torch.cat(
            [
                torch.stack([n.to(self._device, torch.float64) for n in numbers]),
                torch.tensor(local, dtype=torch.float64, device=self._device),
            ]
        )
        if dist.is_initialized():
            dist.all_reduce(vector)
        values = vector.tolist()
        size = len(names)
        means = {n: values[i] / values[size + i] for i, n in enumerate(names) if values[size + i]}
        low, high, left_out, *flags = values[2 * size :]
        asked = {flag for flag, value in zip(FLAGS, flags, strict=True) if value}
        return Totals(means, _fingerprint(low / copies, high / copies), round(left_out / copies), asked)

    def _count(self, name: str, numbers: Tensor, count: Tensor) -> None:
        before = self._sums.get(name)
        self._sums[name] = numbers if before is None else before + numbers
        self._counts[name] = count if before is None else self._counts[name] + count


class Totals:
    """A step over all ranks."""

    def __init__(self, means: dict[str, float], clips: str, left_out: int, flags: set[str]) -> None:
        self.means = means
        """Of the loss, also by media, bucket and what the kind tells, and of its parts."""
        self.clips = clips
        """A fingerprint of which clips, in which epochs, were in the step: equal for equal sets, in any order."""
        self.left_out = left_out
        """Clips of the step that are damaged."""
        self.flags = flags
        """What at least one rank asked for."""


def _halves(slot: Slot) -> tuple[int, int]:
    digest = hashlib.blake2b(f"{slot.epoch}\x1f{slot.clip_id}".encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "little")
    return number % _HALF, number // _HALF % _HALF


def _fingerprint(low: float, high: float) -> str:
    return f"{int(low) % _HALF:07x}{int(high) % _HALF:07x}"
