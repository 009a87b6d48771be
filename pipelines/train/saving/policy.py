"""Which checkpoints of a run stay: the newest, every so many steps, the best."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from kineograph.progress import say
from kineograph.store.checkpoints import (
    Index,
    is_complete,
    list_checkpoints,
    read_index,
    remove_checkpoint,
    step_of,
)
from pipelines.train.saving.config import CheckpointConfig


def kept_steps(steps: Collection[int], index: Index, config: CheckpointConfig) -> set[int]:
    """Of the finished checkpoints' ``steps`` those that stay."""
    kept = set(sorted(steps)[-config.keep :])
    if config.keep_every:
        kept |= {step for step in steps if step % config.keep_every == 0}
    return kept | set(index.best_first(steps, config.best)[: config.keep_best])


def finished_steps(run: Path) -> list[int]:
    """Steps of the run's finished checkpoints, in order. Their bytes are not checked."""
    return [step_of(folder) for folder in list_checkpoints(run) if is_complete(folder)]


def prune(run: Path, config: CheckpointConfig, newest: int, spare: int | None = None) -> None:
    """Delete the checkpoints that need not stay, and what killed saves left. ``newest`` is the step that was saved last;
    that of step ``spare`` stays for now."""
    kept = kept_steps([step for step in finished_steps(run) if step <= newest], read_index(run), config)
    for folder in list_checkpoints(run):
        step = step_of(folder)
        if step in kept or step == spare:
            continue
        if step > newest and is_complete(folder):  # it was there when the run went on from one before it
            say(f"removing checkpoint {folder}: it was damaged, and {newest} steps are saved")
        remove_checkpoint(folder)
