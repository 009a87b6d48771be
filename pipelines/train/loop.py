"""What every training worker does: load, next, step, save, look."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from kineograph.diffusion.random import seed_of
from kineograph.errors import Failure
from kineograph.store.checkpoints import latest_checkpoint
from pipelines.train.checkpoint import Average, TrainState, load_state, save_state
from pipelines.train.config import TrainConfig
from pipelines.train.engine import Engine, learning_rate
from pipelines.train.kinds.base import Losses, OnDevice, checkpoint_config
from pipelines.train.observer import Observer
from pipelines.train.plan import StepPlan
from pipelines.train.prefetch import ahead
from pipelines.train.registry import open_kind, parse_train_recipe


def train_worker(job: dict[str, Any]) -> None:
    """Train from the last checkpoint of ``job["run"]`` to the last step. torch.distributed must be up.

    ``job``: config (a dumped recipe), run, data. Every rank runs this; rank 0 also saves and observes.
    """
    Worker(parse_train_recipe(job["config"]), Path(job["run"]), Path(job["data"])).train()


class Worker:
    """The state of one rank."""

    def __init__(self, config: TrainConfig, run: Path, data: Path) -> None:
        self.config, self.run = config, run
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        torch.set_num_threads(max(1, int(config.workers.cpus)))
        state = self._last_state()
        self.step = state.step if state else 0
        self.kind = open_kind(config, data, run, on_rank=True)
        torch.manual_seed(config.seed)
        model = self.kind.build()
        if state is None:
            self.kind.start(model)
        self.engine = Engine(model, config)
        self.kind.place(self.engine.device)
        self.average = Average(self.engine.module, config.optimizer.ema_decay)
        if state is not None:
            self.engine.load(state.weights, state.moments, state.step)
            self.average.load(state.ema)
            self.kind.load_extra(state.extra)

    def train(self) -> None:
        observer = Observer(self.kind, self.step) if self.rank == 0 else None
        plans = (self.kind.dataset.plan.step(s) for s in range(self.step, self.config.steps))
        waiting = time.perf_counter()
        try:
            for plan, batch in ahead(plans, self._load):
                started = time.perf_counter()
                metrics = self._train_step(plan, batch)
                self.step += 1
                self.average.update(self.engine.module, self.step)
                if observer:
                    observer.after_step(plan, metrics, time.perf_counter() - waiting, started - waiting)
                self._save_if_due(observer)
                if observer:
                    observer.look_if_due(self.step, self.average)
                waiting = time.perf_counter()
        except BaseException:
            if observer:
                observer.close("FAILED")
            raise
        if observer:
            observer.close("FINISHED")

    def _load(self, plan: StepPlan) -> OnDevice:
        return self.kind.load(plan.of_rank(self.rank, self.world))

    def _train_step(self, plan: StepPlan, batch: OnDevice) -> dict[str, float]:
        """One optimizer step. Returns means over the global batch, and the gradient's norm."""
        config = self.config
        slots = plan.of_rank(self.rank, self.world)
        torch.manual_seed(seed_of(config.seed, self.step, self.rank, "model"))  # of what it draws itself: dropout
        losses = self.kind.losses(self.engine, batch.to(self.engine.device), slots, plan)
        metrics = _global_means(losses, len(plan.slots))
        if not math.isfinite(metrics["loss"]):
            raise Failure(
                f"the loss is {metrics['loss']} at step {self.step}: lower optimizer.lr and run the same command again"
            )
        # DeepSpeed averages gradients over ranks; ours are parts of a mean over all slots and are to be added.
        local = losses.total.sum() / len(plan.slots)
        rate = learning_rate(self.step, config.steps, config.optimizer)
        return {**metrics, "gradient_norm": self.engine.step(local * self.world, rate)}

    def _save_if_due(self, observer: Observer | None) -> None:
        if self.step % self.config.checkpoint.every and self.step != self.config.steps:
            return
        weights, moments = self.engine.weights(), self.engine.optimizer_state()  # every rank takes part
        if observer:
            state = TrainState(self.step, weights, self.average.state(), moments, self.kind.extra_state())
            config = checkpoint_config(self.kind, observer.mlflow)
            folder = save_state(self.run, state, config, self.kind.folders(), self.config.checkpoint.keep)
            observer.saved(folder)

    def _last_state(self) -> TrainState | None:
        """What is in the checkpoint that rank 0 chose; None on a start from nothing."""
        chosen: list[Path | None] = [latest_checkpoint(self.run) if self.rank == 0 else None]
        dist.broadcast_object_list(chosen, src=0)
        return load_state(chosen[0]) if chosen[0] is not None else None


def _global_means(losses: Losses, slots: int) -> dict[str, float]:
    """Means over all ``slots`` of a step of the loss and its parts; every rank must call it."""
    rows = {"loss": losses.total, **losses.parts}
    sums = torch.stack([row.detach().float().sum() for row in rows.values()])
    dist.all_reduce(sums)
    return dict(zip(rows, (sums / slots).tolist(), strict=True))
