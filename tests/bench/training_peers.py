"""The peers that tests/bench/training.py compares: processes that train the same clips from the same weights, in turns.

``engine`` is the only rank of a run, as Ray Train would start it, with all that it has: its loader, DeepSpeed, the tally,
the watch, metrics in a file and in MLflow's database. ``bare`` has the batches of the same steps in memory, as tensors, and
does forward, backward, clipping, fused AdamW and the average with them, in plain torch; its losses must be the engine's.
``plain`` is ``bare`` with random numbers as torch draws them, keyed by nothing, and without sums of losses for the log.

``python -m tests.bench.training_peers PEER JOB.json`` trains a turn and answers with a line of JSON; then it does one turn
more for each line that it is given.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from kineograph.cli.recipes import recipe_path
from kineograph.store.loader import Batch
from pipelines.train.costs import keep_costs
from pipelines.train.kinds.base import Kind
from pipelines.train.kinds.diffusion import objective
from pipelines.train.kinds.diffusion.timesteps import Timesteps
from pipelines.train.loading.loading import Loading
from pipelines.train.loop import Worker
from pipelines.train.optimizer import learning_rate
from pipelines.train.plan.plan import Slot, StepPlan
from pipelines.train.registry import load_train_recipe, open_kind
from pipelines.train.tally import Totals


class Turns:
    """This peer's end of its pipes."""

    def __init__(self, steps: int) -> None:
        """``steps`` are those of a turn."""
        self._steps = steps
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever a library prints is no answer
        self._losses: list[float] = []
        self._start()

    def step(self, loss: float) -> None:
        """A step is done. At a turn's last one: tell of it, and wait for the next turn, or end."""
        self._losses.append(loss)
        if len(self._losses) < self._steps:
            return
        wall_s, queued_s, cpu_s = (now - at for now, at in zip(_clocks(), self._at, strict=True))
        answer = {"time": wall_s - queued_s, "wall": wall_s, "cpu": cpu_s, "losses": self._losses}
        print(json.dumps(answer), file=self._answers, flush=True)
        if not sys.stdin.readline():
            raise SystemExit(0)
        self._losses = []
        self._start()

    def _start(self) -> None:
        self._at = _clocks()


def _clocks() -> tuple[float, float, float]:
    """Seconds: of the wall; that this thread was ready and others had the cores; of CPU, all threads of this process."""
    try:
        queued = int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        queued = 0.0
    return time.perf_counter(), queued, time.process_time()


class Rank(Worker):
    """A rank that takes turns."""

    turns: Turns

    def _save_and_look(self, totals: Totals) -> None:
        super()._save_and_look(totals)
        self.turns.step(totals.means["loss"])


class Bare:
    """A loop over batches in memory."""

    def __init__(self, kind: Kind[Any], steps: int) -> None:
        self._kind, self._config = kind, kind.config
        torch.manual_seed(self._config.seed)
        self._model = kind.build()
        kind.start(self._model)
        kind.place(torch.device("cpu"))
        self._batches = _batches(kind, steps)
        self._parameters = list(self._model.parameters())
        adam = self._config.optimizer
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=adam.lr, betas=adam.betas, weight_decay=adam.weight_decay, fused=True
        )
        self._average = [p.detach().clone() for p in self._parameters]

    def train(self, turns: Turns) -> None:
        optimizer, adam = self._optimizer, self._config.optimizer
        for step, (batch, slots, plan) in enumerate(self._batches):
            loss = self._kind.losses(self._model, batch, slots, plan).total.mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._parameters, adam.clip_norm)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, self._config.steps, adam)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                weight = 1 - min(adam.ema_decay, (2 + step) / (11 + step))
                torch._foreach_lerp_(self._average, self._parameters, weight)
            turns.step(loss.item())


def _batches(kind: Kind[Any], steps: int) -> list[tuple[Batch, tuple[Slot, ...], StepPlan]]:
    plans = [kind.plan.step(step) for step in range(steps)]
    slots = [[kind.plan.slots(stretch) for stretch in plan.stretches] for plan in plans]
    with Loading(kind.reader, slots, kind.collate(), kind.config.data, kind.reads_latents) as loading:
        return [(one.batch, one.slots, plan) for one, plan in zip(loading, plans, strict=True)]


def _draw_plainly() -> None:
    """Have losses draw random numbers as they come, and not tell by which timesteps they were."""

    def normal(shape: tuple[int, ...], *_: object) -> Tensor:
        return torch.randn(shape)

    objective.normal = normal  # type: ignore[attr-defined]
    objective.uniform = lambda *_: float(torch.rand(()))  # type: ignore[attr-defined]
    Timesteps.tell = lambda *_: None  # type: ignore[method-assign]


def main(peer: str, job: Path) -> None:
    given = json.loads(job.read_text())
    config, run = load_train_recipe(recipe_path("train", "demo"), given["set"]), Path(given["run"])
    torch.set_num_threads(1)
    kind = open_kind(config, given["data"], run)
    kind.prepare()
    keep_costs(run, kind.costs.model, kind.costs.source)
    turns = Turns(given["turn"])
    if peer == "engine":
        os.environ["LOCAL_RANK"] = "0"
        dist.init_process_group("gloo", init_method=f"file://{run / 'store'}", rank=0, world_size=1)
        rank = Rank(kind.config, run, given["data"])
        rank.turns = turns
        rank.train()
        return
    if peer == "plain":
        _draw_plainly()
    Bare(open_kind(kind.config, given["data"], run, on_rank=True), given["steps"]).train(turns)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
