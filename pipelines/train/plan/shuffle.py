"""The order of a bucket's clips: an endless stream in which every clip comes once in every epoch.

An epoch is shuffled in levels, so that neither memory nor reading grows with the bucket: the shards; the row groups of a
few shards that follow each other (a pool); the rows of a few row groups that follow each other (a window). A reader that
holds a window reads every row group once per epoch. Row groups without a row to train on are in no window.

Every permutation depends on its name alone (seed, bucket, epoch, numbers of pool and window), so any place of the stream
is found without those before it. Random bits are Philox's (Salmon et al. 2011), which numpy promises to keep; of the
shuffles of its Generator it does not, and a run may go on under a later numpy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from pipelines.train.plan.index import ShardRows

POOL_SHARDS = 4
"""Shards of a pool, at least."""
POOL_WINDOWS = 4
"""Windows of a pool, at least, where the bucket has so many."""


class Rows(NamedTuple):
    """Where clips stand: arrays (N)."""

    shard: np.ndarray
    row_group: np.ndarray
    row: np.ndarray
    """In its row group."""
    epoch: np.ndarray
    """Pass over the bucket."""


class _Epoch(NamedTuple):
    shards: np.ndarray
    """Places in the bucket's list, in this epoch's order."""
    starts: np.ndarray
    """First clip of each pool, and the number of all."""


class _Pool(NamedTuple):
    shard: np.ndarray
    """Of each row group, by address."""
    number: np.ndarray
    """Of each row group, in its shard."""
    begin: np.ndarray
    """Of each row group, where its rows are in ``row``, and the number of all rows."""
    row: np.ndarray
    """Of each clip by address, its place in its row group."""
    order: np.ndarray
    """The row groups in this epoch's order."""
    bounds: np.ndarray
    """Where each window begins in ``order``, and the number of row groups."""
    starts: np.ndarray
    """First clip of each window, counted in the pool, and the number of all."""


class _Window(NamedTuple):
    shard: np.ndarray
    row_group: np.ndarray
    row: np.ndarray
    """Of each clip, by address."""
    order: np.ndarray
    """The clips in this epoch's order."""


class _At(NamedTuple):
    """The window that a place of the stream is in: its places are ``begin`` to ``end``."""

    epoch: int
    pool: int
    window: int
    begin: int
    end: int


class Shuffle:
    """The stream of one bucket."""

    def __init__(self, name: str, rows: Sequence[ShardRows], seed: int, window_groups: int) -> None:
        """``rows`` have clips each; ``window_groups`` are the row groups of a window, about: all of a pool are alike."""
        self._key = (seed, name)
        self._rows, self._window_groups = tuple(rows), window_groups
        self._counts = np.array([part.count for part in rows], np.int64)
        self.clips = int(self._counts.sum())
        wanted = POOL_WINDOWS * window_groups * len(rows)
        self._pool_shards = max(POOL_SHARDS, -(-wanted // sum(part.row_groups for part in rows)))
        # A step uses one or two windows that follow each other, and so do the steps after it.
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._pool = lru_cache(maxsize=2)(self._make_pool)
        self._window = lru_cache(maxsize=4)(self._make_window)

    def rows(self, first: int, count: int, span: tuple[int, int] | None = None) -> Rows:
        """Where the clips of ``count`` places from ``first`` on stand.

        The clips of ``span``, (first, count) of places that these are among, are sorted by address within each window, so
        that parts of it share few row groups. Without it these themselves are.
        """
        begin, length = span or (first, count)
        parts = []
        for at in self._windows(first, first + count):
            window = self._window(at.epoch, at.pool, at.window)
            low = max(at.begin, begin)
            chosen = np.sort(window.order[low - at.begin : min(at.end, begin + length) - at.begin])
            chosen = chosen[max(first, low) - low : first + count - low]
            epochs = np.full(len(chosen), at.epoch, np.int64)
            parts.append(Rows(window.shard[chosen], window.row_group[chosen], window.row[chosen], epochs))
        if len(parts) == 1:
            return parts[0]
        empty = np.zeros(0, np.int64)
        return Rows(*map(np.concatenate, zip(*parts, strict=True))) if parts else Rows(empty, empty, empty, empty)

    def _windows(self, first: int, end: int) -> Iterator[_At]:
        """Those that the places from ``first`` up to ``end`` are in."""
        while first < end:
            epoch, place = divmod(first, self.clips)
            pools = self._epoch(epoch).starts
            pool = int(pools.searchsorted(place, "right")) - 1
            in_pool = int(pools[pool])
            windows = self._pool(epoch, pool).starts
            window = int(windows.searchsorted(place - in_pool, "right")) - 1
            before = epoch * self.clips + in_pool
            at = _At(epoch, pool, window, before + int(windows[window]), before + int(windows[window + 1]))
            yield at
            first = at.end

    def _make_epoch(self, epoch: int) -> _Epoch:
        shards = permutation(len(self._rows), *self._key, epoch)
        pools = np.add.reduceat(self._counts[shards], np.arange(0, len(shards), self._pool_shards))
        return _Epoch(shards, _cumulative(pools))

    def _make_pool(self, epoch: int, pool: int) -> _Pool:
        places = self._epoch(epoch).shards[pool * self._pool_shards : (pool + 1) * self._pool_shards]
        shards, numbers, counts, rows = [], [], [], []
        for part in (self._rows[place] for place in np.sort(places)):
            allowed = np.arange(part.rows) if part.allowed is None else np.flatnonzero(part.mask())
            number, row = np.divmod(allowed, part.row_group_size)
            clips = np.bincount(number)
            kept = np.flatnonzero(clips)
            shards.append(np.full(len(kept), part.shard, np.int64))
            numbers.append(kept)
            counts.append(clips[kept])
            rows.append(row)
        count = np.concatenate(counts)
        order = permutation(len(count), *self._key, epoch, pool)
        windows = -(-len(count) // self._window_groups)
        bounds = np.arange(windows + 1) * len(count) // windows
        starts = _cumulative(np.add.reduceat(count[order], bounds[:-1]))
        return _Pool(
            np.concatenate(shards),
            np.concatenate(numbers),
            _cumulative(count),
            np.concatenate(rows),
            order,
            bounds,
            starts,
        )

    def _make_window(self, epoch: int, pool: int, window: int) -> _Window:
        of = self._pool(epoch, pool)
        groups = np.sort(of.order[of.bounds[window] : of.bounds[window + 1]])
        begin = of.begin[groups]
        counts = of.begin[groups + 1] - begin
        ends = counts.cumsum()
        clips = np.repeat(begin - ends + counts, counts) + np.arange(ends[-1])
        order = permutation(len(clips), *self._key, epoch, pool, window)
        return _Window(np.repeat(of.shard[groups], counts), np.repeat(of.number[groups], counts), of.row[clips], order)


def permutation(n: int, *key: object) -> np.ndarray:
    """The numbers 0..n-1 (int64) in an order that depends on ``key`` alone; n is at most 2^32."""
    text = "\x1f".join(str(part) for part in key)
    words = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), np.uint64)
    # The number itself as the low bits: no two are alike, so that every way of sorting gives the same.
    low = np.uint64((1 << n.bit_length()) - 1)
    marked = (np.random.Philox(key=words).random_raw(n) & ~low) | np.arange(n, dtype=np.uint64)
    return (np.sort(marked) & low).astype(np.int64)


def _cumulative(counts: np.ndarray) -> np.ndarray:
    """0, and the sums of the first 1, 2, … of ``counts``."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
