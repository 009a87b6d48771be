"""The batches of a rank, in the order of its work, read and decoded ahead of the steps that use them.

A thread follows the rank's work: it has row groups read, each once while it is used, and hands the rows of a micro-batch to
a pool that decodes them. A second thread takes what comes back in order, deals with what is damaged, and keeps batches
ready. Nothing here draws a random number, and what is read ahead, by how many, and what is found in a cache changes no
batch.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from kineograph.media.geometry import Bucket
from kineograph.store.loader import ClipDecoder
from kineograph.store.shards import ShardReader
from pipelines.train.loading.config import LoadingConfig
from pipelines.train.loading.decoding import Collate, Done, Job
from pipelines.train.loading.gathering import Asked, ClipCache, Gatherer
from pipelines.train.loading.pool import InThread, Pool, Processes, Stopped
from pipelines.train.loading.row_groups import RowGroups
from pipelines.train.loading.settling import Settler
from pipelines.train.loading.tensors import bytes_of, map_tensors
from pipelines.train.plan.plan import Slot

MIB = 2**20
VIDEO_WORKERS = 2
"""Processes that decode videos, where the recipe does not say."""
_GROWTH = 4
"""A batch takes at most this many times the memory of its decoded clips, until one of its bucket tells: fp32 of bytes."""


@dataclass(frozen=True)
class Loaded:
    """A micro-batch."""

    batch: Any
    """What collate made of its clips; pinned, where the rank computes on a GPU."""
    slots: tuple[Slot, ...]
    """With the ids of their clips."""
    weights: Tensor
    """(B): 1, and 0 for a slot whose clip is damaged, in which another one stands."""
    damaged: tuple[str, ...] = ()
    """A line for each damaged clip that was not met before."""
    wait_s: float = 0.0
    """Seconds that the rank waited for it."""


class Loading(Iterator[Loaded]):
    """Iterate over it, within its ``with`` block, for the micro-batches of ``work`` one after the other.

    An error is raised where the micro-batch that it concerns is due: Failure for a clip that cannot be decoded (unless
    skip_damaged), for a shard that cannot be read, and for a decoding process that died, with its clips.
    """

    def __init__(
        self,
        reader: ShardReader,
        work: Iterable[Sequence[Sequence[Slot]]],
        collate: Collate,
        config: LoadingConfig,
        latents: bool = False,
        device: torch.device | None = None,
    ) -> None:
        """``work`` gives, for each step, the slots of each micro-batch of this rank; a thread iterates over it. ``latents``
        are read of clips, else videos. Batches are pinned where ``device`` is a GPU.

        Raises UserError when the run does not hold what is read.
        """
        decoder = ClipDecoder.of(reader, latents)
        self.config, self._decoder = config, decoder
        self._pin = device if device is not None and device.type == "cuda" else None
        self._work = chain.from_iterable(work)
        self._groups = RowGroups(reader, decoder.columns, config.row_group_cache_mib * MIB)
        self._gatherer = Gatherer(reader, decoder, self._groups, ClipCache(config.cache_mib * MIB))
        self._room = _Room(config.read_ahead, config.read_ahead_mib * MIB)
        self._clip_bytes: dict[Bucket, int] = {}  # of batches, as found
        self._orders: queue.SimpleQueue[tuple[Asked, int, Job, Future[Done]] | BaseException | None] = (
            queue.SimpleQueue()
        )
        self._ready: queue.SimpleQueue[tuple[Loaded, int] | BaseException | None] = queue.SimpleQueue()
        self._end: BaseException | None = None
        self._error_of_work: Exception | None = None
        workers = count_workers(config, reader, decoder)
        self._pool: Pool = (
            Processes(workers, decoder, collate, config.clip_seconds) if workers else InThread(decoder, collate)
        )
        self._settler = Settler(self._gatherer, self._pool, config.skip_damaged, own_memory=not workers)
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for name, target in (("clips ahead", self._ask_ahead), ("batches", self._finish_all))
        ]
        for thread in self._threads:
            thread.start()

    # For the rank.

    def __next__(self) -> Loaded:
        if self._end is not None:
            raise self._end
        began = time.monotonic()
        got = self._ready.get()
        if isinstance(got, tuple):
            loaded, nbytes = got
            self._room.give(nbytes)
            return replace(loaded, wait_s=time.monotonic() - began)
        self._end = got or StopIteration()
        raise self._end

    def __iter__(self) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading; no process is left."""
        self._end = self._end or StopIteration()
        self._room.close()
        self._groups.close()
        self._pool.close()
        for thread in self._threads:
            thread.join(timeout=30.0)  # a place that is far away may take its time to answer

    @property
    def damaged_clips(self) -> int:
        """Clips that were found damaged so far."""
        return len(self._gatherer.damage)

    @property
    def pids(self) -> list[int]:
        """The decoding processes."""
        return self._pool.pids

    # In threads.

    def _ask_ahead(self) -> None:
        """Follow the work as far as there is room, and have what was read decoded."""
        asked: deque[tuple[Asked, int]] = deque()
        try:
            for slots in self._slots():
                nbytes = len(slots) * self._bytes_of_clip(self._gatherer.bucket(slots))
                while not self._room.take(nbytes, wait=not asked):
                    self._order(*asked.popleft())
                asked.append((self._gatherer.ask(slots), nbytes))
                while asked and asked[0][0].is_read:
                    self._order(*asked.popleft())
            while asked:
                self._order(*asked.popleft())
            self._orders.put(self._error_of_work)
        except BaseException as error:  # noqa: BLE001 - raised in the rank, behind the batches before it
            self._orders.put(error)

    def _slots(self) -> Iterator[Sequence[Slot]]:
        """Micro-batches until the work ends, or fails: then its error is due behind those that it gave."""
        try:
            for slots in self._work:
                self._gatherer.bucket(slots)
                yield slots
        except Exception as error:  # noqa: BLE001
            self._error_of_work = error

    def _order(self, asked: Asked, nbytes: int) -> None:
        job = self._gatherer.job(asked, self.config.skip_damaged)
        self._orders.put((asked, nbytes, job, self._pool.submit(job)))

    def _finish_all(self) -> None:
        """Make what comes back ready for the rank."""
        try:
            if self._pin is not None and self._pin.index is not None:
                torch.cuda.set_device(self._pin)  # of this thread, which would else pin memory by way of the first GPU
            while isinstance(order := self._orders.get(), tuple):
                asked, guessed, job, future = order
                settled = self._settler.settle(asked, job, future)
                batch = map_tensors(settled.batch, Tensor.pin_memory) if self._pin else settled.batch
                nbytes = bytes_of(batch)
                self._clip_bytes[asked.bucket] = -(-nbytes // len(job.slots))
                self._room.give(guessed - nbytes, batches=0)
                self._ready.put((Loaded(batch, job.slots, settled.weights, settled.damaged), nbytes))
            self._ready.put(order)
        except BaseException as error:  # noqa: BLE001
            self._ready.put(error)

    def _bytes_of_clip(self, bucket: Bucket) -> int:
        """What a clip takes in a batch."""
        decoded = self._decoder.bytes_of(bucket.frames, bucket.height, bucket.width)
        return self._clip_bytes.get(bucket, _GROWTH * decoded)


class _Room:
    """What may be read ahead: so many batches, and so many bytes, of which one batch may be more."""

    def __init__(self, batches: int, nbytes: int) -> None:
        self._batches, self._bytes, self._used = batches, nbytes, 0
        self._closed = False
        self._changed = threading.Condition()

    def take(self, nbytes: int, wait: bool) -> bool:
        """Take room for a batch if there is any, or ``wait`` for it. Raises Stopped when it was closed."""
        with self._changed:
            while not self._closed:
                if self._batches and (self._used + nbytes <= self._bytes or not self._used):
                    self._batches -= 1
                    self._used += nbytes
                    return True
                if not wait:
                    return False
                self._changed.wait()
        raise Stopped()

    def give(self, nbytes: int, batches: int = 1) -> None:
        """Give room back."""
        with self._changed:
            self._batches += batches
            self._used -= nbytes
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def count_workers(config: LoadingConfig, reader: ShardReader, decoder: ClipDecoder) -> int:
    """Decoding processes that a rank has."""
    if config.workers is not None:
        return config.workers
    shards = [(Bucket.parse(shard.bucket), shard.rows) for shard in reader.manifest.shards]
    decoded = sum(rows * decoder.bytes_of(b.frames, b.height, b.width) for b, rows in shards)
    return 0 if decoder.column == "latent" or decoded <= config.cache_mib * MIB else VIDEO_WORKERS
