"""Which rank computes which clips of a step, in which micro-batches, so that all are through with every round together.

Stretches are cut into micro-batches (cutting.py), which are laid out from the longest to the shortest: the first round has
as many of the longest as there are ranks, and so on. Within a round the longest goes to the rank that has least to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, overload

import numpy as np

from kineograph.errors import UserError
from kineograph.media.geometry import Bucket
from pipelines.train.plan.costs import CostModel
from pipelines.train.plan.cutting import Cut, cut
from pipelines.train.plan.plan import StepPlan, Stretch

_TICKS = 2**42
"""That the seconds of a step are divided into: whole numbers, exact in every sum."""
_EVENED = 16
"""Rounds, the last ones, in which ranks are evened out one by one."""


@dataclass(frozen=True)
class MicroBatch:
    """What a rank runs forward and backward at once."""

    stretch: Stretch
    is_padding: bool = False
    """Its one clip is computed by another micro-batch too: it is there for ranks to have equally many of them, and counts
    for nothing."""


class _Pieces(NamedTuple):
    """Arrays (ranks, rounds)."""

    stretch: np.ndarray
    """Its number in the step."""
    first: np.ndarray
    """How many of the stretch's clips come before."""
    clips: np.ndarray
    """0 for padding."""


class _Rounds(Sequence[tuple[MicroBatch, ...]]):
    """Micro-batches by rank."""

    def __init__(self, plan: StepPlan, pieces: _Pieces) -> None:
        self._plan, self._pieces = plan, pieces

    def __len__(self) -> int:
        return len(self._pieces.stretch)

    @overload
    def __getitem__(self, rank: int) -> tuple[MicroBatch, ...]: ...

    @overload
    def __getitem__(self, rank: slice) -> tuple[tuple[MicroBatch, ...], ...]: ...

    def __getitem__(self, rank: int | slice) -> tuple[MicroBatch, ...] | tuple[tuple[MicroBatch, ...], ...]:
        if isinstance(rank, slice):
            return tuple(self[number] for number in range(*rank.indices(len(self))))
        return tuple(map(self._micro_batch, *(column[rank].tolist() for column in self._pieces)))

    def buckets(self, number: int) -> list[Bucket]:
        """Of the micro-batches that ranks have in round ``number``."""
        return [self._plan.stretches[s].bucket for s in np.unique(self._pieces.stretch[:, number]).tolist()]

    def _micro_batch(self, number: int, first: int, count: int) -> MicroBatch:
        whole = self._plan.stretches[number]
        part = Stretch(whole.bucket, whole.first + first, max(1, count), whole.place + first)
        return MicroBatch(part, is_padding=not count)


@dataclass(frozen=True, eq=False)
class Deal:
    """A step, dealt to ranks."""

    rounds: _Rounds
    """Of every rank its micro-batches in order, equally many for all. They are made when asked for."""
    by_round: np.ndarray
    """(ranks, rounds): seconds."""

    @cached_property
    def seconds(self) -> tuple[float, ...]:
        """Of every rank."""
        return tuple(self.by_round.sum(1).tolist())

    @property
    def imbalance(self) -> float:
        """By how much the slowest rank is above the mean, 0 being best: what the others wait for it at the step's end."""
        return max(0.0, max(self.seconds) * len(self.seconds) / sum(self.seconds) - 1)  # never below, by rounding

    @property
    def imbalance_by_round(self) -> float:
        """The same where ranks wait for each other in every round, as they do under ZeRO 2 and 3; never less."""
        return max(0.0, float(self.by_round.max(0).sum()) * len(self.seconds) / sum(self.seconds) - 1)


def deal(plan: StepPlan, costs: CostModel, ranks: int, most: Mapping[Bucket, int], even: bool = False) -> Deal:
    """Deal the clips of a step to ``ranks``, each to one of them.

    ``most`` are the clips of a bucket that are computed at once, at most; a bucket that it does not name has no limit.
    ``even`` gives every rank its part of every stretch, and all are at the same stretch in the same round, for losses that
    are worked out together; else ranks have different buckets, and finish together. Raises UserError where there are fewer
    clips than ranks.
    """
    if plan.clips < ranks:
        raise UserError(
            f"step {plan.step} has {plan.clips} clips for {ranks} workers: raise batch.packs, batch.videos or "
            "batch.images, or lower workers.count"
        )
    counts = np.array([stretch.count for stretch in plan.stretches], np.int64)
    limits = np.array([max(1, min(s.count, most.get(s.bucket, s.count))) for s in plan.stretches], np.int64)
    clip_s = np.array([costs.buckets[s.bucket].clip_s for s in plan.stretches])
    overhead_s = np.array([costs.buckets[s.bucket].overhead_s for s in plan.stretches])
    if even:
        pieces = _even(counts, limits, ranks)
    else:
        pieces = _balanced(counts, limits, *_whole(counts, clip_s, overhead_s), ranks)
    by_round = overhead_s[pieces.stretch] + np.maximum(1, pieces.clips) * clip_s[pieces.stretch]
    return Deal(_Rounds(plan, pieces), by_round)


def _even(counts: np.ndarray, limits: np.ndarray, ranks: int) -> _Pieces:
    """Every stretch cut evenly, and each part into as many pieces as the largest one needs."""
    largest = -(-counts // ranks)
    pieces = -(-largest // limits)
    stretch = np.repeat(np.arange(len(counts)), pieces)
    number = np.arange(len(stretch)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    begin = np.arange(ranks)[:, None] * counts // ranks
    size = np.arange(1, ranks + 1)[:, None] * counts // ranks - begin
    first = begin[:, stretch] + size[:, stretch] * number // pieces[stretch]
    after = begin[:, stretch] + size[:, stretch] * (number + 1) // pieces[stretch]
    return _Pieces(np.broadcast_to(stretch, first.shape), np.minimum(first, counts[stretch] - 1), after - first)


def _whole(counts: np.ndarray, clip_s: np.ndarray, overhead_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Costs of a clip, above 0, and of a micro-batch as whole numbers: the same on every machine that computes them."""
    total = 0.0
    for count, seconds, overhead in zip(counts.tolist(), clip_s.tolist(), overhead_s.tolist(), strict=True):
        total += count * seconds + overhead
    clip = [max(1, round(seconds / total * _TICKS)) for seconds in clip_s.tolist()]
    return np.array(clip, np.int64), np.array([round(s / total * _TICKS) for s in overhead_s.tolist()], np.int64)


def _balanced(counts: np.ndarray, limits: np.ndarray, clip: np.ndarray, overhead: np.ndarray, ranks: int) -> _Pieces:
    """Pieces of about the same length in every round."""
    order = np.argsort(clip, kind="stable")
    pieces = np.empty_like(counts)
    pieces[order] = cut(Cut(counts[order], limits[order], clip[order], overhead[order]), ranks)
    stretch, count = _equal_pieces(counts, pieces)
    missing = -len(stretch) % ranks  # padding: the cheapest clip of the step
    stretch = np.concatenate([stretch, np.full(missing, order[0])])
    count = np.concatenate([count, np.zeros(missing, np.int64)])
    length = overhead[stretch] + np.maximum(1, count) * clip[stretch]
    longest_first = np.argsort(-length, kind="stable").reshape(-1, ranks)
    at = _to_ranks(length[longest_first], longest_first).T
    return _Pieces(stretch[at], _firsts(stretch[at], count[at]), count[at])


def _equal_pieces(counts: np.ndarray, pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every piece its stretch and its clips, when each stretch is cut into so many."""
    stretch = np.repeat(np.arange(len(counts)), pieces)
    number = np.arange(len(stretch)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    of = pieces[stretch]
    return stretch, counts[stretch] // of + (number < counts[stretch] % of)


def _firsts(stretch: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Of every piece how many of the stretch's clips come before it: a rank has clips that follow each other."""
    order = np.argsort(stretch.ravel(), kind="stable")
    counts = count.ravel()[order]
    before = np.cumsum(counts) - counts
    of = stretch.ravel()[order]
    before -= before[np.searchsorted(of, of)]  # what stretches with lower numbers have
    first = np.empty_like(before)
    first[order] = before
    return first.reshape(stretch.shape)


def _to_ranks(length: np.ndarray, pieces: np.ndarray) -> np.ndarray:
    """``pieces`` (rounds, ranks), their lengths falling, with those of each round in the order of ranks."""
    pieces, length = pieces.copy(), length.copy()
    pieces[1::2], length[1::2] = pieces[1::2, ::-1], length[1::2, ::-1]  # to and fro
    many = max(1, len(pieces) - _EVENED)
    load = length[:many].sum(0)
    for number in range(many, len(pieces)):
        order = np.argsort(load, kind="stable")
        longest = np.argsort(-length[number], kind="stable")
        pieces[number, order] = pieces[number, longest]
        load[order] += length[number, longest]
    return pieces
