"""From a recipe's ``diffusion:`` to the process."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from kineograph.diffusion.flow import FlowConfig, RectifiedFlow
from kineograph.diffusion.gaussian import Gaussian, GaussianConfig
from kineograph.diffusion.process import Process

DiffusionConfig = Annotated[FlowConfig | GaussianConfig, Field(discriminator="kind")]


def parse_diffusion(config: Any) -> FlowConfig | GaussianConfig:
    """A dumped config as what it was. Raises ValueError when it is of no process."""
    parsed: FlowConfig | GaussianConfig = TypeAdapter(DiffusionConfig).validate_python(config)
    return parsed


def build_process(config: FlowConfig | GaussianConfig) -> Process:
    """The process of a config."""
    return RectifiedFlow(config) if isinstance(config, FlowConfig) else Gaussian(config)
