"""The whole state of a run as a folder: weights, average, optimizer, where it stands. Safetensors and JSON only."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kineograph.store.checkpoints import (
    CONFIG,
    checkpoint_folder,
    link_folder,
    read_config,
    remove_checkpoint,
    seal,
)
from kineograph.store.commit import committed, write_json

Tensors = dict[str, Tensor]

EXTRA = "extra-"
"""Begins the names of files with state beside the model."""


@dataclass(frozen=True)
class TrainState:
    """What a run needs to go on as if it had never stopped. The plan and the noise are functions of the step."""

    step: int
    """Steps done."""
    weights: Tensors
    ema: Tensors
    moments: Tensors
    extra: dict[str, Tensors] = field(default_factory=dict)
    """State beside the model, such as a discriminator and its optimizer; see Kind.extra_state."""

    def on_cpu(self) -> TrainState:
        """The same with every tensor in the host's memory; those that are there already are not copied."""
        extra = {name: _on_cpu(tensors) for name, tensors in self.extra.items()}
        return TrainState(self.step, _on_cpu(self.weights), _on_cpu(self.ema), _on_cpu(self.moments), extra)


def save_state(run: Path, state: TrainState, config: Mapping[str, Any], folders: Mapping[str, Path]) -> Path:
    """Write a checkpoint folder, marker last. ``folders`` (name to path) are linked into it, or copied where the file
    system cannot link. What is there of the same step is replaced.

    On an error nothing is left behind, so that a full disk is no fuller than before. Raises DiskFullError.
    """
    folder = checkpoint_folder(run, state.step)
    if folder.exists():  # left by a save that was killed, or damaged
        remove_checkpoint(folder)
    try:
        folder.mkdir(parents=True)
        files = {"model": state.weights, "ema": state.ema, "optimizer": state.moments}
        for name, tensors in {**files, **{f"{EXTRA}{k}": v for k, v in state.extra.items()}}.items():
            _write_tensors(tensors, folder / f"{name}.safetensors")
        for name, source in folders.items():
            link_folder(source, folder / name)
        write_json(folder / CONFIG, {**config, "step": state.step})
        seal(folder)
    except BaseException:
        if folder.exists():
            remove_checkpoint(folder)
        raise
    return folder


def load_state(folder: Path) -> TrainState:
    """Read what :func:`save_state` wrote; the folder's digests were checked when it was chosen."""
    step = int(read_config(folder)["step"])
    weights, ema, moments = (load_file(folder / f"{n}.safetensors") for n in ("model", "ema", "optimizer"))
    extra = {p.stem.removeprefix(EXTRA): load_file(p) for p in sorted(folder.glob(f"{EXTRA}*.safetensors"))}
    return TrainState(step, weights, ema, moments, extra)


def _write_tensors(tensors: Tensors, path: Path) -> None:
    """Commit a safetensors file. Its digest is taken of the file when all are written: that takes 0.7 s a GiB on one core,
    and writing 1.2 s at best, in a thread that holds up nobody."""
    with committed(path) as temp:
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temp)
        except SafetensorError as error:  # which tells what the system said in words alone
            raise _system_error(error) or error from error


def _on_cpu(tensors: Tensors) -> Tensors:
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


def _system_error(error: SafetensorError) -> OSError | None:
    found = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None
