"""What the plan knows of a dataset: the rows of its shards. Memory grows with shards, and by a bit per clip where rows
are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kineograph.media.geometry import Bucket


@dataclass(frozen=True, eq=False)
class ShardRows:
    """The rows of a shard that may be trained on."""

    shard: int
    """Its place in the manifest."""
    rows: int
    """Rows of the file."""
    row_group_size: int
    """Rows of each row group but the last, which may have fewer."""
    allowed: np.ndarray | None = None
    """Which rows may be trained on, a bit each (np.packbits); None is all of them."""

    @cached_property
    def count(self) -> int:
        """Rows that may be trained on."""
        return self.rows if self.allowed is None else int(self.mask().sum())

    @property
    def row_groups(self) -> int:
        """Row groups of the file."""
        return -(-self.rows // self.row_group_size)

    def mask(self) -> np.ndarray:
        """Of every row whether it may be trained on (bool)."""
        if self.allowed is None:
            return np.ones(self.rows, bool)
        return np.unpackbits(self.allowed, count=self.rows).view(bool)


class TrainingIndex:
    """The clips to train on by bucket, where there are any."""

    def __init__(self, by_bucket: Mapping[Bucket, Sequence[ShardRows]]) -> None:
        used = {
            b: tuple(sorted((r for r in by_bucket[b] if r.count), key=lambda r: r.shard)) for b in sorted(by_bucket)
        }
        self.by_bucket: dict[Bucket, tuple[ShardRows, ...]] = {b: rows for b, rows in used.items() if rows}
        """Sorted, buckets and shards."""

    @cached_property
    def clips(self) -> dict[Bucket, int]:
        """How many there are."""
        return {bucket: sum(r.count for r in rows) for bucket, rows in self.by_bucket.items()}

    @property
    def rows(self) -> tuple[ShardRows, ...]:
        """Of all buckets."""
        return tuple(part for parts in self.by_bucket.values() for part in parts)
