"""The clips of a curation run that training uses: which of them are trained on, and which are held out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kineograph.errors import UserError
from kineograph.media.geometry import Bucket
from kineograph.store.manifest import Manifest
from kineograph.store.shards import ClipEntry, RowAddress, ShardReader
from kineograph.store.split import select_clips
from pipelines.train.config import TrainConfig
from pipelines.train.plan.index import ShardRows, TrainingIndex

Filter = Mapping[int, np.ndarray]
"""Of every shard by number, which of its rows (bool) can be used."""


@dataclass(frozen=True)
class Dataset:
    """The clips that a run uses."""

    reader: ShardReader
    index: TrainingIndex
    """Clips to train on."""
    held_out: dict[Bucket, list[ClipEntry]]
    """Clips to validate on, at most validation.clips of each bucket."""
    validation_clips: int
    """Held-out clips in all."""
    left_out_clips: int
    """Clips that cannot be used."""

    @property
    def manifest(self) -> Manifest:
        return self.reader.manifest

    @property
    def buckets(self) -> list[Bucket]:
        """Buckets of training clips: those of videos first, and of them the one with most clips."""
        clips = self.index.clips
        return sorted(clips, key=lambda bucket: (bucket.is_image, -clips[bucket], bucket))

    @property
    def training_clips(self) -> int:
        """Clips to train on in all."""
        return sum(self.index.clips.values())

    def spread(self, most: int) -> list[RowAddress]:
        """At most ``most`` of the clips to train on, evenly spread over all of them, in the order of the shards."""
        rows = sorted((r for parts in self.index.by_bucket.values() for r in parts), key=lambda r: r.shard)
        step = max(1, -(-self.training_clips // most))
        addresses, before = [], 0
        for part in rows:
            places = np.flatnonzero(part.mask())[(-before) % step :: step]
            before += part.count
            addresses += [RowAddress(part.shard, *divmod(int(p), part.row_group_size)) for p in places]
        return addresses

    def spread_entries(self, most: int) -> list[ClipEntry]:
        """As :meth:`spread`, with the clips' ids."""
        addresses = self.spread(most)
        rows = self.reader.read(addresses, ["clip_id", "source_id"])
        shards = self.manifest.shards
        return [
            ClipEntry(row["clip_id"], row["source_id"], shards[address.shard].bucket, address)
            for address, row in zip(addresses, rows, strict=True)
        ]

    def captions(self) -> Iterator[str]:
        """Of all clips, also those that are held out."""
        for number in range(len(self.manifest.shards)):
            yield from self.reader.columns(number, ["caption"])["caption"].to_pylist()


def open_dataset(config: TrainConfig, reader: ShardReader, run: Path, usable: Filter | None) -> Dataset:
    """Split the clips that are ``usable``, where none is given all, into those to train on and those held out.

    The ids of all clips are read for it. Raises UserError when there is nothing to train on.
    """
    share, most = config.data.validation_share, config.validation.clips
    choose = None if usable is None else lambda number, table: usable[number]
    found = select_clips(reader, share, most, choose)
    by_bucket: dict[Bucket, list[ShardRows]] = {}
    for number, shard in enumerate(reader.manifest.shards):
        rows = ShardRows(number, shard.rows, reader.row_group_size(number), found.training[number])
        if rows.count:
            by_bucket.setdefault(Bucket.parse(shard.bucket), []).append(rows)
    if not by_bucket:
        raise UserError("there is no clip to train on: curate more data, or lower data.validation_share")
    kept_back = sum(found.kept_back.values())
    index = TrainingIndex(by_bucket)
    left_out = sum(shard.rows for shard in reader.manifest.shards) - sum(found.trained.values()) - kept_back
    return Dataset(reader, index, found.held_out, kept_back, left_out)
