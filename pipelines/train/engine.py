"""The only file that knows DeepSpeed: one optimizer step over all ranks, and the optimizer's state as named tensors."""

from __future__ import annotations

import logging
import math
import os
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.train.config import OptimizerConfig, TrainConfig

# Where DeepSpeed looks for itself it warns that it found a CPU.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

import deepspeed
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)

MOMENTS = ("exp_avg", "exp_avg_sq")


class Engine:
    """A model under DeepSpeed ZeRO with AdamW. ``module`` holds the whole weights on every rank (ZeRO 0 to 2). Parameters
    that need no gradient are frozen: in fp32, also in bf16, and without moments."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        # On CPUs DeepSpeed would compile a shared-memory all-reduce at its first use, which takes a compiler and most of a
        # minute, and whose ranks wait for each other for ever when one died. gloo does the same work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        parameters = [p for p in model.parameters() if p.requires_grad]
        frozen = {n: p.detach().float().clone() for n, p in model.named_parameters() if not p.requires_grad}
        optimizer = torch.optim.AdamW(
            parameters,
            lr=config.optimizer.lr,
            betas=config.optimizer.betas,
            weight_decay=config.optimizer.weight_decay,
        )
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            dist_init_required=False,
            config={
                # Ours to count: a step's loss is already weighted to the mean over the global batch.
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": 1,
                "gradient_clipping": config.optimizer.clip_norm,
                "zero_optimization": {"stage": zero_stage(config)},
                "zero_allow_untested_optimizer": True,
                "bf16": {"enabled": config.precision == "bf16"},
                "wall_clock_breakdown": False,
            },
        )
        self.module: Any = self._engine.module
        self.device: torch.device = self._engine.device
        self._is_bf16 = config.precision == "bf16"
        for name, parameter in self.module.named_parameters():
            if name in frozen:  # DeepSpeed has rounded it to bf16
                parameter.data = frozen[name].to(self.device)

    def __call__(self, *inputs: Any) -> Any:
        """What the module's ``forward`` gives: what a loss is computed from as tensors, or in a tuple, list or dict, since
        DeepSpeed prepares for the backward pass where the gradient reaches them."""
        # With weights in bf16 autocast decides what is computed in it; inputs come in fp32, and so do sums and norms.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._is_bf16):
            return self._engine(*inputs)

    def step(self, loss: Tensor, lr: float) -> float:
        """Backward, average over ranks, clip, update with ``lr``. Returns the gradient's global norm before clipping."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.backward(loss)
        if self._is_sharded:
            self._engine.step()
            return float(self._engine.get_global_grad_norm())
        # Without sharding DeepSpeed clips but does not tell the norm.
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None])
        self._engine.step()
        return float(norm)

    def weights(self) -> dict[str, Tensor]:
        """The module's state dict in fp32, also where it computes in bf16. Every rank must call it."""
        state = {name: tensor.detach().cpu().clone() for name, tensor in self.module.state_dict().items()}
        if self._is_bf16:
            for name, parameter in self._trained():
                state[name] = safe_get_full_fp32_param(parameter).detach().float().cpu().clone()
        return state

    def optimizer_state(self) -> dict[str, Tensor]:
        """Adam's moments in full, fp32, as ``exp_avg.NAME`` and ``exp_avg_sq.NAME``. Every rank must call it."""
        state = {}
        for name, parameter in self._trained():
            for moment in MOMENTS:
                state[f"{moment}.{name}"] = self._moment(parameter, moment).detach().float().cpu().clone()
        return state

    def load(self, weights: dict[str, Tensor], moments: dict[str, Tensor], step: int) -> None:
        """Set weights, moments and Adam's step count. Every rank must call it, before the first step."""
        self._create_state()
        with torch.no_grad():
            for name, buffer in self.module.named_buffers():
                buffer.copy_(weights[name])
            for name, parameter in self.module.named_parameters():
                parameter.copy_(weights[name])
            for name, parameter in self._trained():
                if self._is_sharded:
                    safe_set_full_fp32_param(parameter, weights[name])
                for moment in MOMENTS:
                    self._set_moment(parameter, moment, moments[f"{moment}.{name}"])
        for state in self._base_optimizer.state.values():
            state["step"] = torch.tensor(float(step))

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(n, p) for n, p in self.module.named_parameters() if p.requires_grad]

    @property
    def _is_sharded(self) -> bool:
        return hasattr(self._engine.optimizer, "optimizer")

    @property
    def _base_optimizer(self) -> torch.optim.Optimizer:
        optimizer = self._engine.optimizer
        base: torch.optim.Optimizer = optimizer.optimizer if self._is_sharded else optimizer
        return base

    def _create_state(self) -> None:
        """Adam makes its moments at its first step: take one with zero gradients and a learning rate of zero."""
        zero = sum((p.sum() * 0 for _, p in self._trained()), torch.zeros((), device=self.device))
        self.step(zero, lr=0.0)

    def _moment(self, parameter: nn.Parameter, moment: str) -> Tensor:
        if self._is_sharded:
            full: Tensor = safe_get_full_optimizer_state(parameter, moment)
            return full
        return self._base_optimizer.state[parameter][moment]

    def _set_moment(self, parameter: nn.Parameter, moment: str, value: Tensor) -> None:
        if self._is_sharded:
            safe_set_full_optimizer_state(parameter, value, moment)
        else:
            self._base_optimizer.state[parameter][moment].copy_(value)


def zero_stage(config: TrainConfig) -> int:
    """The ZeRO stage: in bf16 at least 1, which keeps the weights in fp32 where they can be saved."""
    return max(config.workers.zero_stage, 1 if config.precision == "bf16" else 0)


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Learning rate of step ``step`` (from 0): linear warm-up, then the schedule down to its end at ``steps``."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.lr * (config.final_ratio + (1 - config.final_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))
