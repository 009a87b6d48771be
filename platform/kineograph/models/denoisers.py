"""The models that diffusion trains, by the ``kind`` in their config. Each is called as STDiT is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from kineograph.config import Config
from kineograph.errors import UserError
from kineograph.models.dit import DiT, DiTConfig
from kineograph.models.stdit import STDiT, STDiTConfig

CONFIGS: dict[str, type[Config]] = {"stdit": STDiTConfig, "dit": DiTConfig}


def parse_denoiser(config: Mapping[str, Any]) -> STDiTConfig | DiTConfig:
    """A dumped config as what it was. Raises ValueError when its kind is not known or a field is wrong."""
    kind = config.get("kind")
    if kind not in CONFIGS:
        raise ValueError(f"a model of kind {kind!r}; known: {', '.join(CONFIGS)}")
    parsed = CONFIGS[kind].model_validate(config)
    assert isinstance(parsed, STDiTConfig | DiTConfig)
    return parsed


def build_denoiser(config: STDiTConfig | DiTConfig) -> nn.Module:
    """The model of a config, with its initial weights."""
    return STDiT(config) if isinstance(config, STDiTConfig) else DiT(config)


def load_denoiser(config: Mapping[str, Any], weights: Path) -> nn.Module:
    """The model of a dumped config with the weights of a safetensors file, in fp32 and for inference. Raises ValueError
    as :func:`parse_denoiser`, UserError when the weights cannot be loaded."""
    with torch.device("meta"):  # shapes without memory
        model = build_denoiser(parse_denoiser(config))
    try:
        state = {name: tensor.float() for name, tensor in load_file(weights).items()}  # fp32 is not copied
        model.load_state_dict(state, assign=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{weights} cannot be loaded: {' '.join(str(error).split())[:200]}") from error
    return model.eval()
