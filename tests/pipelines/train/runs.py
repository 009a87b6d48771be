"""Runs of training by ranks that are plain processes, without Ray, and that may be killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from kineograph.store.checkpoints import COMPLETE, checkpoint_folder, list_checkpoints, step_of
from pipelines.train.costs import keep_costs
from pipelines.train.registry import open_kind, parse_train_recipe

STATE = ("model", "ema", "optimizer")
"""Files of a checkpoint that training goes on from."""
_ranks = multiprocessing.get_context("forkserver")
_ranks.set_forkserver_preload(["pipelines.train.loop", "pipelines.train.kinds.diffusion.kind", "deepspeed", "mlflow"])


class RankFailed(Exception):
    """What the ranks that failed wrote to stderr."""


class Run:
    """A run in ``folder`` by ``recipe`` on ``data``."""

    def __init__(self, folder: Path, recipe: dict[str, Any], data: Path) -> None:
        self.folder, self.path, self.data = folder, folder / "train", data
        self._recipe, self._starts = recipe, 0
        self.path.mkdir(parents=True)
        kind = self.kind()
        kind.prepare()
        keep_costs(self.path, kind.costs.model, kind.costs.source)

    def kind(self, **parts: Any) -> Any:
        """The kind that it trains, with ``parts`` of the recipe changed."""
        return open_kind(parse_train_recipe({**self._recipe, **parts}), str(self.data), self.path)

    def train(
        self, world: int = 2, kill_at: int | None = None, ill: Callable[[], None] | None = None, **parts: Any
    ) -> Run:
        """Start ``world`` ranks, with ``parts`` of the recipe changed, and wait until they are done; or SIGKILL them all
        when a checkpoint of ``kill_at`` steps or more is complete. ``ill`` is done by each of them first.

        Raises RankFailed.
        """
        kind = self.kind(**parts, workers={"count": world})
        job = {"config": kind.config.model_dump(mode="json"), "run": str(self.path), "data": str(self.data)}
        self._starts += 1
        place = self.folder / str(self._starts)
        place.mkdir()
        ranks = [_ranks.Process(target=_rank, args=(rank, world, place, job, ill)) for rank in range(world)]
        for rank in ranks:
            rank.start()
        try:
            while any(rank.is_alive() for rank in ranks) and not (kill_at and self.saved() >= kill_at):
                time.sleep(0.005)
                if any(rank.exitcode for rank in ranks):
                    for rank in ranks:
                        rank.join(30)
            codes = [rank.exitcode for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
                rank.join()
        if any(codes):
            raise RankFailed(f"exit codes {codes}: {self.log}")
        return self

    @property
    def log(self) -> str:
        """What the ranks wrote to stderr since they were last started."""
        return "".join(path.read_text() for path in sorted((self.folder / str(self._starts)).glob("stderr-*")))

    def steps(self) -> list[int]:
        """Of the complete checkpoints."""
        return [step_of(folder) for folder in list_checkpoints(self.path) if (folder / COMPLETE).exists()]

    def saved(self) -> int:
        """The last of them."""
        return max(self.steps(), default=0)

    def rows(self) -> list[dict[str, Any]]:
        """Its metrics."""
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]

    def column(self, name: str) -> list[Any]:
        """A metric of every step."""
        return [row[name] for row in self.rows()]

    def state(self, step: int | None = None) -> dict[str, torch.Tensor]:
        """All that the checkpoint of ``step``, the last one by default, keeps of training."""
        folder = checkpoint_folder(self.path, self.saved() if step is None else step)
        return {f"{file}/{n}": t for file in STATE for n, t in load_file(folder / f"{file}.safetensors").items()}


def differing(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> set[str]:
    """Names of tensors that are not the same to the bit."""
    same = {name for name in ours.keys() & theirs.keys() if torch.equal(ours[name], theirs[name])}
    return (ours.keys() | theirs.keys()) - same


def not_finite_after(step: int, rank: int) -> Callable[[], None]:
    """An ill: the losses of ``rank`` are no numbers in the step after so many."""
    return partial(_spoil_losses, step, rank)


def dies_saving(step: int) -> Callable[[], None]:
    """An ill: the process that saves the checkpoint of ``step`` is killed before it is marked as complete."""
    return partial(_die_saving, step)


def _spoil_losses(step: int, rank: int) -> None:
    from pipelines.train.kinds.diffusion.kind import DiffusionKind

    losses = DiffusionKind.losses

    def spoilt(kind: Any, model: Any, batch: Any, slots: Any, plan: Any) -> Any:
        found = losses(kind, model, batch, slots, plan)
        is_ill = plan.step == step and torch.distributed.get_rank() == rank
        return replace(found, total=found.total * float("nan")) if is_ill else found

    DiffusionKind.losses = spoilt  # type: ignore[method-assign]


def _die_saving(step: int) -> None:
    from pipelines.train.saving import state

    seal = state.seal

    def die(folder: Path) -> None:
        if step_of(folder) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        seal(folder)

    state.seal = die


def _rank(rank: int, world: int, place: Path, job: dict[str, Any], ill: Callable[[], None] | None) -> None:
    os.dup2(os.open(place / f"stderr-{rank}", os.O_CREAT | os.O_WRONLY, 0o644), 2)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{place}/rendezvous", rank=rank, world_size=world, timeout=timedelta(seconds=100)
    )
    from pipelines.train.loop import train_worker

    if ill is not None:
        ill()
    train_worker(job)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
