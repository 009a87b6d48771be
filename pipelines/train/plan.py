"""Which clips form step s: a pure function of (clips of the manifest, seed, batch sizes, s).

Each bucket is an endless stream of its clips, shuffled anew every epoch; a batch takes the stream's next clips, so a
tail is carried into the next epoch and nothing is dropped. Buckets take turns in a shuffled cycle in which each has its
share of the batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from kineograph.errors import UserError
from kineograph.media.geometry import Bucket
from kineograph.store.shards import ClipEntry


@dataclass(frozen=True)
class Slot:
    """One clip of a global batch, and which pass over its bucket this is (the key of its randomness)."""

    clip: ClipEntry
    epoch: int


@dataclass(frozen=True)
class StepPlan:
    """The global batch of one step; all clips share a bucket."""

    step: int
    bucket: Bucket
    slots: tuple[Slot, ...]

    def of_rank(self, rank: int, world: int) -> tuple[Slot, ...]:
        """The slots dealt to a rank: every world-th one, so that any number of ranks sees the same batch."""
        return self.slots[rank::world]


class TrainingPlan:
    """The order of training over the clips of a dataset."""

    def __init__(self, clips: Sequence[ClipEntry], seed: int, videos: int, images: int) -> None:
        """``videos`` and ``images`` are the clips per step in video and image buckets. Raises UserError without clips."""
        if not clips:
            raise UserError("there is no clip to train on: curate more data, or lower data.validation_share")
        self.seed = seed
        by_bucket: dict[str, list[ClipEntry]] = {}
        for clip in sorted(clips, key=lambda c: c.clip_id):
            by_bucket.setdefault(clip.bucket, []).append(clip)
        self.clips = {Bucket.parse(name): entries for name, entries in sorted(by_bucket.items())}
        self.batch_size = {b: images if b.is_image else videos for b in self.clips}
        self.batches = {b: max(1, round(len(c) / self.batch_size[b])) for b, c in self.clips.items()}
        """Turns of each bucket in a cycle."""

    @property
    def cycle(self) -> int:
        """Steps in which every bucket had its turns: about one epoch."""
        return sum(self.batches.values())

    def step(self, step: int) -> StepPlan:
        """The plan of step ``step``, counted from 0."""
        cycle, position = divmod(step, self.cycle)
        order = self._turns(cycle)
        bucket = order[position]
        turn = cycle * self.batches[bucket] + order[:position].count(bucket)
        size = self.batch_size[bucket]
        slots = tuple(self._slot(bucket, place) for place in range(turn * size, (turn + 1) * size))
        return StepPlan(step, bucket, slots)

    def _slot(self, bucket: Bucket, place: int) -> Slot:
        clips = self.clips[bucket]
        epoch, index = divmod(place, len(clips))
        return Slot(clips[self._order(bucket, epoch)[index]], epoch)

    @lru_cache(maxsize=8)  # noqa: B019  a plan lives as long as its process
    def _turns(self, cycle: int) -> list[Bucket]:
        turns = [b for b, count in self.batches.items() for _ in range(count)]
        return [turns[i] for i in _permutation(len(turns), self.seed, "turns", cycle)]

    @lru_cache(maxsize=64)  # noqa: B019
    def _order(self, bucket: Bucket, epoch: int) -> np.ndarray:
        return _permutation(len(self.clips[bucket]), self.seed, bucket.name, epoch)


def _permutation(n: int, *key: object) -> np.ndarray:
    text = "\x1f".join(str(part) for part in key)
    words = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), np.uint64)
    return np.random.Generator(np.random.Philox(key=words)).permutation(n)
