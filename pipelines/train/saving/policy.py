"""Which checkpoints of a run stay: the newest, every so many steps, the best."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

from kineograph.store.checkpoints import CHECKPOINTS, COMPLETE, list_checkpoints, step_of
from kineograph.store.commit import write_json
from pipelines.train.saving.config import CheckpointConfig

METRICS = "metrics.json"
"""In the folder of a run's checkpoints: what validation found, by step."""

Found = dict[int, dict[str, float]]


def kept_steps(steps: list[int], found: Mapping[int, Mapping[str, float]], config: CheckpointConfig) -> set[int]:
    """Of the finished checkpoints' ``steps`` those that stay; ``found`` are metrics by step."""
    kept = set(sorted(steps)[-config.keep :])
    if config.keep_every:
        kept |= {step for step in steps if step % config.keep_every == 0}
    if config.keep_best:
        sign, name = (-1, config.best[1:]) if config.best.startswith("-") else (1, config.best)
        known = {s: sign * found[s][name] for s in steps if math.isfinite(found.get(s, {}).get(name, math.nan))}
        kept |= set(sorted(known, key=lambda step: (known[step], step))[: config.keep_best])
    return kept


def prune(run: Path, config: CheckpointConfig) -> None:
    """Delete the finished checkpoints that need not stay, and what killed saves left behind finished ones."""
    folders = list_checkpoints(run)
    finished = [folder for folder in folders if (folder / COMPLETE).is_file()]
    kept = kept_steps([step_of(folder) for folder in finished], read_metrics(run), config)
    for folder in folders:
        is_left = folder not in finished and folder != folders[-1]
        if is_left or (folder in finished and step_of(folder) not in kept):
            (folder / COMPLETE).unlink(missing_ok=True)  # incomplete from the first file that goes
            shutil.rmtree(folder)


def read_metrics(run: Path) -> Found:
    """What validation found, by step. A file that cannot be read is as none: it says which checkpoints are best alone."""
    try:
        raw = json.loads((run / CHECKPOINTS / METRICS).read_text(encoding="utf-8"))
        return {int(step): dict(metrics) for step, metrics in raw.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def add_metrics(run: Path, step: int, metrics: Mapping[str, float]) -> None:
    """Write down what validation found after ``step`` steps."""
    found = read_metrics(run)
    found[step] = {**found.get(step, {}), **metrics}
    write_json(run / CHECKPOINTS / METRICS, {str(s): m for s, m in sorted(found.items())})
