"""The whole state of a run as a folder: weights, average, optimizer, where it stands. Safetensors and JSON only."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from kineograph.store.checkpoints import CONFIG, checkpoint_folder, link_folder, read_config, seal
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


def save_state(run: Path, state: TrainState, config: Mapping[str, Any], folders: Mapping[str, Path]) -> Path:
    """Write a checkpoint folder, marker last. ``folders`` (name to path) are linked into it, or copied where the file
    system cannot link. Raises DiskFullError."""
    folder = checkpoint_folder(run, state.step)
    if folder.exists():  # left by a save that was killed
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    files = {"model": state.weights, "ema": state.ema, "optimizer": state.moments}
    for name, tensors in {**files, **{f"{EXTRA}{k}": v for k, v in state.extra.items()}}.items():
        with committed(folder / f"{name}.safetensors") as temp:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temp)
    for name, source in folders.items():
        link_folder(source, folder / name)
    write_json(folder / CONFIG, {**config, "step": state.step})
    seal(folder)
    return folder


def load_state(folder: Path) -> TrainState:
    """Read what :func:`save_state` wrote; the folder's digests were checked when it was chosen."""
    step = int(read_config(folder)["step"])
    weights, ema, moments = (load_file(folder / f"{n}.safetensors") for n in ("model", "ema", "optimizer"))
    extra = {p.stem.removeprefix(EXTRA): load_file(p) for p in sorted(folder.glob(f"{EXTRA}*.safetensors"))}
    return TrainState(step, weights, ema, moments, extra)
