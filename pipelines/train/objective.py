"""The loss of a step: rectified flow on the latents of the planned clips, with randomness keyed by clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kineograph.diffusion.conditioning import first_given, hold_given, masked_flow_loss
from kineograph.diffusion.flow import add_noise, timesteps_from_normal
from kineograph.diffusion.random import normal, uniform
from kineograph.store.loader import Batch
from pipelines.train.config import TrainConfig
from pipelines.train.plan import Slot


def slot_losses(
    model: Callable[..., Tensor], batch: Batch, latents: Tensor, slots: Sequence[Slot], config: TrainConfig
) -> Tensor:
    """Flow loss of each clip (B) for latents (B C T H W).

    Noise, timesteps and dropped captions depend on (seed, epoch, clip) and on nothing else, so neither the number of
    ranks nor a restart changes them. An image, or with conditioning.factorised off a whole video, is one prediction. A
    factorised video is two: its first latent frame alone, and the rest with that frame given; the loss is their mean,
    weighted by frames.
    """
    keys = [(config.seed, slot.epoch, slot.clip.clip_id) for slot in slots]
    dropped = torch.tensor([uniform(*key, "caption") < config.conditioning.caption_drop for key in keys])
    text_mask = batch.text_mask & ~dropped.to(latents.device)[:, None]
    frames = latents.shape[2]

    def part(data: Tensor, purpose: str, given: Tensor) -> Tensor:
        noise = torch.stack([normal(tuple(data.shape[1:]), *key, purpose, "noise") for key in keys]).to(data)
        normals = torch.cat([normal((1,), *key, purpose, "timestep") for key in keys]).to(data.device)
        timestep = hold_given(timesteps_from_normal(normals, config.flow)[:, None].expand_as(given), given)
        predicted = model(add_noise(data, noise, timestep), timestep, batch.text, text_mask, batch.fps, batch.size)
        return masked_flow_loss(predicted, data, noise, given)

    if frames == 1 or not config.conditioning.factorised:
        return part(latents, "whole", torch.zeros_like(latents[:, 0, :, 0, 0], dtype=torch.bool))
    first = latents[:, :, :1]
    first_loss = part(first, "first", torch.zeros_like(first[:, 0, :, 0, 0], dtype=torch.bool))
    rest_loss = part(latents, "rest", first_given(latents))
    return (first_loss + (frames - 1) * rest_loss) / frames
