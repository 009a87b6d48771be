"""The loss of a step: rectified flow on the latents of the planned clips, with randomness keyed by clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kineograph.diffusion.conditioning import hold_given, masked_flow_loss
from kineograph.diffusion.flow import add_noise, timesteps_from_normal
from kineograph.diffusion.random import normal, uniform
from kineograph.store.loader import Batch
from pipelines.train.config import TrainConfig
from pipelines.train.plan import Slot


def slot_losses(
    model: Callable[..., Tensor], batch: Batch, latents: Tensor, slots: Sequence[Slot], config: TrainConfig
) -> Tensor:
    """Flow loss of each clip (B) for latents (B C T H W).

    Noise, timestep, dropped caption and given first frame depend on (seed, epoch, clip) and on nothing else, so neither
    the number of ranks nor a restart changes them.
    """
    keys = [(config.seed, slot.epoch, slot.clip.clip_id) for slot in slots]
    noise = torch.stack([normal(tuple(latents.shape[1:]), *key, "noise") for key in keys]).to(latents)
    normals = torch.cat([normal((1,), *key, "timestep") for key in keys]).to(latents.device)
    frames = latents.shape[2]
    given = torch.zeros(len(keys), frames, dtype=torch.bool, device=latents.device)
    if frames > 1:
        given[:, 0] = _chosen(keys, "first_frame", config.conditioning.first_frame).to(given.device)
    timestep = hold_given(timesteps_from_normal(normals, config.flow)[:, None].expand(-1, frames), given)
    dropped = _chosen(keys, "caption", config.conditioning.caption_drop).to(latents.device)
    text_mask = batch.text_mask & ~dropped[:, None]

    predicted = model(add_noise(latents, noise, timestep), timestep, batch.text, text_mask, batch.fps, batch.size)
    return masked_flow_loss(predicted, latents, noise, given)


def _chosen(keys: Sequence[tuple[int, int, str]], purpose: str, share: float) -> Tensor:
    """For each key True with probability ``share``."""
    return torch.tensor([uniform(*key, purpose) < share for key in keys])
