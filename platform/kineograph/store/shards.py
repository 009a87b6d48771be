"""Shards: Parquet files of one bucket in small row groups, written whole and read by row group, here or far away."""

from __future__ import annotations

import io
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kineograph.errors import Failure
from kineograph.store.commit import committed, sha256_file
from kineograph.store.manifest import Manifest, Shard
from kineograph.store.places import NO_OPTIONS, Options, Place
from kineograph.store.schema import SHARD_SCHEMA

_FOOTERS = 256
"""Most footers that are kept: about 0.2 MB each, for a shard of 64 row groups."""
_TAIL_BYTES = 1 << 16
"""Read first of a remote shard: its footer is there, unless it has very many row groups."""


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
    footer = pq.read_metadata(file)
    return Shard(
        path=path,
        bucket=bucket,
        rows=footer.num_rows,
        bytes=file.stat().st_size,
        sha256=sha256_file(file),
        row_group_size=_row_group_size(footer),
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


class DamagedShard(Failure):
    """A shard that is there and is no Parquet file, or not the one that the manifest lists."""


class ShardReader:
    """Random access by row group to the shards of a curation run, a folder or a URL. Threads may share it.

    Footers are kept, files are not: a row group is read by opening its file, so any number of shards can be in use.
    """

    def __init__(self, run: str | Path, manifest: Manifest | None = None, options: Options = NO_OPTIONS) -> None:
        """``options`` are of the URL's file system (kineograph.store.places). Raises as :meth:`Manifest.load` does."""
        self.place = Place(run, options)
        self.manifest = manifest or Manifest.load_from(self.place)
        self._footers: OrderedDict[int, pq.FileMetaData] = OrderedDict()
        self._lock = threading.Lock()
        self._footer_locks = [threading.Lock() for _ in range(16)]
        self._copies: tempfile.TemporaryDirectory[str] | None = None

    @property
    def run(self) -> str | Path:
        """The run: a path where it is of this machine, else a URL."""
        return self.place.path

    def folder(self, name: str) -> Path:
        """A small folder of the run, such as its autoencoder's. Of a remote run it is a copy that lives as long as this
        reader does. Raises UserError when a remote run has none."""
        if not self.place.is_remote:
            return self.place.local(name)
        with self._lock:
            self._copies = self._copies or tempfile.TemporaryDirectory(prefix="kineograph-")
            target = Path(self._copies.name, name)
            if not target.is_dir():
                self.place.copy_folder(name, target)
        return target

    def row_group_size(self, shard: int) -> int:
        """Rows of each row group of a shard but the last, which may have fewer.

        Raises DamagedShard when they differ: no shard of ours is such.
        """
        size = self.manifest.shards[shard].row_group_size or _row_group_size(self._footer(shard))
        if size is None:
            raise DamagedShard(f"the row groups of {self._name(shard)} differ in size: curate again")
        return size

    def address(self, shard: int, row: int) -> RowAddress:
        """Where row number ``row`` of a shard stands."""
        return RowAddress(shard, *divmod(row, self.row_group_size(shard)))

    def row_number(self, address: RowAddress) -> int:
        """The row of its shard that is at ``address``."""
        return address.row_group * self.row_group_size(address.shard) + address.row

    def index(self) -> list[ClipEntry]:
        """Every clip in the order of the manifest; reads the two id columns only."""
        entries = []
        for number, shard in enumerate(self.manifest.shards):
            ids = self.columns(number, ["clip_id", "source_id"])
            for row, (clip_id, source_id) in enumerate(zip(*(c.to_pylist() for c in ids.columns), strict=True)):
                entries.append(ClipEntry(clip_id, source_id, shard.bucket, self.address(number, row)))
        return entries

    def columns(self, shard: int, names: Sequence[str]) -> pa.Table:
        """Columns of all rows of a shard. Raises as :meth:`row_group` does."""
        return self._read(shard, range(self._footer(shard).num_row_groups), names)

    def row_group(self, shard: int, group: int, columns: Sequence[str] | None = None) -> pa.Table:
        """A row group, all columns unless they are named.

        Raises Failure with the shard's name: a DamagedShard when it is there and is not as it should be, NotReached when
        the place does not answer.
        """
        return self._read(shard, [group], columns)

    def read(self, addresses: Sequence[RowAddress], columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The rows at ``addresses``, in that order. Each row group is read once. Raises as :meth:`row_group` does."""
        groups: dict[tuple[int, int], list[int]] = {}
        for position, address in enumerate(addresses):
            groups.setdefault((address.shard, address.row_group), []).append(position)
        rows: list[dict[str, Any]] = [{}] * len(addresses)
        for (shard, group), positions in groups.items():
            wanted = np.array([addresses[p].row for p in positions])
            table = self.row_group(shard, group, columns)
            if wanted.max() >= table.num_rows:
                raise DamagedShard(self._damaged(shard))
            for position, row in zip(positions, table.take(wanted).to_pylist(), strict=True):
                rows[position] = row
        return rows

    def close(self) -> None:
        """Forget footers, and delete what :meth:`folder` copied."""
        with self._lock:
            self._footers.clear()
            if self._copies is not None:
                self._copies.cleanup()
                self._copies = None

    def _read(self, shard: int, groups: Iterable[int], columns: Sequence[str] | None) -> pa.Table:
        footer, groups = self._footer(shard), list(groups)
        try:
            file: Any = self.place / self.manifest.shards[shard].path
            if self.place.is_remote:
                file = self._pieces(shard, footer, groups, columns)
            with pq.ParquetFile(file, metadata=footer) as opened:
                return opened.read_row_groups(groups, columns=columns, use_threads=False)
        except (OSError, pa.ArrowException, ValueError, IndexError) as error:
            raise self._failure(shard, error) from error

    def _pieces(
        self, shard: int, footer: pq.FileMetaData, groups: Sequence[int], columns: Sequence[str] | None
    ) -> io.RawIOBase:
        """What is to be read of a remote shard, as a file that has nothing else."""
        ranges: list[tuple[int, int]] = []
        wanted: list[int] = []
        for group in groups:
            chunks = footer.row_group(group)
            if not ranges:
                paths = [chunks.column(number).path_in_schema for number in range(chunks.num_columns)]
                wanted = [n for n, path in enumerate(paths) if columns is None or path.split(".")[0] in columns]
            for number in wanted:
                chunk = chunks.column(number)
                start = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)))
                ranges.append((start, start + chunk.total_compressed_size))
        described = self.manifest.shards[shard]
        return _Pieces(self.place.read_ranges(described.path, ranges), described.bytes)

    def _footer(self, shard: int) -> pq.FileMetaData:
        with self._footer_locks[shard % len(self._footer_locks)]:  # a footer is read once, others meanwhile
            with self._lock:
                if shard in self._footers:
                    self._footers.move_to_end(shard)
                    return self._footers[shard]
            footer = self._read_footer(shard)
            with self._lock:
                self._footers[shard] = footer
                if len(self._footers) > _FOOTERS:
                    self._footers.popitem(last=False)
        return footer

    def _read_footer(self, shard: int) -> pq.FileMetaData:
        described = self.manifest.shards[shard]
        try:
            if self.place.is_remote:
                return pq.read_metadata(pa.BufferReader(self._tail(described)))
            return pq.read_metadata(self.place.local(described.path))
        except (OSError, pa.ArrowException, ValueError) as error:
            raise self._failure(shard, error) from error

    def _tail(self, shard: Shard) -> bytes:
        """The end of a remote shard, its footer included."""
        tail = self._last_bytes(shard, _TAIL_BYTES)
        footer_bytes = (
            int.from_bytes(tail[-8:-4], "little") + 8
        )  # the footer's length and a mark are the end of the file
        whole = footer_bytes <= len(tail) or tail[-4:] != b"PAR1"
        return tail if whole else self._last_bytes(shard, footer_bytes)

    def _last_bytes(self, shard: Shard, count: int) -> bytes:
        ((_, tail),) = self.place.read_ranges(shard.path, [(max(0, shard.bytes - count), shard.bytes)])
        return tail

    def _failure(self, shard: int, error: Exception) -> Failure:
        """A damaged file, or one that this machine cannot read: pyarrow raises OSError, without a number, for the first."""
        if isinstance(error, OSError) and (error.errno is not None or isinstance(error, FileNotFoundError)):
            reason = "it does not exist" if isinstance(error, FileNotFoundError) else error.strerror
            return Failure(f"cannot read shard {self._name(shard)}: {reason}; {self._advice()}")
        return DamagedShard(self._damaged(shard))

    def _damaged(self, shard: int) -> str:
        return f"shard {self._name(shard)} is damaged: {self._advice()}"

    def _advice(self) -> str:
        return "copy the run there again" if self.place.is_remote else f"run 'kineo data verify {self.place}'"

    def _name(self, shard: int) -> str:
        return self.place / self.manifest.shards[shard].path


class _Pieces(io.RawIOBase):
    """A file of which some pieces are known."""

    def __init__(self, pieces: Sequence[tuple[int, bytes]], size: int) -> None:
        self._pieces, self._size, self._place = pieces, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + (0, self._place, self._size)[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def read(self, size: int = -1) -> bytes:
        """Raises OSError for what is not known: the footer does not fit the file."""
        begin = self._place
        for start, piece in self._pieces:
            if start <= begin and begin + size <= start + len(piece):
                self._place += size
                return piece[begin - start : begin - start + size]
        raise OSError(f"bytes {begin} to {begin + size} were not asked for")


def _row_group_size(footer: pq.FileMetaData) -> int | None:
    """Rows of each row group but the last; None when they differ."""
    sizes = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
    if not sizes:
        return 1
    return sizes[0] if set(sizes[:-1]) <= {sizes[0]} and sizes[-1] <= sizes[0] else None
