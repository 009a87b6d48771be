"""Validation loss at fixed timesteps: it tracks quality, where a loss at random timesteps is noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kineograph.diffusion.process import Process
from kineograph.diffusion.random import normal


@torch.no_grad()
def validation_losses(
    process: Process,
    model: nn.Module,
    latents: Tensor,
    text: Tensor,
    text_mask: Tensor,
    fps: Tensor,
    size: Tensor,
    clip_ids: Sequence[str],
    times: Sequence[float],
) -> Tensor:
    """Loss of each clip at each of ``times`` (B, times), 0 = data .. 1 = noise; all frames share the timestep.

    latents (B C T H W), the conditions as in STDiT.forward. The noise of a clip depends on its id alone, so that
    checkpoints are compared on the same numbers.
    """
    noise = torch.stack([normal(tuple(latents.shape[1:]), "validation", c) for c in clip_ids]).to(latents)
    columns = []
    for time in times:
        timestep = process.timestep_at(time).to(latents.device).expand(latents.shape[0], latents.shape[2])
        noisy = process.add_noise(latents, noise, timestep)
        output = model(noisy, process.model_time(timestep), text, text_mask, fps, size)
        columns.append(process.losses(output, latents, noise, timestep).mean(1))
    return torch.stack(columns, dim=1)
