"""Rectified flow: straight paths from data to noise (Liu et al. 2022; Esser et al. 2024, SD3).

x_t = (1 - t)·x_0 + t·ε        v = dx_t/dt = ε - x_0        t = 0 is data, t = 1 is noise
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from kineograph.config import Config
from kineograph.diffusion.process import Denoised, Path
from kineograph.errors import UserError

LEAST_TIMESTEP = 0.05
"""Below it the division by t stops growing: clean latents are not asked to be exact to more than the noise that is left."""


class SizeShift(Config):
    """The size at which ``shift`` holds; other sizes shift by the root of how many times larger they are."""

    pixels: int = Field(512 * 512, ge=1)
    """Pixels of a frame."""
    frames: int = Field(1, ge=1)
    """Latent frames."""


class FlowConfig(Config):
    """A rectified flow: what the model predicts and how timesteps are drawn."""

    kind: Literal["flow"] = "flow"
    prediction: Literal["clean", "velocity", "reverse_velocity"] = "clean"
    """What the model says: clean latents, which lie on few dimensions where noise fills them all (Li & He 2025, Back to
    Basics), the velocity, or the velocity from noise to data (Open-Sora v1.2). The loss is the velocity's each time."""
    timesteps: Literal["logit_normal", "uniform"] = "logit_normal"
    """logit_normal puts more of them in the middle (SD3, §3.1)."""
    logit_mean: float = 0.0
    """Mean of logit(t); positive leans towards noise."""
    logit_std: float = Field(1.0, gt=0)
    """Standard deviation of logit(t)."""
    shift: float = Field(1.0, gt=0)
    """t becomes shift·t / (1 + (shift - 1)·t), in training and sampling: more noise for more pixels (SD3, eq. 23)."""
    shift_by_size: SizeShift | None = None
    """Given: ``shift`` is that of this size, and larger videos have more of it (Open-Sora v1.2); none: one for all."""


def shift_timestep(timestep: Tensor, shift: float) -> Tensor:
    """Move timesteps in [0, 1] towards noise: shift·t / (1 + (shift - 1)·t)."""
    shifted = shift * timestep
    return shifted / (shifted + (1 - timestep))  # written so that the ends stay exactly 0 and 1


class RectifiedFlow:
    """The process (diffusion/process.py) of a FlowConfig. Timesteps are real, 0..1."""

    output_factor = 1
    finest = 1000

    def __init__(self, config: FlowConfig) -> None:
        self.config = config

    def shift(self, pixels: int, frames: int) -> float:
        """The shift for videos of ``pixels`` a frame and ``frames`` latent frames."""
        base = self.config.shift_by_size
        if base is None:
            return self.config.shift
        return self.config.shift * math.sqrt(pixels / base.pixels * frames / base.frames)

    def draw_timesteps(self, normal: Tensor, pixels: int, frames: int) -> Tensor:
        """Standard normal numbers (B) to training timesteps in (0, 1) (B)."""
        if self.config.timesteps == "uniform":
            timestep = torch.special.ndtr(normal)
        else:
            timestep = torch.sigmoid(self.config.logit_mean + self.config.logit_std * normal)
        return shift_timestep(timestep, self.shift(pixels, frames))

    def timestep_at(self, time: float) -> Tensor:
        """``time`` itself."""
        return torch.tensor(time)

    def model_time(self, timestep: Tensor) -> Tensor:
        """1000·t."""
        return timestep * 1000

    def add_noise(self, data: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """x_t for data and noise (B C T H W) and a timestep per frame (B T)."""
        t = _per_frame(timestep, data)
        return (1 - t) * data + t * noise

    def velocity(self, output: Tensor, noisy: Tensor, timestep: Tensor) -> Tensor:
        """What ``output`` says v is (B C T H W); channels of the output behind the first C are left aside."""
        output = output[:, : noisy.shape[1]]
        if self.config.prediction == "velocity":
            return output
        if self.config.prediction == "reverse_velocity":
            return -output
        # v = ε - x_0 = (x_t - x_0) / t
        return (noisy - output) / _per_frame(timestep, noisy).clamp_min(LEAST_TIMESTEP)

    def denoised(self, output: Tensor, noisy: Tensor, timestep: Tensor) -> Denoised:
        """x_0 = x_t - t·v and ε = x_t + (1 - t)·v."""
        t, v = _per_frame(timestep, noisy), self.velocity(output, noisy, timestep)
        return Denoised(noisy - t * v, noisy + (1 - t) * v, None)

    def losses(self, output: Tensor, data: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """Squared error of the velocity (B T), mean over channels and places, in fp32 at least."""
        output, data, noise = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (output, data, noise))
        predicted = self.velocity(output, self.add_noise(data, noise, timestep), timestep)
        return (predicted - (noise - data)).square().mean((1, 3, 4))

    def path(self, steps: int, pixels: int, frames: int) -> Path:
        """From t = 1 to 0, even before the shift. Raises UserError for less than one step."""
        if steps < 1:
            raise UserError("sampling needs at least one step")
        grid = shift_timestep(torch.linspace(1, 0, steps + 1, dtype=torch.float64), self.shift(pixels, frames))
        return Path(grid, 1 - grid, grid)


def _per_frame(timestep: Tensor, latents: Tensor) -> Tensor:
    """(B T) for arithmetic with latents (B C T H W)."""
    return timestep[:, None, :, None, None].to(latents.dtype)
