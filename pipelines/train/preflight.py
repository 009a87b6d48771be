"""What will be trained, said before anything starts: clips per bucket, steps, size, memory, time, cost."""

from __future__ import annotations

from typing import Any

from kineograph.media.geometry import Bucket
from kineograph.models.memory import state_bytes
from kineograph.progress import duration
from pipelines.train.kinds.base import Kind
from pipelines.train.plan.deal import deal
from pipelines.train.plan.simulate import simulation_text

GIB = 2**30
LOOKED_AT = 64
"""Steps whose deal is looked at for the balance."""


def preflight(kind: Kind[Any]) -> dict[str, Any]:
    """The plan in numbers: a row per bucket, the steps of an epoch, the model's size, memory of a rank, time and cost.

    Raises UserError when recipe and dataset do not go together.
    """
    kind.check()
    if kind.config.workers.sequence_parallel > 1:
        kind.check_sharing()
    config, dataset, plan, costs = kind.config, kind.dataset, kind.plan, kind.costs
    parameters, trained = kind.count_parameters()
    ranks = config.workers.count
    deals = [deal(plan.step(s), costs.model, kind.replicas, costs.most, kind.needs_all_ranks) for s in range(LOOKED_AT)]
    # Ranks wait for each other in every round where gradients are spread, and at the end of a step in any case.
    waits = config.deepspeed.zero_stage >= 2
    step_s = sum(float(d.by_round.max(0).sum()) if waits else max(d.seconds) for d in deals) / len(deals)
    state = state_bytes(parameters, trained, config.deepspeed.zero_stage, ranks, config.deepspeed.offload)
    measured = max(costs.model.bytes(b, at_once(kind, b)) for b in plan.buckets)
    activations = measured or max(kind.kept_bytes(b, at_once(kind, b)) for b in plan.buckets)
    return {
        "kind": config.kind,
        "buckets": [_bucket(kind, bucket) for bucket in plan.buckets],
        "training_clips": dataset.training_clips,
        "validation_clips": dataset.validation_clips,
        "left_out_clips": dataset.left_out_clips,
        "steps_per_epoch": plan.steps_per_epoch,
        "steps": config.steps,
        "epochs": config.steps / plan.steps_per_epoch,
        "clips_per_step": sum(plan.step(s).clips for s in range(LOOKED_AT)) / LOOKED_AT,
        "parameters": parameters,
        "trained_parameters": trained,
        "state_gib": state / GIB,
        "activations_gib": activations / GIB if activations else None,
        "activations_measured": bool(measured),
        "workers": ranks,
        "imbalance": sum(d.imbalance_by_round if waits else d.imbalance for d in deals) / len(deals),
        "step_s": step_s,
        "seconds": step_s * config.steps,
        "costs": costs.source,
        "price": _price(config.workers.price_per_hour, ranks, step_s * config.steps),
        "dataset": dataset.manifest.digest,
        "notes": [],
        **kind.facts(),
    }


def _bucket(kind: Kind[Any], bucket: Bucket) -> dict[str, Any]:
    plan = kind.plan
    return {
        "bucket": bucket.name,
        "clips": plan.clips(bucket),
        "pack": plan.sizes[bucket],
        "at_once": at_once(kind, bucket),
        "share_of_clips": plan.share(bucket),
        "tokens_per_clip": kind.tokens(bucket),
        "seconds_per_clip": kind.costs.model.seconds(bucket, 1),
        "epochs": plan.epochs(bucket, kind.config.steps),
    }


def at_once(kind: Kind[Any], bucket: Bucket) -> int:
    """Clips of a bucket that a worker computes at once, at most."""
    limit = kind.costs.most.get(bucket)
    share = -(-kind.plan.sizes[bucket] * kind.plan.packs // kind.replicas)
    return share if limit is None else min(limit, share)


def _price(per_hour: float | None, workers: int, seconds: float) -> float | None:
    return None if per_hour is None else per_hour * workers * seconds / 3600


def preflight_text(facts: dict[str, Any]) -> str:
    """``facts`` for a person."""
    lines = [f"{'bucket':>14} {'clips':>9} {'pack':>6} {'at once':>8} {'tokens':>8} {'of clips':>9} {'epochs':>7}"]
    for row in facts["buckets"]:
        lines.append(
            f"{row['bucket']:>14} {row['clips']:>9} {row['pack']:>6} {row['at_once']:>8} {row['tokens_per_clip']:>8}"
            f" {row['share_of_clips']:>9.1%} {row['epochs']:>7.1f}"
        )
    left_out = f", {facts['left_out_clips']} left out" if facts["left_out_clips"] else ""
    lines.append(
        f"{facts['training_clips']} clips to train on, {facts['validation_clips']} held out{left_out}; "
        f"{facts['steps']} steps of {facts['clips_per_step']:.0f} clips, {facts['steps_per_epoch']:.0f} an epoch = "
        f"{facts['epochs']:.1f} epochs"
    )
    trained = facts["trained_parameters"]
    of_them = "" if trained == facts["parameters"] else f", {trained / 1e6:.2f}M of them trained"
    if facts["activations_gib"] is None:
        activations = " besides activations, which costs.source=measured would measure"
    else:
        about = "" if facts["activations_measured"] else "about "
        activations = f" and {about}{facts['activations_gib']:.2f} GiB of activations"
    lines.append(
        f"{facts['parameters'] / 1e6:.2f}M parameters{of_them}; a worker of {facts['workers']} holds "
        f"{facts['state_gib']:.2f} GiB of state{activations}"
    )
    price = f", {facts['price']:.0f} in money" if facts["price"] is not None else ""
    lines.append(
        f"about {duration(facts['seconds'])}{price} at {facts['step_s']:.2g} s a step ({facts['costs']}), "
        f"imbalance {facts['imbalance']:.1%}; dataset {facts['dataset'][:12]}, read as {facts['reads']}"
    )
    if "balance" in facts:
        lines.append(simulation_text(facts["balance"]))
    return "\n".join(lines + facts["notes"])
