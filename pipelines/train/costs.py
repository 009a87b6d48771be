"""What steps of a run take: the costs that ranks are balanced by, chosen once and kept for the run's life.

The order of additions depends on how clips are dealt, and that on the costs: a run that measured anew after a restart
would not end at the same bits.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kineograph.media.geometry import Bucket
from kineograph.models.flops import peak_flops
from kineograph.models.measure import activation_bytes
from kineograph.store.commit import write_json
from kineograph.store.shards import RowAddress
from pipelines.train.plan.costs import NOMINAL_RATE, CostModel, Measurement, fit
from pipelines.train.plan.plan import Slot, StepPlan, Stretch, micro_batch_sizes

if TYPE_CHECKING:
    from pipelines.train.kinds.base import Kind

COSTS = "costs.json"
"""Of a run: the costs that it was started with."""
LIKELY_MFU = 0.4
"""Assumed of a device on which nothing was measured."""
BUCKETS = 6
"""That are measured, evenly from the cheapest clip to the costliest; the rest follows from FLOPs and tokens."""
REPEATS = 3
MOST_SECONDS = 20.0
"""Of measuring one bucket: no larger batch is tried when so much is spent."""


@dataclass(frozen=True)
class Costs:
    """What balancing goes by."""

    model: CostModel
    most: Mapping[Bucket, int]
    """Clips of a bucket that a rank computes at once, at most; of one that is not named any number."""
    source: str
    """Where the numbers are from, for people."""


def choose_costs(kind: Kind[Any]) -> Costs:
    """What a run was started with, else what FLOPs let expect, corrected by the recipe.

    Raises UserError where the recipe names no bucket, or one of which not one clip fits.
    """
    kept = kept_costs(kind.run)
    if kept is not None:
        model, source = kept
    else:
        model, source = CostModel.from_flops(work(kind)[0], likely_rate(kind)), "guessed from FLOPs"
    model = model.with_table(kind.config.costs.table)
    if kept is None and kind.config.costs.source == "measured":  # until it is known: no limit, and no pack by seconds
        return Costs(model, {}, source)
    most = {} if kind.needs_all_ranks else micro_batch_sizes(kind.dataset.index.clips, kind.config.batch, model)
    return Costs(model, most, source)


def kept_costs(run: Path) -> tuple[CostModel, str] | None:
    """The costs that a run was started with, and where they are from."""
    path = run / COSTS
    if not path.is_file():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    return CostModel.from_json(kept["buckets"]), kept["source"]


def keep_costs(run: Path, model: CostModel, source: str) -> None:
    """Write down what a run starts with."""
    write_json(run / COSTS, {"source": source, "buckets": model.to_json()})


def likely_rate(kind: Kind[Any]) -> float:
    """FLOP/s that a worker is likely to reach."""
    device = torch.device("cuda" if kind.config.workers.gpu and torch.cuda.is_available() else "cpu")
    if kind.config.workers.gpu and device.type == "cpu":
        return NOMINAL_RATE
    return LIKELY_MFU * peak_flops(device, kind.config.precision)


def measure_costs(kind: Kind[Any], model: nn.Module) -> CostModel:
    """What micro-batches of some buckets take on this device, forward and backward, and from that of all.

    ``kind`` must be one that nothing else uses: its state changes.
    """
    buckets = sorted(kind.dataset.buckets, key=kind.flops)
    chosen = [buckets[round(i * (len(buckets) - 1) / max(1, BUCKETS - 1))] for i in range(min(BUCKETS, len(buckets)))]
    found: list[Measurement] = []
    for bucket in dict.fromkeys(chosen):
        found += _measure_bucket(kind, model, bucket)
    return fit(found, *work(kind), likely_rate(kind))


def work(kind: Kind[Any]) -> tuple[Mapping[Bucket, float], Mapping[Bucket, int]]:
    """FLOPs and tokens of a clip of each bucket."""
    return {b: kind.flops(b) for b in kind.dataset.buckets}, {b: kind.tokens(b) for b in kind.dataset.buckets}


def _measure_bucket(kind: Kind[Any], model: nn.Module, bucket: Bucket) -> list[Measurement]:
    """One clip, two, four and so on, up to a pack, while memory and patience last."""
    found: list[Measurement] = []
    clips, started = 1, time.perf_counter()
    while clips <= kind.config.batch.clips(bucket) and time.perf_counter() - started < MOST_SECONDS:
        try:
            found.append(_measure(kind, model, bucket, clips))
        except torch.OutOfMemoryError:
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            break
        clips *= 2
    return found


def _measure(kind: Kind[Any], model: nn.Module, bucket: Bucket, clips: int) -> Measurement:
    slots = [Slot(RowAddress(0, 0, 0), 0, place, f"made up {place}") for place in range(clips)]
    plan = StepPlan(0, (Stretch(bucket, 0, clips, 0),))
    batch = kind.example(bucket, clips).to(kind.device)

    def once() -> float:
        _wait(kind.device)
        start = time.perf_counter()
        kind.losses(model, batch, slots, plan).total.mean().backward()
        _wait(kind.device)
        return time.perf_counter() - start

    kept = activation_bytes(once)  # it also warms up
    seconds = min(once() for _ in range(REPEATS))
    model.zero_grad(set_to_none=True)
    return Measurement(bucket, clips, seconds, kept)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
