"""Checkpoint folders: complete or absent. Files first, then their digests, then the marker.

RUN/checkpoints/step-00001000/
  model.safetensors       weights, fp32
  ema.safetensors         their exponential moving average: what is sampled and graded
  optimizer.safetensors   Adam's moments, named after the weights
  extra-….safetensors     state beside the model, such as a discriminator's, where the kind of training has one
  vae/                    the autoencoder, where the model needs one (models/vae): hard links to RUN/vae
  config.json             what is needed to build the model again, and where it came from
  digests.json            sha256 of each file above, by its path in the folder
  _COMPLETE               written last
RUN/checkpoints/index.json   what validation found, by step, and by which metric a checkpoint is the best
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from kineograph.errors import UserError
from kineograph.progress import say
from kineograph.store.commit import committed, sha256_file, write_bytes, write_json

CHECKPOINTS = "checkpoints"
COMPLETE = "_COMPLETE"
CONFIG = "config.json"
DIGESTS = "digests.json"
INDEX = "index.json"
BEST = "best"
"""RUN@best is the best checkpoint of a run, RUN@500 that of step 500."""
_STEP = re.compile(r"^step-(\d{8})$")


def checkpoint_folder(run: Path, step: int) -> Path:
    return run / CHECKPOINTS / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """The optimizer step of a checkpoint folder."""
    match = _STEP.match(folder.name)
    if match is None:
        raise UserError(f"{folder} is no checkpoint folder")
    return int(match.group(1))


def seal(folder: Path) -> None:
    """Record the digests of the folder's files, then mark it complete."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in (DIGESTS, COMPLETE))
    write_json(folder / DIGESTS, {p.relative_to(folder).as_posix(): sha256_file(p) for p in files})
    write_bytes(folder / COMPLETE, b"")


def link_folder(source: Path, target: Path) -> None:
    """Put the files of ``source`` into ``target`` as hard links, as copies where the file system cannot link.

    A linked file must never be written in place, only replaced, which is how everything is written here. Raises
    DiskFullError.
    """
    for file in sorted(p for p in source.rglob("*") if p.is_file()):
        with committed(target / file.relative_to(source)) as temp:
            try:
                os.link(file, temp)
            except OSError:
                shutil.copyfile(file, temp)


def is_complete(folder: Path) -> bool:
    """Whether a checkpoint was written to its end. Its bytes are not checked."""
    return (folder / COMPLETE).is_file()


def find_fault(folder: Path) -> str:
    """What is wrong with a checkpoint folder, "" when it is whole: every file is there with its recorded digest.

    Raises OSError when the file system does not answer, which says nothing of the checkpoint.
    """
    if not is_complete(folder):
        return "it was not finished"
    try:
        digests = parse_digests((folder / DIGESTS).read_bytes())
    except OSError:
        return f"{DIGESTS} cannot be read"
    except ValueError as error:
        return str(error)
    for name, expected in digests.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        try:
            found = sha256_file(folder / name)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return f"the disk cannot read {name}"
        if found != expected:
            return f"the bytes of {name} are not those that were saved"
    return ""


def parse_digests(data: bytes) -> dict[str, str]:
    """digests.json: sha256 by the path of a file. Raises ValueError, with a line for people, when it is not that."""
    try:
        digests = json.loads(data)
    except ValueError as error:
        raise ValueError(f"{DIGESTS} cannot be read") from error
    if not isinstance(digests, dict) or CONFIG not in digests:
        raise ValueError(f"{DIGESTS} does not list its files")
    for name in digests:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{DIGESTS} lists a file outside of the folder")
    return digests


def remove_checkpoint(folder: Path) -> None:
    """Delete a checkpoint: it is incomplete from the first file that goes."""
    (folder / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(folder)


def latest_checkpoint(run: Path) -> Path | None:
    """The newest whole checkpoint of a training run; a damaged one is named and the one before it is used."""
    for folder in reversed(list_checkpoints(run)):
        fault = find_fault(folder)
        if not fault:
            return folder
        say(f"skipping checkpoint {folder}: {fault}")
    return None


def list_checkpoints(run: Path) -> list[Path]:
    """Checkpoint folders of a run by step, whole or not."""
    root = run / CHECKPOINTS
    return sorted(p for p in root.iterdir() if _STEP.match(p.name)) if root.is_dir() else []


def best_checkpoint(run: Path, by: str = "") -> Path:
    """The best whole checkpoint that a training run still has, by what validation found.

    ``by``: a metric, the lower the better, or -METRIC, the higher; "" is what the run's recipe says (checkpoint.best).
    Raises UserError when no checkpoint was validated, or not with that metric.
    """
    index = read_index(run)
    folders = {step_of(folder): folder for folder in list_checkpoints(run)}
    for step in index.best_first(folders, by):
        fault = find_fault(folders[step])
        if not fault:
            return folders[step]
        say(f"skipping checkpoint {folders[step]}: {fault}")
    metrics = {name for step in folders for name in index.metrics.get(step, ())}
    known = f"known are {', '.join(sorted(metrics))}" if metrics else "none was validated at the step of its checkpoint"
    raise UserError(f"{run} has no whole checkpoint with the metric {(by or index.best).lstrip('-')}: {known}")


def resolve_checkpoint(path: str | Path) -> Path:
    """The checkpoint that ``path`` names: a checkpoint folder; a training run, of which the newest is taken; RUN@STEP, the
    run's checkpoint of that step; RUN@best, its best one (:func:`best_checkpoint`).

    Raises UserError when there is none or the folder named is damaged.
    """
    path = Path(path)
    run, at, which = path.name.rpartition("@")
    if at and not path.exists():
        return _of_run(path.parent / run, which)
    if not path.is_dir():
        raise UserError(
            f"no checkpoint at {path}: give a training run, RUN@best, RUN@STEP or a checkpoints/step-… folder"
        )
    if _STEP.match(path.name):
        return _whole(path)
    found = latest_checkpoint(path)
    if found is None:
        raise UserError(f"{path} has no whole checkpoint: train one with 'kineo train RECIPE --data RUN --out {path}'")
    return found


def _of_run(run: Path, which: str) -> Path:
    if not run.is_dir():
        raise UserError(f"no training run at {run}: what stands before @{which} must be its folder")
    if which == BEST:
        return best_checkpoint(run)
    if re.fullmatch("[0-9]+", which) is None:
        raise UserError(f"{run}@{which}: after @ comes the step of a checkpoint, or {BEST}")
    folder = checkpoint_folder(run, int(which))
    if not folder.is_dir():
        steps = ", ".join(str(step_of(f)) for f in list_checkpoints(run) if is_complete(f))
        raise UserError(f"{run} has no checkpoint of step {int(which)}: it has " + (steps or "none"))
    return _whole(folder)


def _whole(folder: Path) -> Path:
    fault = find_fault(folder)
    if fault:
        raise UserError(f"checkpoint {folder} is damaged: {fault}; use another one of the same run")
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """The checkpoint's config.json. Raises UserError when it cannot be read."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{CONFIG} of checkpoint {folder} cannot be read: use another one of the same run") from error
    if not isinstance(config, dict):
        raise UserError(f"{CONFIG} of checkpoint {folder} is no mapping: use another one of the same run")
    return config


@dataclass(frozen=True)
class Index:
    """What is known of a run's checkpoints beside what lies in their folders, which may be gone."""

    best: str = "validation_loss"
    """The metric by which they are better, the lower the better; with a minus sign before it the higher."""
    metrics: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    """What validation found, by step."""

    def best_first(self, steps: Iterable[int], by: str = "") -> list[int]:
        """Those of ``steps`` of which the metric ``by``, else :attr:`best`, is known and finite; of equal ones the later
        first."""
        by = by or self.best
        name, sign = by.removeprefix("-"), -1.0 if by.startswith("-") else 1.0
        found = {step: sign * self.metrics.get(step, {}).get(name, math.nan) for step in steps}
        return sorted((step for step in found if math.isfinite(found[step])), key=lambda step: (found[step], -step))


def read_index(run: Path) -> Index:
    """index.json of a run. One that is missing or cannot be read is as an empty one: it tells which checkpoints are best,
    nothing else."""
    try:
        raw = json.loads((run / CHECKPOINTS / INDEX).read_bytes())
        metrics = {int(step): {str(n): float(v) for n, v in found.items()} for step, found in raw["metrics"].items()}
        return Index(str(raw["best"]), metrics)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Index()


def write_index(run: Path, index: Index) -> None:
    """Commit index.json of a run. Raises DiskFullError."""
    metrics = {
        str(step): {name: value for name, value in found.items() if math.isfinite(value)}
        for step, found in sorted(index.metrics.items())
    }
    write_json(run / CHECKPOINTS / INDEX, {"best": index.best, "metrics": metrics})
