"""What a plan comes to on any number of ranks, without one: how well they are balanced, and what they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kineograph.media.geometry import Bucket
from pipelines.train.plan.costs import CostModel
from pipelines.train.plan.deal import Deal, deal
from pipelines.train.plan.plan import StepPlan, TrainingPlan

READ = 2
"""Steps whose rows are looked up for what is read."""


def simulate(
    plan: TrainingPlan,
    costs: CostModel,
    ranks: int,
    steps: int,
    most: Mapping[Bucket, int],
    even: bool = False,
    tokens: Mapping[Bucket, int] | None = None,
) -> dict[str, Any]:
    """The first ``steps`` steps, dealt to ``ranks`` as :func:`deal` does. ``tokens`` are those of a clip.

    Facts: ``imbalance`` is by how much the slowest rank is above the mean, ``imbalance_by_round`` the same where ranks wait
    in every round, ``random`` that of a sampler by which every rank draws its buckets: each with mean, p95 and max over the
    steps. ``row_group_reads`` is how often a row group is read in an epoch where ranks keep none from step to step.
    Raises UserError as :func:`deal` does.
    """
    plans = [plan.step(step) for step in range(steps)]
    deals = [deal(step, costs, ranks, most, even) for step in plans]
    clips = sum(step.clips for step in plans)
    in_all = sum(s.count * tokens[s.bucket] for step in plans for s in step.stretches) if tokens else None
    seconds = [max(one.seconds) for one in deals]
    return {
        "ranks": ranks,
        "steps": steps,
        "clips_per_step": clips / steps,
        "tokens_per_step": in_all / steps if in_all is not None else None,
        "step_s": sum(seconds) / steps,
        "rounds": sum(one.by_round.shape[1] for one in deals) / steps,
        "imbalance": _spread([one.imbalance for one in deals]),
        "imbalance_by_round": _spread([one.imbalance_by_round for one in deals]),
        "random": _spread(random_imbalance(plan, costs, ranks, steps, most)),
        "row_group_reads": _reads(plan, deals[:READ], plans[:READ]),
    }


def random_imbalance(
    plan: TrainingPlan, costs: CostModel, ranks: int, steps: int, most: Mapping[Bucket, int]
) -> list[float]:
    """The imbalance of steps in which every rank draws buckets at random, by their share of the packs, and takes a pack of
    each, as samplers of batches with one bucket do (Open-Sora, Zheng et al. 2024): as many as make up the plan's step."""
    buckets = plan.buckets
    pieces = [-(-plan.sizes[b] // max(1, min(most.get(b, plan.sizes[b]), plan.sizes[b]))) for b in buckets]
    pack_s = np.array(
        [
            costs.buckets[b].overhead_s * n + costs.buckets[b].clip_s * plan.sizes[b]
            for b, n in zip(buckets, pieces, strict=True)
        ]
    )
    draws = max(1, plan.packs // ranks)
    random = np.random.default_rng(plan.seed)
    shares = [plan.pack_share(bucket) for bucket in buckets]
    drawn = random.choice(len(buckets), size=(steps, ranks, draws), p=shares)
    seconds = pack_s[drawn].sum(2)
    return [float(imbalance) for imbalance in seconds.max(1) / seconds.mean(1) - 1]


def simulation_text(simulations: Sequence[Mapping[str, Any]]) -> str:
    """Results of :func:`simulate`, a line each, for a person."""
    heads = ("workers", "step", "rounds", "imbalance: mean", "p95", "max", "by round", "drawn at random", "reads")
    widths = (8, 10, 7, 16, 7, 7, 9, 16, 6)
    rows = [heads, *map(_row, simulations)]
    lines = [" ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    first = simulations[0]
    tokens = f", {first['tokens_per_step']:.0f} tokens" if first["tokens_per_step"] else ""
    about = (
        f"{first['steps']} steps of {first['clips_per_step']:.0f} clips{tokens}. Imbalance: how far the slowest worker is",
        "above the mean; by round: the same where workers wait in every backward pass, as under ZeRO 2 and 3. Reads: of a",
        "row group in an epoch, where workers keep none from step to step.",
    )
    return "\n".join([*lines, *about])


def _row(facts: Mapping[str, Any]) -> tuple[str, ...]:
    ours = facts["imbalance"]
    return (
        str(facts["ranks"]),
        f"{facts['step_s']:.3g} s",
        f"{facts['rounds']:.1f}",
        *(f"{ours[name]:.2%}" for name in ("mean", "p95", "max")),
        f"{facts['imbalance_by_round']['mean']:.2%}",
        f"{facts['random']['mean']:.2%}",
        f"{facts['row_group_reads']:.1f}",
    )


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "p95": float(np.quantile(values, 0.95)), "max": max(values)}


def _reads(plan: TrainingPlan, deals: Sequence[Deal], steps: Sequence[StepPlan]) -> float:
    """Row groups that ranks read for each that their clips would fill."""
    read, filled = 0, 0.0
    for one, step in zip(deals, steps, strict=True):
        for rank in range(len(one.rounds)):
            groups = set()
            for micro_batch in one.rounds[rank]:
                if not micro_batch.is_padding:
                    rows = plan.rows(micro_batch.stretch)
                    groups |= set(zip(rows.shard.tolist(), rows.row_group.tolist(), strict=True))
            read += len(groups)
        for stretch in step.stretches:
            groups_of = sum(rows.row_groups for rows in plan.index.by_bucket[stretch.bucket])
            filled += stretch.count * groups_of / plan.clips(stretch.bucket)
    return read / filled
