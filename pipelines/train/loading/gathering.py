"""From slots of the plan to jobs: where their clips stand, what is known of them already, the rows of the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import pyarrow as pa

from kineograph.media.geometry import Bucket
from kineograph.store.loader import ClipDecoder, LoadedClip
from kineograph.store.shards import DamagedShard, RowAddress, ShardReader
from pipelines.train.loading.decoding import Job
from pipelines.train.loading.row_groups import Key, RowGroups
from pipelines.train.plan.plan import Slot


class ClipCache:
    """Decoded clips by address. The first ones that fit stay: of clips that come in turn, the last used is not the next."""

    def __init__(self, most_bytes: int) -> None:
        self._room = most_bytes
        self._clips: dict[RowAddress, LoadedClip] = {}

    def get(self, address: RowAddress) -> LoadedClip | None:
        return self._clips.get(address)

    def has_room(self, nbytes: int) -> bool:
        return nbytes <= self._room

    def add(self, address: RowAddress, clip: LoadedClip) -> None:
        """Keep a clip if it fits; it must lie in memory of its own."""
        if address not in self._clips and self.has_room(clip.nbytes):
            self._room -= clip.nbytes
            self._clips[address] = clip


@dataclass(frozen=True)
class Asked:
    """A micro-batch whose row groups are being read."""

    slots: tuple[Slot, ...]
    bucket: Bucket
    addresses: tuple[RowAddress, ...]
    """Of its clips, each once; their place here is their number in the job."""
    known: dict[int, LoadedClip]
    """Clips that are decoded already."""
    missing: dict[Key, list[int]]
    """The others, by row group."""
    groups: dict[Key, Future[pa.Table]]
    """Where their rows are."""

    @property
    def is_read(self) -> bool:
        return all(group.done() for group in self.groups.values())


class Gatherer:
    """Makes the jobs of a rank."""

    def __init__(self, reader: ShardReader, decoder: ClipDecoder, groups: RowGroups, cache: ClipCache) -> None:
        self._reader, self._decoder, self._groups, self.cache = reader, decoder, groups, cache
        self._buckets = [Bucket.parse(shard.bucket) for shard in reader.manifest.shards]
        self.damage: dict[RowAddress, str] = {}
        """Clips that cannot be decoded, and why. They are not tried again."""

    def bucket(self, slots: Sequence[Slot]) -> Bucket:
        """That of the clips of a micro-batch. Raises ValueError when they are not of one."""
        buckets = {self._buckets[slot.address.shard] for slot in slots}
        if len(buckets) != 1:
            raise ValueError(f"a micro-batch is of one bucket, not of {sorted(b.name for b in buckets) or 'none'}")
        return buckets.pop()

    def ask(self, slots: Sequence[Slot]) -> Asked:
        """Begin to read what a micro-batch needs."""
        addresses = tuple(dict.fromkeys(slot.address for slot in slots))
        known = {number: clip for number, a in enumerate(addresses) if (clip := self.cache.get(a)) is not None}
        missing: dict[Key, list[int]] = {}
        for number, address in enumerate(addresses):
            if number not in known:
                missing.setdefault((address.shard, address.row_group), []).append(number)
        groups = {key: self._groups.ask(key) for key in missing}
        return Asked(tuple(slots), self.bucket(slots), addresses, known, missing, groups)

    def job(self, asked: Asked, skip_damaged: bool) -> Job:
        """The job of a micro-batch; waits for its row groups, and lets go of them.

        Clips whose row group is damaged are noted as such, where they are to be skipped, else raises DamagedShard. Raises
        Failure when a shard cannot be read.
        """
        ids = {number: clip.clip_id for number, clip in asked.known.items()}
        tables, of_rows = [], []
        for key, numbers in asked.missing.items():
            wanted = {number: asked.addresses[number] for number in numbers}
            try:
                table = self._take(asked.groups.pop(key).result(), list(wanted.values()))
            except DamagedShard as error:
                if not skip_damaged:
                    raise
                self.damage |= dict.fromkeys(wanted.values(), str(error))
                ids |= {number: self.place(address) for number, address in wanted.items()}
                continue
            tables.append(table)
            of_rows += numbers
            ids |= {
                n: _text(value) or self.place(a) for (n, a), value in zip(wanted.items(), table["clip_id"], strict=True)
            }
        number_of = {address: number for number, address in enumerate(asked.addresses)}
        return Job(
            slots=tuple(replace(slot, clip_id=ids[number_of[slot.address]]) for slot in asked.slots),
            clips=tuple(number_of[slot.address] for slot in asked.slots),
            rows=pa.concat_tables(tables).combine_chunks() if tables else pa.table({}),
            of_rows=tuple(of_rows),
            known=asked.known,
            damaged=frozenset(n for n, address in enumerate(asked.addresses) if address in self.damage),
            keep=bool(of_rows)
            and self.cache.has_room(
                self._decoder.bytes_of(asked.bucket.frames, asked.bucket.height, asked.bucket.width)
            ),
        )

    def with_spares(self, asked: Asked, job: Job) -> Iterator[Job]:
        """``job``, all whose clips are damaged, with further clips of its bucket: those behind its own, a row group at a
        time, until all of the bucket have come."""
        first = asked.addresses[0]
        shards = [number for number, bucket in enumerate(self._buckets) if bucket == asked.bucket]
        at = shards.index(first.shard)
        for shard in shards[at:] + shards[:at]:
            groups = -(-self._reader.manifest.shards[shard].rows // self._reader.row_group_size(shard))
            begin = first.row_group if shard == first.shard else 0
            for group in (*range(begin, groups), *range(begin)):
                try:
                    table = self._groups.ask((shard, group)).result()
                except DamagedShard:
                    continue
                rows = [row for row in range(table.num_rows) if RowAddress(shard, group, row) not in self.damage]
                numbers = range(len(asked.addresses), len(asked.addresses) + len(rows))
                if rows:
                    yield replace(job, rows=table.take(rows), of_rows=tuple(numbers), keep=False)

    def place(self, address: RowAddress) -> str:
        """What to call a clip whose id is not known."""
        return f"in row {self._reader.row_number(address)}"

    def shard(self, address: RowAddress) -> str:
        """The name of its shard."""
        return self._reader.manifest.shards[address.shard].path

    def _take(self, table: pa.Table, addresses: Sequence[RowAddress]) -> pa.Table:
        rows = [address.row for address in addresses]
        if max(rows) >= table.num_rows:
            address = addresses[0]
            raise DamagedShard(
                f"{self.shard(address)} has {table.num_rows} rows in row group {address.row_group}: curate again"
            )
        return table.take(rows)


def _text(value: pa.Scalar) -> str:
    """A clip's id; "" where it is none."""
    try:
        return value.as_py() or ""
    except UnicodeDecodeError:
        return ""
