"""Which clips are held out of training: a pure function of their source, so that every pipeline agrees.

Clips are taken by the order of their ids where not all that are held out are used, so that training and evaluation of a
run look at the same ones. The shards' id columns are read one shard after another, and of the clips that are trained on
no more is kept than a bit.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kineograph.media.geometry import Bucket
from kineograph.progress import Progress
from kineograph.store.shards import ClipEntry, ShardReader

Choose = Callable[[int, pa.Table], np.ndarray]
"""Number of a shard and columns of all its rows, to the rows (bool) that can be used at all."""

_AT_ONCE = 8
"""Shards whose ids are asked for at once: a place that is far away takes long to answer, and can answer many."""
_MANY = 200_000
"""Clips in a folder of this machine whose ids take some seconds to read; it is said how far it is."""


@dataclass(frozen=True)
class Selection:
    """The clips of a run, split."""

    training: tuple[np.ndarray | None, ...]
    """Of each shard the rows that may be trained on, a bit each (np.packbits); None where all may."""
    held_out: dict[Bucket, list[ClipEntry]]
    """By bucket, sorted, clips that are not trained on, by clip_id; not more of each than was asked for."""
    trained: dict[Bucket, int]
    """How many clips may be trained on; 0 in a bucket all whose clips are held out or cannot be used."""
    kept_back: dict[Bucket, int]
    """How many clips are held out, also those that are not in :attr:`held_out`."""

    def mask(self, shard: int, rows: int) -> np.ndarray:
        """The rows (bool) of a shard that may be trained on."""
        bits = self.training[shard]
        return np.ones(rows, bool) if bits is None else np.unpackbits(bits, count=rows).astype(bool)


def select_clips(
    reader: ShardReader, share: float, most: int, choose: Choose | None = None, columns: Sequence[str] = ()
) -> Selection:
    """Split the clips of a run. Whole sources are held out, ``share`` (0..1) of them, chosen by a hash of their id alone.

    Of each bucket the first ``most`` held-out clips are named. ``choose`` is given ``columns``; the rows that it does not
    take are in neither part. Raises Failure when a shard cannot be read.
    """
    shards = reader.manifest.shards
    training: list[np.ndarray | None] = []
    trained, kept_back = Counter[Bucket](), Counter[Bucket]()
    named: dict[Bucket, pa.Table] = {}
    for number, table in _tables(reader, ["clip_id", "source_id", *columns]):
        bucket = Bucket.parse(shards[number].bucket)
        out = _held_out(table["source_id"], share)
        taken = ~out
        if choose is not None:
            usable = choose(number, table)
            out, taken = out & usable, taken & usable
        training.append(None if taken.all() else np.packbits(taken))
        trained[bucket] += int(taken.sum())
        kept_back[bucket] += int(out.sum())
        if out.any():
            rows = np.flatnonzero(out)
            found = table.select(["clip_id", "source_id"]).take(rows)
            found = found.append_column("shard", pa.array(np.full(len(rows), number))).append_column(
                "row", pa.array(rows)
            )
            named[bucket] = _first(pa.concat_tables([named[bucket], found] if bucket in named else [found]), most)
    held_out = {bucket: _entries(reader, bucket, named[bucket]) for bucket in sorted(named) if most}
    return Selection(tuple(training), held_out, dict(trained), dict(kept_back))


def held_out_clips(
    reader: ShardReader, share: float, most: int, choose: Choose | None = None, columns: Sequence[str] = ()
) -> dict[Bucket, list[ClipEntry]]:
    """The first ``most`` held-out clips of each bucket that has any, as :func:`select_clips` chooses them."""
    return select_clips(reader, share, most, choose, columns).held_out


def split_validation(clips: Sequence[ClipEntry], share: float) -> tuple[list[ClipEntry], list[ClipEntry]]:
    """(training, validation) clips, as :func:`select_clips` splits them."""
    held_out = [_is_held_out(c.source_id, share) for c in clips]
    return (
        [c for c, out in zip(clips, held_out, strict=True) if not out],
        [c for c, out in zip(clips, held_out, strict=True) if out],
    )


def _tables(reader: ShardReader, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
    """``columns`` of every shard in the order of the manifest; aloud, where it takes long."""
    names, shards, remote = list(dict.fromkeys(columns)), reader.manifest.shards, reader.place.is_remote
    clips = sum(shard.rows for shard in shards)
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(_AT_ONCE if remote else 1, "ids"))
        stack.callback(threads.shutdown, cancel_futures=True)
        progress = None
        if clips > (_MANY if not remote else _MANY // 10):
            progress = stack.enter_context(Progress("reading ids", clips, "clips"))
        asked: deque[Future[pa.Table]] = deque()
        for number in range(len(shards) + _AT_ONCE):
            if number < len(shards):
                asked.append(threads.submit(reader.columns, number, names))
            if number >= _AT_ONCE:
                yield number - _AT_ONCE, asked.popleft().result()
                if progress is not None:
                    progress.update(shards[number - _AT_ONCE].rows)


def _held_out(source_ids: pa.ChunkedArray, share: float) -> np.ndarray:
    """Which rows (bool) are held out; a source is hashed once."""
    encoded = pc.dictionary_encode(source_ids.combine_chunks())
    sources = np.array([_is_held_out(source, share) for source in encoded.dictionary.to_pylist()], bool)
    return sources[encoded.indices.to_numpy()]


def _is_held_out(source_id: str, share: float) -> bool:
    return _source_share(source_id) < share


@lru_cache(maxsize=1 << 16)
def _source_share(source_id: str) -> float:
    return int.from_bytes(hashlib.blake2b(source_id.encode(), digest_size=4).digest(), "big") / 2**32


def _first(clips: pa.Table, most: int) -> pa.Table:
    return clips.take(
        pc.sort_indices(clips, [("clip_id", "ascending"), ("shard", "ascending"), ("row", "ascending")])[:most]
    )


def _entries(reader: ShardReader, bucket: Bucket, clips: pa.Table) -> list[ClipEntry]:
    return [
        ClipEntry(row["clip_id"], row["source_id"], bucket.name, reader.address(row["shard"], row["row"]))
        for row in clips.to_pylist()
    ]
