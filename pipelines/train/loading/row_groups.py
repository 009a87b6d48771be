"""Row groups of the shards, read once by threads of the rank and kept while they are used."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa

from kineograph.store.shards import ShardReader

_THREADS = 4
"""Row groups that are read at once; a place that is far away takes long to answer."""

Key = tuple[int, int]
"""Shard, row group."""


class RowGroups:
    """Row groups by shard and number; those used last are kept, up to ``most_bytes``."""

    def __init__(self, reader: ShardReader, columns: Sequence[str], most_bytes: int) -> None:
        self._reader, self._columns, self._room = reader, list(columns), most_bytes
        self._threads = ThreadPoolExecutor(_THREADS, "row-groups")
        self._kept: OrderedDict[Key, Future[pa.Table]] = OrderedDict()
        self._sizes: dict[Key, int] = {}  # of those that have been read
        self._lock = threading.Lock()

    def ask(self, key: Key) -> Future[pa.Table]:
        """The row group to be. Its result raises as :meth:`ShardReader.row_group` does."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = self._threads.submit(self._read, key)
            self._kept.move_to_end(key)
            return self._kept[key]

    def close(self) -> None:
        """Read no more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _read(self, key: Key) -> pa.Table:
        try:
            table = self._reader.row_group(*key, self._columns)
        except Exception:
            with self._lock:
                del self._kept[key]  # it may be there the next time
            raise
        with self._lock:
            self._sizes[key] = table.nbytes
            self._room -= table.nbytes
            for old in [key for key in self._kept if key in self._sizes]:  # those that are still being read stay
                if self._room >= 0:
                    break
                self._room += self._sizes.pop(old)
                del self._kept[old]
        return table
