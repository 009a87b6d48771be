"""What every training worker does: load, next, step, save, look."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from kineograph.config import parse_config
from kineograph.errors import Failure
from kineograph.store.checkpoints import latest_checkpoint
from kineograph.store.loader import Batch, ClipLoader
from pipelines.train.checkpoint import Average, TrainState, load_state, save_state
from pipelines.train.config import TrainConfig
from pipelines.train.engine import Engine, learning_rate
from pipelines.train.objective import slot_losses
from pipelines.train.observer import Observer
from pipelines.train.plan import StepPlan
from pipelines.train.prefetch import ahead
from pipelines.train.setup import build_model, checkpoint_config, load_vae, open_dataset


def train_worker(job: dict[str, Any]) -> None:
    """Train from the last checkpoint of ``job["run"]`` to the last step. torch.distributed must be up.

    ``job``: config (a dumped TrainConfig), run, data. Every rank runs this; rank 0 also saves and observes.
    """
    Worker(parse_config(job["config"], TrainConfig), Path(job["run"]), Path(job["data"])).train()


class Worker:
    """The state of one rank."""

    def __init__(self, config: TrainConfig, run: Path, data: Path) -> None:
        self.config, self.run = config, run
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        torch.set_num_threads(max(1, int(config.workers.cpus)))
        self.dataset = open_dataset(config, data)
        cache_bytes = config.data.cache_mib * 2**20
        self.loader = ClipLoader(self.dataset.reader, cache_bytes, latents=self.dataset.from_latents)
        model = build_model(config, self.dataset)
        self.engine = Engine(model, config)
        self.vae = load_vae(run, config).to(self.engine.device)
        self.average = Average(self.engine.module, config.optimizer.ema_decay)
        self.step = self._resume()

    def train(self) -> None:
        config = self.config
        observer = Observer(self.run, config, self.dataset, self.step) if self.rank == 0 else None
        plans = (self.dataset.plan.step(s) for s in range(self.step, config.steps))
        waiting = time.perf_counter()
        try:
            for plan, batch in ahead(plans, self._load):
                started = time.perf_counter()
                loss, gradient_norm = self._train_step(plan, batch)
                self.step += 1
                self.average.update(self.engine.module, self.step)
                if observer:
                    took, waited = time.perf_counter() - waiting, started - waiting
                    observer.after_step(plan, batch, loss, gradient_norm, took, waited)
                self._save_if_due(observer)
                if observer:
                    observer.look_if_due(self.step, self.average, self.vae)
                waiting = time.perf_counter()
        except BaseException:
            if observer:
                observer.close("FAILED")
            raise
        if observer:
            observer.close("FINISHED")

    def _load(self, plan: StepPlan) -> Batch:
        return self.loader.batch([slot.clip for slot in plan.of_rank(self.rank, self.world)])

    def _train_step(self, plan: StepPlan, batch: Batch) -> tuple[float, float]:
        """One optimizer step. Returns the mean loss over the global batch and the gradient's norm."""
        config = self.config
        batch = batch.to(self.engine.device)
        with torch.no_grad():
            latents = batch.latents(self.vae)
        slots = plan.of_rank(self.rank, self.world)
        local = slot_losses(self.engine, batch, latents, slots, config).sum() / len(plan.slots)
        total = local.detach().clone()
        dist.all_reduce(total)
        loss = float(total)
        if not math.isfinite(loss):
            raise Failure(f"the loss is {loss} at step {self.step}: lower optimizer.lr and run the same command again")
        # DeepSpeed averages gradients over ranks; ours are parts of a mean over all slots and are to be added.
        gradient_norm = self.engine.step(local * self.world, learning_rate(self.step, config.steps, config.optimizer))
        return loss, gradient_norm

    def _save_if_due(self, observer: Observer | None) -> None:
        if self.step % self.config.checkpoint.every and self.step != self.config.steps:
            return
        moments = self.engine.optimizer_state()  # every rank takes part
        if observer:
            config = checkpoint_config(self.config, self.dataset, observer.mlflow)
            state = TrainState(self.step, self.engine.module.state_dict(), self.average.state(), moments)
            folder = save_state(self.run, state, self.vae.state_dict(), config, self.config.checkpoint.keep)
            observer.saved(folder)

    def _resume(self) -> int:
        """Load the checkpoint that rank 0 chose; returns the steps that are done."""
        chosen: list[Path | None] = [latest_checkpoint(self.run) if self.rank == 0 else None]
        dist.broadcast_object_list(chosen, src=0)
        if chosen[0] is None:
            return 0
        state = load_state(chosen[0])
        self.engine.load(state.weights, state.moments, state.step)
        self.average.load(state.ema)
        return state.step
