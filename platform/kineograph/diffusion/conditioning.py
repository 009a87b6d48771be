"""Frame conditioning by per-frame timesteps: a given frame is at timestep 0 and has no loss.

Text to video is factorised (Girdhar et al. 2023, Emu Video): p(video | text) = p(first | text) · p(rest | first, text).
Both factors are one model, trained on every clip; the first frame is a video of one latent frame.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kineograph.diffusion.flow import sample_euler, velocity


def hold_given(timestep: Tensor, given: Tensor) -> Tensor:
    """Timesteps (B T) with those of ``given`` (B T, bool) frames at 0, so that they are without noise."""
    return timestep.masked_fill(given, 0.0)


def masked_flow_loss(predicted: Tensor, data: Tensor, noise: Tensor, given: Tensor) -> Tensor:
    """Mean squared error of the velocity over the frames that are not ``given`` (B T), per clip: (B C T H W) to (B)."""
    error = (predicted.float() - velocity(data, noise).float()).square().mean((1, 3, 4))  # B T
    asked = (~given).to(error.dtype)
    return (error * asked).sum(1) / asked.sum(1).clamp_min(1)


def sample_given(
    predict: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    frames: Tensor,
    given: Tensor,
    steps: int,
    shift: float = 1.0,
) -> Tensor:
    """Sample the frames that are not ``given`` (B T); the others come back as they are in ``frames`` (B C T H W)."""
    keep = given[:, None, :, None, None]

    def predict_rest(x: Tensor, timestep: Tensor) -> Tensor:
        return predict(torch.where(keep, frames, x), hold_given(timestep, given))

    sampled = sample_euler(predict_rest, noise, steps, shift)
    return torch.where(keep, frames, sampled)


def first_given(latents: Tensor) -> Tensor:
    """The mask (B T) that gives the first latent frame of every clip (B C T H W)."""
    given = torch.zeros(latents.shape[0], latents.shape[2], dtype=torch.bool, device=latents.device)
    given[:, 0] = True
    return given


def sample_first_frame_first(
    predict: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int, shift: float = 1.0
) -> Tensor:
    """Sample the first latent frame alone, then the others with it given: noise (B C T H W) to latents of that shape."""
    first = sample_euler(predict, noise[:, :, :1], steps, shift)
    if noise.shape[2] == 1:
        return first
    frames = torch.cat([first, noise[:, :, 1:]], dim=2)
    return sample_given(predict, noise, frames, first_given(noise), steps, shift)
