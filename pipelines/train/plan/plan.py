"""Which clips form step s: a pure function of the dataset's shards, the seed, the sizes of packs and s.

A pack is some clips of one bucket, a step is some packs. Each bucket is an endless stream of its clips (shuffle.py), which
its packs take one after the other, so a tail is carried into the next epoch and nothing is dropped. The packs of the
buckets interleave by share (mixing.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from pydantic import Field

from kineograph.config import Config
from kineograph.errors import UserError
from kineograph.media.geometry import Bucket
from kineograph.store.shards import RowAddress
from pipelines.train.plan.costs import GIB, CostModel
from pipelines.train.plan.index import TrainingIndex
from pipelines.train.plan.mixing import Mixing, clip_shares
from pipelines.train.plan.shuffle import Rows, Shuffle


class BatchConfig(Config):
    """How many clips, and of what, one step has over all workers."""

    videos: int = Field(32, ge=1)
    """Clips of a pack of a bucket of videos. A pack has clips of one bucket."""
    images: int = Field(32, ge=1)
    """Clips of a pack of a bucket of images."""
    packs: int = Field(1, ge=1)
    """Packs of a step; more of them mix more buckets into it."""
    seconds: float | None = Field(None, gt=0)
    """What computing a pack takes, forward and backward, on one worker: packs have as many clips as that allows, by the
    costs of their bucket, in place of ``videos`` and ``images``; none: they have those."""
    memory_gib: float | None = Field(None, gt=0)
    """What a worker computes at once keeps for the backward pass, in GiB, at most; none: no limit."""
    mix: dict[str, float] = Field(default_factory=dict)
    """Shares of the clips, 0..1, of "images", "videos" or a bucket by its name, HEIGHTxWIDTHxFRAMES. A bucket that is named
    is not counted with the images or videos. What is left of 1 goes to the buckets that are not named, in proportion to
    their clips, as all of it does where nothing is."""

    def clips(self, bucket: Bucket) -> int:
        """Clips of a pack where no seconds are given."""
        return self.images if bucket.is_image else self.videos

    def of_the_plan(self) -> dict[str, Any]:
        """What the order of clips depends on."""
        return self.model_dump(exclude={"memory_gib"})


@dataclass(frozen=True)
class Stretch:
    """Clips of a bucket that follow each other in its stream."""

    bucket: Bucket
    first: int
    """Place of the first one in the stream."""
    count: int
    place: int
    """Place of the first one in the step."""


@dataclass(frozen=True)
class StepPlan:
    """The global batch of one step."""

    step: int
    stretches: tuple[Stretch, ...]
    """One for each bucket that is in the step, sorted."""

    @property
    def clips(self) -> int:
        return sum(stretch.count for stretch in self.stretches)

    def of(self, bucket: Bucket) -> Stretch:
        """The clips of a bucket that is in the step."""
        return next(stretch for stretch in self.stretches if stretch.bucket == bucket)


@dataclass(frozen=True)
class Slot:
    """One clip of a step."""

    address: RowAddress
    epoch: int
    """Which pass over its bucket this is, a key of its randomness."""
    place: int
    """In the step."""
    clip_id: str = ""
    """Once its row is read."""


class TrainingPlan:
    """The order of training over the clips of a dataset. Threads may share it."""

    def __init__(
        self,
        index: TrainingIndex,
        seed: int,
        sizes: Mapping[Bucket, int],
        packs: int,
        mix: Mapping[str, float] | None = None,
        shuffle_groups: int = 32,
    ) -> None:
        """``sizes`` are the clips of a bucket's packs, ``packs`` those of a step, ``mix`` shares of clips by name as
        :class:`BatchConfig` has them, ``shuffle_groups`` row groups whose rows are shuffled together.

        Raises UserError without clips, and where ``mix`` does not fit the buckets.
        """
        if not index.clips:
            raise UserError("there is no clip to train on: curate more data, or lower data.validation_share")
        self.index, self.seed, self.packs = index, seed, packs
        self.sizes = {bucket: sizes[bucket] for bucket in index.clips}
        self._shares = clip_shares(index.clips, mix or {})
        self._mixing = Mixing({bucket: share / self.sizes[bucket] for bucket, share in self._shares.items()})
        self._streams = {
            bucket: Shuffle(bucket.name, rows, seed, shuffle_groups) for bucket, rows in index.by_bucket.items()
        }
        self._counts = lru_cache(maxsize=4)(self._mixing.counts)

    @property
    def buckets(self) -> list[Bucket]:
        """Those that have clips, sorted; also those whose share is 0."""
        return list(self.sizes)

    def clips(self, bucket: Bucket) -> int:
        """Clips to train on."""
        return self.index.clips[bucket]

    def share(self, bucket: Bucket) -> float:
        """Of the clips that are trained on, those of the bucket; 0..1."""
        return float(self._shares[bucket])

    def pack_share(self, bucket: Bucket) -> float:
        """Of the packs, those of the bucket; 0..1."""
        return float(self._mixing.rates[bucket])

    def clips_per_step(self, bucket: Bucket) -> float:
        """The mean over all steps."""
        return float(self._mixing.rates[bucket] * self.packs * self.sizes[bucket])

    @property
    def steps_per_epoch(self) -> float:
        """Steps that have as many clips as there are. Every bucket is through then, where ``mix`` changes no share."""
        return sum(self.index.clips.values()) / sum(map(self.clips_per_step, self.buckets))

    def epochs(self, bucket: Bucket, steps: int) -> float:
        """Passes over the bucket that the first ``steps`` steps make."""
        return self._counts(steps * self.packs)[bucket] * self.sizes[bucket] / self.clips(bucket)

    def step(self, step: int) -> StepPlan:
        """The plan of step ``step``, counted from 0."""
        before, after = self._counts(step * self.packs), self._counts((step + 1) * self.packs)
        stretches, place = [], 0
        for bucket, size in self.sizes.items():
            count = (after[bucket] - before[bucket]) * size
            if count:
                stretches.append(Stretch(bucket, before[bucket] * size, count, place))
                place += count
        return StepPlan(step, tuple(stretches))

    def rows(self, stretch: Stretch) -> Rows:
        """Where the clips of a stretch stand, in their order.

        The clips of one bucket and step are in order of their addresses, as far as they are of one window of the shuffle:
        parts of a step share few row groups, and which clip has which place does not depend on how a step is cut.
        """
        parts, first, end = [], stretch.first, stretch.first + stretch.count
        while first < end:
            begin, count = self._of_step(stretch.bucket, first, end)
            taken = min(end, begin + count) - first
            parts.append(self._streams[stretch.bucket].rows(first, taken, (begin, count)))
            first += taken
        return parts[0] if len(parts) == 1 else Rows(*map(np.concatenate, zip(*parts, strict=True)))

    def slots(self, stretch: Stretch) -> tuple[Slot, ...]:
        """The clips of a stretch of a step, or of a part of one, in their order."""
        rows = self.rows(stretch)
        columns = zip(*(column.tolist() for column in rows), strict=True)
        return tuple(
            Slot(RowAddress(shard, group, row), epoch, stretch.place + number)
            for number, (shard, group, row, epoch) in enumerate(columns)
        )

    def _of_step(self, bucket: Bucket, first: int, end: int) -> tuple[int, int]:
        """First place and number of the bucket's clips in the step that has place ``first``."""
        if not self._shares[bucket]:  # in no step
            return first, end - first
        size = self.sizes[bucket]
        step = self._mixing.place(bucket, first // size) // self.packs
        before, after = self._counts(step * self.packs)[bucket], self._counts((step + 1) * self.packs)[bucket]
        return before * size, (after - before) * size


def pack_sizes(clips: Mapping[Bucket, int], batch: BatchConfig, costs: CostModel) -> dict[Bucket, int]:
    """Clips of a pack of each bucket, at least 1. Where they follow from seconds, no more than the ``clips`` there are."""
    if batch.seconds is None:
        return {bucket: batch.clips(bucket) for bucket in clips}
    return {bucket: max(1, min(count, costs.clips_in(bucket, batch.seconds))) for bucket, count in clips.items()}


def micro_batch_sizes(buckets: Iterable[Bucket], batch: BatchConfig, costs: CostModel) -> dict[Bucket, int]:
    """Clips of each bucket that a worker computes at once, at most; none is named where the recipe sets no limit.

    Raises UserError where not one fits, and where nothing is known of their memory.
    """
    if batch.memory_gib is None:
        return {}
    sizes = {}
    for bucket in buckets:
        one = costs.bytes(bucket, 1)
        if not one:
            raise UserError(
                f"batch.memory_gib is given, and what a clip of {bucket.name} takes is not known: "
                "set costs.source=measured, or gib in costs.table"
            )
        if one > batch.memory_gib * GIB:
            raise UserError(
                f"one clip of {bucket.name} takes {one / GIB:.1f} GiB, and batch.memory_gib is {batch.memory_gib:g}: "
                "raise it, or set execution.recompute=block"
            )
        sizes[bucket] = costs.clips_within(bucket, batch.memory_gib * GIB)
    return sizes
