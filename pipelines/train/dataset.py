"""The clips of a curation run, split into training and held out, and planned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kineograph.media.geometry import Bucket
from kineograph.store.manifest import Manifest
from kineograph.store.shards import ClipEntry, ShardReader
from kineograph.store.split import split_validation
from pipelines.train.config import TrainConfig
from pipelines.train.plan import TrainingPlan


@dataclass(frozen=True)
class Dataset:
    """The clips that a run uses."""

    reader: ShardReader
    training: list[ClipEntry]
    validation: list[ClipEntry]
    plan: TrainingPlan

    @property
    def manifest(self) -> Manifest:
        return self.reader.manifest

    @property
    def buckets(self) -> list[Bucket]:
        """Buckets of training clips: those of videos first, and of them the one with most clips."""
        clips = self.plan.clips
        return sorted(clips, key=lambda bucket: (bucket.is_image, -len(clips[bucket]), bucket))

    def held_out(self, most: int) -> list[list[ClipEntry]]:
        """Held-out clips, one list for each bucket, at most ``most`` in each."""
        buckets = sorted({c.bucket for c in self.validation})
        return [[c for c in self.validation if c.bucket == bucket][:most] for bucket in buckets]


def open_dataset(
    config: TrainConfig, reader: ShardReader, choose: Callable[[list[ClipEntry]], list[ClipEntry]]
) -> Dataset:
    """Read the ids of all clips, take those that ``choose`` takes and plan over them.

    Raises UserError when there is nothing to train on.
    """
    training, validation = split_validation(choose(reader.index()), config.data.validation_share)
    plan = TrainingPlan(training, config.seed, config.batch.videos, config.batch.images)
    return Dataset(reader, training, validation, plan)


def spread(entries: Sequence[ClipEntry], most: int) -> list[ClipEntry]:
    """At most ``most`` entries, evenly spaced over all of them."""
    step = max(1, -(-len(entries) // most))
    return list(entries[::step])
