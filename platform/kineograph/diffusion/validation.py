"""Validation loss of a rectified flow at fixed timesteps: it tracks quality, where a loss at random timesteps is noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kineograph.diffusion.flow import add_noise, flow_loss
from kineograph.diffusion.random import normal


@torch.no_grad()
def validation_losses(
    model: nn.Module,
    latents: Tensor,
    text: Tensor,
    text_mask: Tensor,
    fps: Tensor,
    size: Tensor,
    clip_ids: Sequence[str],
    timesteps: Sequence[float],
) -> Tensor:
    """Flow loss of each clip at each timestep (B, timesteps); all frames share the timestep.

    latents (B C T H W), the conditions as in STDiT.forward. The noise of a clip depends on its id alone, so that
    checkpoints are compared on the same numbers.
    """
    noise = torch.stack([normal(tuple(latents.shape[1:]), "validation", c) for c in clip_ids]).to(latents)
    columns = []
    for t in timesteps:
        timestep = torch.full((latents.shape[0], latents.shape[2]), t, device=latents.device)
        predicted = model(add_noise(latents, noise, timestep), timestep, text, text_mask, fps, size)
        columns.append(flow_loss(predicted, latents, noise))
    return torch.stack(columns, dim=1)
