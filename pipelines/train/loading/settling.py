"""What becomes of a micro-batch in the end: damaged clips are named and others stand in; processes may have died."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kineograph.errors import Failure
from kineograph.store.shards import RowAddress
from pipelines.train.loading.decoding import Done, Job
from pipelines.train.loading.gathering import Asked, Gatherer
from pipelines.train.loading.pool import Pool, WorkerDied

_TOGETHER = 3
"""A micro-batch that ends its process this often, and none of its clips alone, is given up."""
_NAMED = 8
"""Clips that an error names, at most."""


@dataclass(frozen=True)
class Settled:
    """A micro-batch that can be trained on."""

    batch: Any
    weights: Tensor
    """(B): 0 where another clip stands in, else 1."""
    damaged: tuple[str, ...]
    """A line for each damaged clip that was not met before."""


class Settler:
    """Settles the micro-batches of a rank in their order."""

    def __init__(self, gatherer: Gatherer, pool: Pool, skip_damaged: bool, own_memory: bool) -> None:
        """``own_memory``: whether decoded clips come in memory of their own, and not together with their batch."""
        self._gatherer, self._pool = gatherer, pool
        self._skip_damaged, self._own_memory = skip_damaged, own_memory
        self._told: set[RowAddress] = set()

    def settle(self, asked: Asked, job: Job, future: Future[Done]) -> Settled:
        """The micro-batch that ``future`` makes. Raises Failure that names a clip."""
        job, done = self._done(asked, job, future)
        for number, clip in done.decoded.items():
            self._gatherer.cache.add(asked.addresses[number], clip if self._own_memory else clip.copy())
        self._note(asked, job, done.damaged)
        bad = job.damaged | done.damaged.keys()
        weights = torch.tensor([0.0 if number in bad else 1.0 for number in job.clips])
        lines = []
        for number in sorted(bad):
            address = asked.addresses[number]
            if address not in self._told:
                self._told.add(address)
                lines.append(f"{self._line(asked, job, number)}; another one stands in for it")
        batch = done.batch if done.batch is not None else self._with_spare(asked, replace(job, damaged=frozenset(bad)))
        return Settled(batch, weights, tuple(lines))

    def _done(self, asked: Asked, job: Job, future: Future[Done]) -> tuple[Job, Done]:
        """The job as it was done at last. Clips that end a process are left out of it, where that is asked for."""
        for _ in range(_TOGETHER):
            try:
                return job, future.result()
            except WorkerDied as death:
                if not self._skip_damaged:
                    raise Failure(self._obituary(asked, job, death)) from death
                died = death
            self._note(asked, job, self._one_by_one(job))
            job = replace(job, damaged=job.damaged | self._numbers_damaged(asked))
            future = self._pool.submit(job)
        raise Failure(f"{self._obituary(asked, job, died)}; each alone is decoded well") from died

    def _one_by_one(self, job: Job) -> dict[int, str]:
        """The clips of a job that end a process or cannot be decoded."""
        damaged: dict[int, str] = {}
        for number in job.of_rows:
            if number not in job.damaged:
                try:
                    damaged |= self._pool.submit(job.part(number)).result().damaged
                except WorkerDied as death:
                    damaged[number] = f"a decoding process {death.how} at it"
        return damaged

    def _with_spare(self, asked: Asked, job: Job) -> Any:
        """A batch of a job all whose clips are damaged, of another clip of the bucket."""
        for with_spares in self._gatherer.with_spares(asked, job):
            try:
                batch = self._pool.submit(with_spares).result().batch
            except WorkerDied:
                continue
            if batch is not None:
                return batch
        raise Failure(f"no clip of {asked.bucket.name} can be decoded: curate again")

    def _note(self, asked: Asked, job: Job, damaged: dict[int, str]) -> None:
        """Remember damaged clips. Raises Failure unless they are to be skipped."""
        for number, reason in damaged.items():
            self._gatherer.damage.setdefault(asked.addresses[number], reason)
            if not self._skip_damaged:
                line = self._line(asked, job, number)
                raise Failure(f"{line}; curate again, or leave such clips out with data.skip_damaged=true")

    def _numbers_damaged(self, asked: Asked) -> frozenset[int]:
        return frozenset(n for n, address in enumerate(asked.addresses) if address in self._gatherer.damage)

    def _line(self, asked: Asked, job: Job, number: int) -> str:
        address = asked.addresses[number]
        return f"clip {self._name(asked, job, number)} is damaged: {self._gatherer.damage[address]}"

    def _name(self, asked: Asked, job: Job, number: int) -> str:
        clip_id = next(slot.clip_id for slot, clip in zip(job.slots, job.clips, strict=True) if clip == number)
        return f"{clip_id} of {self._gatherer.shard(asked.addresses[number])}"

    def _obituary(self, asked: Asked, job: Job, death: WorkerDied) -> str:
        """One line about a process that died with a job."""
        numbers = [death.clip] if death.clip is not None else list(dict.fromkeys(job.clips))
        names = ", ".join(self._name(asked, job, number) for number in numbers[:_NAMED])
        more = f" and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else ""
        return (
            f"a decoding process {death.how} at clip {names}{more}: lower data.workers where memory ran out, or leave out "
            "clips that end a process with data.skip_damaged=true"
        )
