"""AdamW as recipes describe it: learning rates by step and by layer, what is frozen, and DeepSpeed's settings."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from kineograph.config import Config
from kineograph.errors import UserError

LR_SCALE = "lr_scale"
"""Key of a parameter group: what the step's learning rate is multiplied with."""

RAW_KEYS = (
    "comms_logger",
    "communication_data_type",
    "disable_allgather",
    "disable_python_gc",
    "dump_state",
    "gradient_predivide_factor",
    "log_level",
    "memory_breakdown",
    "prescale_gradients",
    "steps_per_print",
    "timers",
    "wall_clock_breakdown",
    "zero_optimization",
)
"""DeepSpeed's own keys that leave the training what it is: they may be set in ``deepspeed.raw``."""

OWNED_KEYS = {
    "train_batch_size": "batch",
    "train_micro_batch_size_per_gpu": "costs",
    "gradient_accumulation_steps": "costs",
    "managed_gradient_accumulation": "costs",
    "gradient_clipping": "optimizer.clip_norm",
    "optimizer": "optimizer",
    "scheduler": "optimizer.schedule",
    "fp16": "precision",
    "bf16": "precision",
    "bfloat16": "precision",
    "amp": "precision",
    "torch_autocast": "precision",
    "data_types": "precision",
    "activation_checkpointing": "execution",
    "compile": "execution",
}
"""DeepSpeed's keys that Kineograph sets, and where in a recipe to say it."""

OWNED_ZERO_KEYS = {
    "stage": "deepspeed.zero_stage",
    "offload_optimizer": "deepspeed.offload",
    "offload_param": "deepspeed.offload",
    "cpu_offload": "deepspeed.offload",
    "cpu_offload_param": "deepspeed.offload",
}
"""The same below ``zero_optimization``."""


class LayerConfig(Config):
    """Parameters that learn otherwise than the rest."""

    match: str
    """Of their names: all that begin so (``blocks.0`` is blocks.0.… and not blocks.01.…), or a regular expression of whole
    names (``.*\\.bias``)."""
    lr: float = Field(1.0, ge=0)
    """The learning rate is multiplied with this."""
    weight_decay: float | None = Field(None, ge=0)
    """None: the optimizer's."""

    @field_validator("match")
    @classmethod
    def _is_pattern(cls, pattern: str) -> str:
        return checked_pattern(pattern)


class OptimizerConfig(Config):
    """AdamW with linear warm-up."""

    lr: float = Field(1e-4, gt=0)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(0.0, ge=0)
    warmup_steps: int = Field(50, ge=0)
    schedule: Literal["cosine", "constant", "linear", "inverse_sqrt", "wsd"] = "cosine"
    """After the warm-up of w steps: cosine and linear go down to final_ratio·lr at the last step; constant is flat;
    inverse_sqrt is lr·√(w / step), never below final_ratio·lr; wsd (warm-up, stable, decay) is flat, then linear down to
    final_ratio·lr over the last cooldown of all steps."""
    final_ratio: float = Field(0.05, ge=0, le=1)
    cooldown: float = Field(0.2, gt=0, le=1)
    """Share of all steps, 0..1, in which wsd goes down; 0.2 as in Hägele et al. 2024."""
    clip_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this global norm."""
    ema_decay: float = Field(0.999, ge=0, lt=1)
    """Decay per step of the weights' moving average; shorter at the start: min(decay, (1 + step) / (10 + step))."""
    layers: tuple[LayerConfig, ...] = ()
    """Learning rates and weight decays by layer; of several that match a name the first counts."""
    freeze: tuple[str, ...] = ()
    """Parameters that are not trained, by patterns as in layers.match."""
    max_skipped: int = Field(10, ge=1)
    """A step whose gradient is not finite is skipped; after so many in a row training stops."""

    @field_validator("freeze")
    @classmethod
    def _are_patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(checked_pattern(pattern) for pattern in patterns)


class DeepSpeedConfig(Config):
    """How the training's state is spread over the ranks, and where it is kept."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    """What each rank has only its share of: 0 nothing, 1 Adam's moments and the weights that it updates, 2 the gradients
    too, 3 all weights, which are gathered layer by layer."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What is kept in the host's memory: optimizer (stage 1 to 3), where it is also updated, or that and the parameters
    (stage 3)."""
    raw: dict[str, Any] = Field(default_factory=dict)
    """DeepSpeed's own keys, laid over what the above make of them, e.g. {zero_optimization: {reduce_bucket_size:
    10000000}}. Keys that are set elsewhere in a recipe are refused."""

    @model_validator(mode="after")
    def _check(self) -> DeepSpeedConfig:
        lowest = {"none": 0, "optimizer": 1, "parameters": 3}[self.offload]
        if self.zero_stage < lowest:
            raise ValueError(f"offload {self.offload} needs zero_stage {lowest}, not {self.zero_stage}")
        _refuse_owned(self.raw, OWNED_KEYS, "raw")
        for key in self.raw:
            if key not in RAW_KEYS:
                raise ValueError(f"raw.{key} is no key that is passed on to DeepSpeed; {near(key, RAW_KEYS)}")
        zero = self.raw.get("zero_optimization", {})
        if not isinstance(zero, dict):
            raise ValueError("raw.zero_optimization is a mapping of keys")
        _refuse_owned(zero, OWNED_ZERO_KEYS, "raw.zero_optimization")
        return self


def _refuse_owned(raw: Mapping[str, Any], owned: Mapping[str, str], where: str) -> None:
    for key in raw:
        if key in owned:
            raise ValueError(f"{where}.{key} cannot be set here: the recipe's {owned[key]} says it")


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Learning rate of step ``step`` (from 0) of ``steps``: linear warm-up, then the schedule."""
    warmup, final = config.warmup_steps, config.final_ratio
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "inverse_sqrt":
        return config.lr * max(final, math.sqrt(max(1, warmup) / (max(1, warmup) + step - warmup)))
    begin = max(warmup, steps - round(steps * config.cooldown)) if config.schedule == "wsd" else warmup
    progress = max(0.0, (step - begin) / max(1, steps - begin))
    shape = 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1 - progress
    return config.lr * (final + (1 - final) * shape)


def checked_pattern(pattern: str) -> str:
    """``pattern`` if it is a name's beginning or a regular expression; raises ValueError."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    return pattern


def matches(pattern: str, name: str) -> bool:
    """Whether ``name`` is ``pattern``, lies below it, or is matched whole by it as a regular expression."""
    return name == pattern or name.startswith(f"{pattern}.") or re.fullmatch(pattern, name) is not None


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Let no gradient be taken of the parameters that ``patterns`` match. Raises UserError where one matches nothing."""
    named = dict(model.named_parameters())
    for pattern in patterns:
        for name in _matched(pattern, named, "optimizer.freeze"):
            named[name].requires_grad_(False)


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """The trained parameters as groups for torch.optim.AdamW, each with its weight decay and LR_SCALE.

    Raises UserError where a pattern of ``config.layers`` matches nothing, or nothing is trained.
    """
    named = dict(model.named_parameters())
    trained = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    if not trained:
        raise UserError("all parameters are frozen: take patterns out of optimizer.freeze")
    groups: list[dict[str, Any]] = []
    for layer in config.layers:
        names = [name for name in _matched(layer.match, named, "optimizer.layers") if name in trained]
        decay = config.weight_decay if layer.weight_decay is None else layer.weight_decay
        groups.append({"params": [trained.pop(n) for n in names], "weight_decay": decay, LR_SCALE: layer.lr})
    groups.append({"params": list(trained.values()), "weight_decay": config.weight_decay, LR_SCALE: 1.0})
    return [group for group in groups if group["params"]]


def _matched(pattern: str, names: Iterable[str], where: str) -> list[str]:
    found = [name for name in names if matches(pattern, name)]
    if not found:
        parts = {".".join(name.split(".")[:n]) for name in names for n in range(1, name.count(".") + 2)}
        raise UserError(f"{where}: {pattern!r} matches no parameter; {near(pattern, sorted(parts))}")
    return found


def near(name: str, known: Sequence[str]) -> str:
    """A few words on which of ``known`` was meant."""
    nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"near: {', '.join(nearest)}" if nearest else f"known: {', '.join(known[:12])}"


class ClippedAdamW(torch.optim.AdamW):
    """AdamW that scales gradients down to a global norm, and does nothing where they are not finite. Every rank must have
    the same gradients."""

    # DeepSpeed asks for these by name, as its own optimizers have them.
    overflow = False
    _global_grad_norm: Tensor | float = 0.0

    def __init__(self, groups: list[dict[str, Any]], clip_norm: float, **settings: Any) -> None:
        super().__init__(groups, **settings)
        self._clip_norm = clip_norm

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        self._global_grad_norm, self.overflow = norm, not math.isfinite(norm)
        if self.overflow:
            return
        if norm > self._clip_norm:
            torch._foreach_mul_(gradients, self._clip_norm / (norm + 1e-6))
        super().step()
