"""What one worker does before the first step where costs are measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from kineograph.models.execution import prepare
from pipelines.train.costs import keep_costs, measure_costs
from pipelines.train.registry import open_kind, parse_train_recipe


def measure_worker(job: dict[str, Any]) -> None:
    """Measure what micro-batches of the job's recipe take, on this worker's device, and write it into its run."""
    config, run = parse_train_recipe(job["config"]), Path(job["run"])
    torch.set_num_threads(max(1, int(config.workers.cpus)))
    kind = open_kind(config, job["data"], run, on_rank=True)
    device = torch.device("cuda" if config.workers.gpu else "cpu")
    model = kind.build()
    kind.adapt(model)
    prepare(model, config.execution)
    kind.place(device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")
    with autocast:
        costs = measure_costs(kind, model.to(device))
    keep_costs(run, costs, f"measured on {torch.cuda.get_device_name() if config.workers.gpu else 'this CPU'}")
