"""Save and load the whole state of a run: weights, average, optimizer, where it stands. Safetensors and JSON only."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kineograph.store.checkpoints import CONFIG, checkpoint_folder, keep_newest, link_folder, read_config, seal
from kineograph.store.commit import committed, write_json

Tensors = dict[str, Tensor]

EXTRA = "extra-"
"""Begins the names of files with state beside the model."""


@dataclass(frozen=True)
class TrainState:
    """What a run needs to go on as if it had never stopped. The plan and the noise are functions of the step."""

    step: int
    """Optimizer steps done."""
    weights: Tensors
    ema: Tensors
    moments: Tensors
    extra: dict[str, Tensors] = field(default_factory=dict)
    """State beside the model, such as a discriminator and its optimizer; see Kind.extra_state."""


def save_state(run: Path, state: TrainState, config: dict[str, Any], folders: Mapping[str, Path], keep: int) -> Path:
    """Write a checkpoint folder, marker last, and delete all but the ``keep`` newest.

    ``folders`` (name to path) are linked into it, or copied where the file system cannot link. Raises DiskFullError.
    """
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
    keep_newest(run, keep)
    return folder


def load_state(folder: Path) -> TrainState:
    """Read what :func:`save_state` wrote; the folder's digests were checked when it was chosen."""
    step = int(read_config(folder)["step"])
    weights, ema, moments = (load_file(folder / f"{n}.safetensors") for n in ("model", "ema", "optimizer"))
    extra = {p.stem.removeprefix(EXTRA): load_file(p) for p in sorted(folder.glob(f"{EXTRA}*.safetensors"))}
    return TrainState(step, weights, ema, moments, extra)


class Average:
    """Exponential moving average of a model's trained parameters in fp32 (Polyak & Juditsky 1992). Frozen parameters and
    buffers are as they were when it was made."""

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        copies = {n: (p.requires_grad, p.detach().float().cpu().clone()) for n, p in module.named_parameters()}
        self.values = {n: copy for n, (is_trained, copy) in copies.items() if is_trained}
        self._fixed = {n: copy for n, (is_trained, copy) in copies.items() if not is_trained}
        self._fixed |= {n: b.detach().cpu().clone() for n, b in module.named_buffers()}

    @torch.no_grad()
    def update(self, module: torch.nn.Module, step: int) -> None:
        """Move towards the module's parameters after ``step`` steps; faster in the beginning."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in module.named_parameters():
            if name in self.values:
                self.values[name].lerp_(parameter.detach().float().cpu(), 1 - decay)

    def state(self) -> Tensors:
        """Averaged parameters, frozen ones and the module's buffers: a state dict."""
        return {**self.values, **self._fixed}

    def load(self, state: Tensors) -> None:
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
