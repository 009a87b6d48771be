"""Rectified flow: straight paths from data to noise (Liu et al. 2022; Esser et al. 2024, SD3).

x_t = (1 - t)·x_0 + t·ε        v = dx_t/dt = ε - x_0        t = 0 is data, t = 1 is noise
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from kineograph.config import Config


class FlowConfig(Config):
    """How timesteps are drawn in training."""

    timesteps: Literal["logit_normal", "uniform"] = "logit_normal"
    """logit_normal puts more of them in the middle (SD3, §3.1)."""
    logit_mean: float = 0.0
    """Mean of logit(t); positive leans towards noise."""
    logit_std: float = Field(1.0, gt=0)
    """Standard deviation of logit(t)."""
    shift: float = Field(1.0, gt=0)
    """t becomes shift·t / (1 + (shift - 1)·t), in training and sampling: more noise for more pixels (SD3, eq. 23)."""


def shift_timestep(timestep: Tensor, shift: float) -> Tensor:
    """Move timesteps in [0, 1] towards noise: shift·t / (1 + (shift - 1)·t)."""
    return shift * timestep / (1 + (shift - 1) * timestep)


def timesteps_from_normal(normal: Tensor, config: FlowConfig) -> Tensor:
    """Turn standard normal numbers into training timesteps in (0, 1) of the configured law."""
    if config.timesteps == "uniform":
        timestep = torch.special.ndtr(normal)
    else:
        timestep = torch.sigmoid(config.logit_mean + config.logit_std * normal)
    return shift_timestep(timestep, config.shift)


def add_noise(data: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """x_t for data and noise (B C T H W) and a timestep per frame (B T)."""
    t = timestep[:, None, :, None, None].to(data.dtype)
    return (1 - t) * data + t * noise


def velocity(data: Tensor, noise: Tensor) -> Tensor:
    """What the model is to predict: v = ε - x_0."""
    return noise - data


def flow_loss(predicted: Tensor, data: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the velocity, per clip: (B C T H W) to (B)."""
    return (predicted.float() - velocity(data, noise).float()).square().flatten(1).mean(1)


@torch.inference_mode()
def sample_euler(
    predict: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    steps: int,
    shift: float = 1.0,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Integrate dx/dt = v from noise (t = 1) to data (t = 0) in ``steps`` Euler steps.

    ``predict(x, timestep)`` gives v for x (B C T H W) and timestep (B T). The grid is uniform in t before the shift.
    """
    if steps < 1:
        raise ValueError("sampling needs at least one step")
    grid = shift_timestep(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift)
    x = noise
    for step in range(steps):
        timestep = torch.full((x.shape[0], x.shape[2]), float(grid[step]), device=x.device)
        x = x + float(grid[step + 1] - grid[step]) * predict(x, timestep)
        if on_step is not None:
            on_step(step)
    return x
