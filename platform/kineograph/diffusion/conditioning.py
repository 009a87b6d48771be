"""Frame conditioning by per-frame timesteps: a given frame is at timestep 0 and has no loss.

A model trained so continues a first frame. Text to video is then two samplings: the first frame from the text, the rest
from the text and that frame (Girdhar et al. 2023, Emu Video).
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
    """Sample the frames that are not ``given`` (T, bool); the others come back as they are in ``frames`` (B C T H W)."""
    held = given[None, :].expand(noise.shape[0], -1)
    keep = held[:, None, :, None, None]

    def predict_rest(x: Tensor, timestep: Tensor) -> Tensor:
        return predict(torch.where(keep, frames, x), hold_given(timestep, held))

    sampled = sample_euler(predict_rest, noise, steps, shift)
    return torch.where(keep, frames, sampled)


def sample_first_frame_first(
    predict: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int, shift: float = 1.0
) -> Tensor:
    """Sample all frames, keep the first, and sample the others again with it given."""
    whole = sample_euler(predict, noise, steps, shift)
    if noise.shape[2] == 1:
        return whole
    given = torch.zeros(noise.shape[2], dtype=torch.bool, device=noise.device)
    given[0] = True
    return sample_given(predict, noise, whole, given, steps, shift)
