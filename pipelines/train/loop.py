"""What every training worker does: load, next, step, save, look."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from kineograph.diffusion.random import seed_of
from kineograph.models.execution import prepare
from kineograph.models.sequence import sequence_groups
from kineograph.progress import say
from kineograph.store.checkpoints import latest_checkpoint
from pipelines.train.average import Average
from pipelines.train.config import TrainConfig
from pipelines.train.engine import Engine, Update
from pipelines.train.loading.loading import Loaded, Loading
from pipelines.train.observer import StepFacts
from pipelines.train.optimizer import learning_rate
from pipelines.train.plan.deal import Deal, MicroBatch, deal
from pipelines.train.plan.plan import Slot, StepPlan
from pipelines.train.profile import profiled
from pipelines.train.registry import open_kind, parse_train_recipe
from pipelines.train.saving.state import TrainState, load_state
from pipelines.train.sight import Sight
from pipelines.train.tally import Tally, Totals
from pipelines.train.watch.hang import Beat

ADAPTED = "average"
"""Name in checkpoints of the average of an adapted model, beside that of the plain one."""


def train_worker(job: dict[str, Any]) -> None:
    """Train from the last checkpoint of ``job["run"]`` to the last step. torch.distributed must be up.

    ``job``: config (a dumped recipe), run, data. Every rank runs this; rank 0 also saves and looks.
    """
    Worker(parse_train_recipe(job["config"]), Path(job["run"]), job["data"]).train()


class Work(NamedTuple):
    """A step, and this rank's part of it."""

    plan: StepPlan
    deal: Deal
    micro_batches: Sequence[MicroBatch]


class Worker:
    """The state of one rank."""

    def __init__(self, config: TrainConfig, run: Path, data: str) -> None:
        self.config, self.run = config, run
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.copies = config.workers.sequence_parallel
        """Ranks that share a clip."""
        torch.set_num_threads(max(1, int(config.workers.cpus)))
        state = self._last_state()
        self.step = state.step if state else 0
        self.kind = open_kind(config, data, run, on_rank=True)
        torch.manual_seed(config.seed)
        model = self.kind.build()
        if state is None:
            self.kind.start(model)
        self.kind.adapt(model)
        if self.copies > 1:
            self.kind.share_tokens(
                model, sequence_groups(self.world, self.copies, timedelta(seconds=config.workers.collective_timeout_s))
            )
        prepare(model, config.execution)
        self.engine = Engine(model, config.optimizer, config.deepspeed, config.precision)
        self.kind.place(self.engine.device)
        self.average = Average(self.engine, config.optimizer.ema_decay)
        if state is not None:
            self.engine.load(state.weights, state.moments)
            self.average.load(state.extra.get(ADAPTED, state.ema))
            self.kind.load_extra(state.extra)
        self._works: queue.SimpleQueue[Work] = queue.SimpleQueue()
        self._sight: Sight | None = None

    def train(self) -> None:
        """Go through the steps that are left, or until the run is asked to stop."""
        if self.rank == 0:
            self._sight = Sight(self.kind, self.step, self.world)
        status = "FAILED"
        try:
            with Beat(self.run, self.config.workers) as self._beat, self._loading() as loading:
                status = self._walk(loading)
        finally:
            if self._sight:
                self._sight.close(status, self.step)

    def _walk(self, loading: Loading) -> str:
        began = time.perf_counter()
        for first in loading:
            work = self._works.get()
            with profiled(self.run, self.step, self.config.tracking.profile, self.rank):
                loaded = [first, *islice(loading, len(work.micro_batches) - 1)]
                totals, update, lr = self._train_step(work, loaded)
            self.step += 1
            for one in loaded:
                for line in one.damaged:
                    say(line)
            if self._sight:
                waited = sum(one.wait_s for one in loaded)
                took = time.perf_counter() - began
                self._sight.after_step(self._facts(work, totals, update, lr, took, waited))
            self._save_and_look(totals)
            if "stop" in totals.flags:
                return "KILLED"
            began = time.perf_counter()
        return "FINISHED"

    # A step.

    def _train_step(self, work: Work, loaded: Sequence[Loaded]) -> tuple[Totals, Update, float]:
        """Forward and backward of this rank's micro-batches, and one update over all ranks."""
        config = self.config
        torch.manual_seed(seed_of(config.seed, self.step, self.rank // self.copies, "model"))  # of dropout and the like
        tally = Tally(self.kind.plan.buckets, self.kind.mean_names(), self.engine.device)
        # The engine averages gradients over ranks; ours are parts of a mean over all clips and are to be added.
        scale = self.world / self._clips(work, loaded)
        for number, (micro_batch, one) in enumerate(zip(work.micro_batches, loaded, strict=True)):
            weights = one.weights.to(self.engine.device) * (not micro_batch.is_padding)
            self._beat.phase("forward", self.step)
            losses = self.kind.losses(self.engine, one.batch.to(self.engine.device), one.slots, work.plan)
            loss = (losses.total * weights).sum() * scale
            for _ in range(self._calls_missing(work, number)):
                loss = loss + self.engine.call_for_others()
            self._beat.phase("backward", self.step)
            self.engine.backward(loss)
            if not micro_batch.is_padding:
                tally.add(micro_batch.stretch.bucket, losses, one.slots, weights)
        self._beat.phase("update", self.step)
        for flag in self._wishes():
            tally.ask(flag)
        totals = tally.over_ranks(self.copies)
        self.kind.after_step(work.plan)
        lr = learning_rate(self.step, config.steps, config.optimizer)
        update = self.engine.update(lr)
        if not update.is_skipped:
            self.average.update(self.step + 1)
        return totals, update, lr

    def _calls_missing(self, work: Work, number: int) -> int:
        """How much oftener others call the model in their micro-batch ``number``, where that must not be."""
        if not self.engine.needs_equal_calls:
            return 0
        mine = self.kind.calls(work.micro_batches[number].stretch.bucket)
        return max(map(self.kind.calls, work.deal.rounds.buckets(number))) - mine

    def _clips(self, work: Work, loaded: Sequence[Loaded]) -> float:
        """Clips that count in the step, over all ranks."""
        if not self.config.data.skip_damaged:
            return work.plan.clips
        pairs = zip(work.micro_batches, loaded, strict=True)
        mine = sum(float(one.weights.sum()) for part, one in pairs if not part.is_padding)
        count = torch.tensor([mine], device=self.engine.device, dtype=torch.float64)
        dist.all_reduce(count)
        return max(1.0, float(count) / self.copies)

    def _wishes(self) -> Iterator[str]:
        if self._sight and self._sight.wants_stop():
            yield "stop"
        if self._sight and self._sight.wants_save():
            yield "save"

    # What is read.

    def _loading(self) -> Loading:
        kind, config = self.kind, self.config
        return Loading(kind.reader, self._slots(), kind.collate(), config.data, kind.reads_latents, self.engine.device)

    def _slots(self) -> Iterable[list[tuple[Slot, ...]]]:
        """This rank's part of the steps that are left. A thread of the loader goes through them, ahead of the steps."""
        kind, replicas = self.kind, self.world // self.copies
        for step in range(self.step, self.config.steps):
            plan = kind.plan.step(step)
            dealt = deal(plan, kind.costs.model, replicas, kind.costs.most, kind.needs_all_ranks)
            mine = dealt.rounds[self.rank // self.copies]
            self._works.put(Work(plan, dealt, mine))
            yield [kind.plan.slots(part.stretch) for part in mine]

    # What is kept.

    def _save_and_look(self, totals: Totals) -> None:
        """Save and look at the averaged model where it is due. Every rank must call it: state is gathered from all."""
        is_save = self.config.checkpoint.is_due(self.step, self.config.steps) or bool(totals.flags)
        is_look = bool(self.kind.looks(self.step))
        if not is_save and not is_look:
            return
        self._beat.phase("gathering", self.step)
        average = self.average.gather()
        plain = self.kind.plain(average)
        if is_save:
            weights, moments, extra = self.engine.weights(), self.engine.moments(), self.kind.extra_state()
            if plain is not average:
                extra = {**extra, ADAPTED: average}
            if self._sight:
                self._sight.save(TrainState(self.step, weights, plain, moments, extra))
        if is_look and self._sight:
            self._beat.phase("looking", self.step)
            self._sight.look(self.step, plain)

    def _last_state(self) -> TrainState | None:
        """What is in the checkpoint that rank 0 chose; None on a start from nothing."""
        chosen: list[Path | None] = [latest_checkpoint(self.run) if self.rank == 0 else None]
        dist.broadcast_object_list(chosen, src=0)
        return load_state(chosen[0]) if chosen[0] is not None else None

    def _facts(
        self, work: Work, totals: Totals, update: Update, lr: float, took_s: float, waited_s: float
    ) -> StepFacts:
        stretches = work.plan.stretches
        return StepFacts(
            step=self.step,
            means=totals.means,
            clips=work.plan.clips,
            fingerprint=totals.clips,
            left_out=totals.left_out,
            tokens=sum(s.count * self.kind.tokens(s.bucket) for s in stretches),
            flops=sum(s.count * self.kind.flops(s.bucket, totals.means) for s in stretches),
            gradient_norm=update.gradient_norm,
            lr=lr,
            is_skipped=update.is_skipped,
            balance={"imbalance": work.deal.imbalance, "imbalance_by_round": work.deal.imbalance_by_round},
            took_s=took_s,
            waited_s=waited_s,
        )
