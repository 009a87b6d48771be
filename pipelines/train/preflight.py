"""What will be trained, said before anything starts: clips and batches per bucket, size, steps."""

from __future__ import annotations

from typing import Any

import torch

from pipelines.train.kinds.base import Kind

BYTES_PER_PARAMETER = 4 * 5
"""fp32 weights, gradients, Adam's two moments, the moving average."""


def preflight(kind: Kind[Any]) -> dict[str, Any]:
    """The plan in numbers: a row per bucket, the steps of an epoch, the model's size.

    Raises UserError when recipe and dataset do not go together.
    """
    kind.check()
    config, dataset = kind.config, kind.dataset
    plan = dataset.plan
    with torch.device("meta"):
        model = kind.build()
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "kind": config.kind,
        "buckets": [
            {
                "bucket": bucket.name,
                "clips": len(clips),
                "batch": plan.batch_size[bucket],
                "batches_per_epoch": plan.batches[bucket],
                "share_of_steps": plan.batches[bucket] / plan.cycle,
            }
            for bucket, clips in plan.clips.items()
        ],
        "training_clips": len(dataset.training),
        "validation_clips": len(dataset.validation),
        "steps_per_epoch": plan.cycle,
        "steps": config.steps,
        "epochs": config.steps / plan.cycle,
        "parameters": parameters,
        "state_mib": parameters * BYTES_PER_PARAMETER / 2**20,
        "workers": config.workers.count,
        "dataset": dataset.manifest.digest,
        "notes": [],
        **kind.facts(),
    }


def preflight_text(facts: dict[str, Any]) -> str:
    """``facts`` for a person."""
    lines = [f"{'bucket':>14} {'clips':>7} {'batch':>6} {'per epoch':>10} {'of steps':>9}"]
    for row in facts["buckets"]:
        lines.append(
            f"{row['bucket']:>14} {row['clips']:>7} {row['batch']:>6} {row['batches_per_epoch']:>10}"
            f" {row['share_of_steps']:>9.0%}"
        )
    lines.append(
        f"{facts['training_clips']} clips to train on, {facts['validation_clips']} held out; "
        f"{facts['steps']} steps of {facts['steps_per_epoch']} an epoch = {facts['epochs']:.1f} epochs"
    )
    lines.append(
        f"{facts['parameters'] / 1e6:.2f}M parameters, {facts['state_mib']:.0f} MiB of state in all, "
        f"{facts['workers']} workers; dataset {facts['dataset'][:12]}, read as {facts['reads']}"
    )
    return "\n".join(lines + facts["notes"])
