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
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from kineograph.errors import UserError
from kineograph.progress import say
from kineograph.store.commit import committed, sha256_file, write_bytes, write_json

CHECKPOINTS = "checkpoints"
COMPLETE = "_COMPLETE"
CONFIG = "config.json"
DIGESTS = "digests.json"
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


def find_fault(folder: Path) -> str:
    """What is wrong with a checkpoint folder, "" when it is whole: every file is there with its recorded digest."""
    if not (folder / COMPLETE).is_file():
        return "it was not finished"
    try:
        digests: dict[str, str] = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{DIGESTS} cannot be read"
    if not isinstance(digests, dict) or CONFIG not in digests:
        return f"{DIGESTS} does not list its files"
    for name, expected in digests.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256_file(folder / name) != expected:
            return f"the bytes of {name} are not those that were saved"
    return ""


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


def resolve_checkpoint(path: str | Path) -> Path:
    """The checkpoint that ``path`` names: a checkpoint folder, or a training run, of which the newest is taken.

    Raises UserError when there is none or the folder named is damaged.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"no checkpoint at {path}: give a training run or one of its checkpoints/step-… folders")
    if _STEP.match(path.name):
        fault = find_fault(path)
        if fault:
            raise UserError(f"checkpoint {path} is damaged: {fault}; use another one of the same run")
        return path
    found = latest_checkpoint(path)
    if found is None:
        raise UserError(f"{path} has no whole checkpoint: train one with 'kineo train RECIPE --data RUN --out {path}'")
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """The checkpoint's config.json. Raises UserError when it cannot be read."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{CONFIG} of checkpoint {folder} cannot be read: use another one of the same run") from error
    if not isinstance(config, dict):
        raise UserError(f"{CONFIG} of checkpoint {folder} is no mapping: use another one of the same run")
    return config
