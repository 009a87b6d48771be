"""What every diffusion process offers: noise on data, what a model's output means, and the path that a sampler takes.

A process is a family x_t = α(t)·x_0 + σ(t)·ε from data (α = 1, σ = 0) to noise. Rectified flows and the Gaussian
processes (DDPM, IDDPM) differ in α, σ, their unit of time and in what the model is asked to predict; guidance, frame
conditioning, samplers and training see only this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Path:
    """Where a sampler stops on its way from noise to data: n steps are n + 1 nodes, and the last one is clean."""

    timesteps: Tensor
    """(n + 1) float64, in the process's unit; the last one, which no model sees, is 0."""
    alphas: Tensor
    """(n + 1) float64: x_t = alpha·x_0 + sigma·noise; the last is 1."""
    sigmas: Tensor
    """(n + 1) float64; the last is 0."""


class Denoised(NamedTuple):
    """What a model's output says of noisy latents, each (B C T H W)."""

    clean: Tensor
    """Estimate of x_0."""
    noise: Tensor
    """Estimate of the noise."""
    variance: Tensor | None
    """0..1 interpolates, in logs, from the posterior's variance (0) to β (1) (IDDPM, eq. 15), as the model learned it or
    as the process has it; None is the posterior's."""


class Process(Protocol):
    """A diffusion process. Latents are (B C T H W), timesteps (B T) one per frame."""

    @property
    def finest(self) -> int:
        """The steps of the finest path of which samplers of few steps pick nodes."""
        ...

    @property
    def output_factor(self) -> int:
        """2 when the model's output holds, along its channels, a variance behind the prediction; else 1."""
        ...

    def draw_timesteps(self, normal: Tensor, pixels: int, frames: int) -> Tensor:
        """Standard normal numbers (B) to training timesteps (B), for videos of ``pixels`` a frame and ``frames`` latent
        frames."""
        ...

    def timestep_at(self, time: float) -> Tensor:
        """The timestep, a scalar tensor, nearest to ``time``, 0 (data) .. 1 (noise)."""
        ...

    def model_time(self, timestep: Tensor) -> Tensor:
        """What the model is told of ``timestep`` (any shape): 0 (data) .. 1000 (noise)."""
        ...

    def add_noise(self, data: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """x_t for data and noise (B C T H W) at ``timestep`` (B T)."""
        ...

    def denoised(self, output: Tensor, noisy: Tensor, timestep: Tensor) -> Denoised:
        """What ``output`` (B C·output_factor T H W) says of ``noisy`` (B C T H W) at ``timestep`` (B T)."""
        ...

    def losses(self, output: Tensor, data: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """The training loss of each frame (B T): mean over its channels and places, with the process's weights."""
        ...

    def path(self, steps: int, pixels: int, frames: int) -> Path:
        """The nodes of a sampler of ``steps`` steps for videos of this size. Raises UserError where there are none."""
        ...
