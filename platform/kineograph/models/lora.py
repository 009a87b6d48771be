"""LoRA: fine-tuning by matrices of low rank beside the weights, which stay as they are (Hu et al. 2021).

An adapted layer computes x Wᵀ + b + alpha/rank · x Aᵀ Bᵀ with A (rank, inputs) and B (outputs, rank), of which B starts at
zero. The base weights keep their names, and adapters are named as the peft library saves them, NAME.lora_A.weight and
NAME.lora_B.weight. What is not trained knows nothing of adapters: it is given merged weights, W + alpha/rank · B A.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping

from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from kineograph.config import Config
from kineograph.errors import UserError

_SUFFIXES = (".lora_A.weight", ".lora_B.weight")


class LoRAConfig(Config):
    """Which layers get adapters, and how large."""

    rank: int = Field(16, ge=1)
    """Of the product B A."""
    alpha: float = Field(16.0, gt=0)
    """The product counts alpha/rank times."""
    match: tuple[str, ...] = (r"(.*\.)?blocks\.\d+\.(attention|cross|mlp)(\..*)?",)
    """Names of linear layers: all that begin so (``blocks.0`` is blocks.0.… and not blocks.01.…), or regular expressions of
    whole names. The default is attention and the MLP in every block."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of a layer's inputs, 0..1, that its adapter does not see in training."""

    @field_validator("match")
    @classmethod
    def _are_patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return patterns

    @property
    def scale(self) -> float:
        """What B A is multiplied with."""
        return self.alpha / self.rank


class LoRALinear(nn.Linear):
    """A linear layer with an adapter. ``weight`` and ``bias`` are those of the layer that it replaces."""

    def __init__(self, layer: nn.Linear, config: LoRAConfig) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.scale = config.scale
        like = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        self.lora_A = nn.Linear(self.in_features, config.rank, bias=False, **like)
        self.lora_B = nn.Linear(config.rank, self.out_features, bias=False, **like)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) + self.scale * self.lora_B(self.lora_A(self.dropout(x)))


def add_lora(model: nn.Module, config: LoRAConfig) -> list[str]:
    """Freeze ``model`` and give adapters, which are trained, to the linear layers that ``config`` names. Returns the names.

    Raises UserError where a pattern matches no linear layer, or the rank is no less than a layer's sides.
    """
    layers = {name: layer for name, layer in model.named_modules() if type(layer) is nn.Linear}
    chosen = sorted({name for pattern in config.match for name in _matched(pattern, layers)}, key=list(layers).index)
    for name in chosen:
        least = min(layers[name].in_features, layers[name].out_features)
        if config.rank >= least:
            raise UserError(
                f"lora.rank {config.rank} is not below {least}, a side of {name}: lower it, or leave it out"
            )
    model.requires_grad_(False)
    for name in chosen:
        _replace(model, name, LoRALinear(layers[name], config).train(layers[name].training))
    return chosen


def merged_state(state: Mapping[str, Tensor], config: LoRAConfig) -> dict[str, Tensor]:
    """The state dict of an adapted model, its weights or their moving average, as one of the model without adapters. One
    without any is given back as it is."""
    adapters = lora_state(state)
    merged = {name: tensor for name, tensor in state.items() if name not in adapters}
    for name in adapters:
        if name.endswith(_SUFFIXES[0]):
            layer = name.removesuffix(_SUFFIXES[0])
            weight, a, b = merged[f"{layer}.weight"], adapters[name], adapters[layer + _SUFFIXES[1]]
            merged[f"{layer}.weight"] = (weight + config.scale * (b.float() @ a.float())).to(weight.dtype)
    return merged


def lora_state(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """The adapters of a state dict alone. With ``prefix`` "base_model.model." they have the names that the peft library
    reads from adapter_model.safetensors, with "transformer." those of diffusers."""
    return {prefix + name: tensor for name, tensor in state.items() if name.endswith(_SUFFIXES)}


def _matched(pattern: str, names: Mapping[str, nn.Linear]) -> list[str]:
    """As optimizer.layers and optimizer.freeze match."""
    found = [n for n in names if n == pattern or n.startswith(f"{pattern}.") or re.fullmatch(pattern, n)]
    if not found:
        nearest = difflib.get_close_matches(pattern, list(names), n=3, cutoff=0.5) or list(names)[:6]
        raise UserError(f"lora.match: {pattern!r} matches no linear layer; there are {', '.join(nearest)}")
    return found


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer)
