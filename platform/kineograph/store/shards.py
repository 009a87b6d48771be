"""Shards: Parquet files of one bucket in small row groups, written whole and read by row group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kineograph.errors import Failure
from kineograph.store.commit import committed, sha256_file
from kineograph.store.manifest import Manifest, Shard
from kineograph.store.schema import SHARD_SCHEMA


def write_shard(run: Path, path: str, bucket: str, rows: list[dict[str, Any]], row_group_size: int) -> Shard:
    """Commit ``rows`` (SHARD_SCHEMA) as ``run/path`` and describe it. The same rows give the same bytes."""
    table = pa.Table.from_pylist(rows, schema=SHARD_SCHEMA)
    with committed(run / path) as temp:
        # mp4 bytes and embeddings do not compress; the strings beside them are few.
        pq.write_table(table, temp, row_group_size=row_group_size, compression="none", write_statistics=False)
    return describe_shard(run, path, bucket)


def describe_shard(run: Path, path: str, bucket: str) -> Shard:
    """The manifest's line for a shard that is there."""
    file = run / path
    return Shard(
        path=path,
        bucket=bucket,
        rows=pq.read_metadata(file).num_rows,
        bytes=file.stat().st_size,
        sha256=sha256_file(file),
    )


@dataclass(frozen=True)
class RowAddress:
    """Where a clip stands: shard (its place in the manifest), row group, row in the group."""

    shard: int
    row_group: int
    row: int


@dataclass(frozen=True)
class ClipEntry:
    """What a planner needs to know of a clip."""

    clip_id: str
    source_id: str
    bucket: str
    address: RowAddress


class ShardReader:
    """Random access by row group to the shards of a curation run."""

    def __init__(self, run: str | Path, manifest: Manifest | None = None) -> None:
        self.run = Path(run)
        self.manifest = manifest or Manifest.load(self.run)
        self._files: dict[int, pq.ParquetFile] = {}

    def index(self) -> list[ClipEntry]:
        """Every clip in the order of the manifest; reads the two id columns only."""
        entries = []
        for number, shard in enumerate(self.manifest.shards):
            file = self._open(number)
            for group in range(file.num_row_groups):
                ids = file.read_row_group(group, columns=["clip_id", "source_id"]).to_pydict()
                for row, (clip_id, source_id) in enumerate(zip(ids["clip_id"], ids["source_id"], strict=True)):
                    entries.append(ClipEntry(clip_id, source_id, shard.bucket, RowAddress(number, group, row)))
        return entries

    def read(self, addresses: Sequence[RowAddress], columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The rows at ``addresses``, in that order. Each row group is read once.

        Raises Failure with the shard's path when a shard cannot be read.
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for position, address in enumerate(addresses):
            groups.setdefault((address.shard, address.row_group), []).append(position)
        rows: list[dict[str, Any]] = [{}] * len(addresses)
        for (shard, group), positions in groups.items():
            wanted = np.array([addresses[p].row for p in positions])
            try:
                table = self._open(shard).read_row_group(group, columns=columns).take(wanted)
            except (OSError, pa.ArrowException, IndexError) as error:
                path = self.run / self.manifest.shards[shard].path
                raise Failure(f"cannot read shard {path}: run 'kineo data verify {self.run}'") from error
            for position, row in zip(positions, table.to_pylist(), strict=True):
                rows[position] = row
        return rows

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _open(self, shard: int) -> pq.ParquetFile:
        if shard not in self._files:
            path = self.run / self.manifest.shards[shard].path
            try:
                self._files[shard] = pq.ParquetFile(path)
            except (OSError, pa.ArrowException) as error:
                raise Failure(f"cannot read shard {path}: run 'kineo data verify {self.run}'") from error
        return self._files[shard]
