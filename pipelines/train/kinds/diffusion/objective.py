"""The loss of a step: diffusion on the latents of the planned clips, with randomness keyed by clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kineograph.diffusion.conditioning import given_frames, hold_given, mean_over_asked
from kineograph.diffusion.process import Process
from kineograph.diffusion.random import normal, uniform
from kineograph.store.loader import Batch
from pipelines.train.kinds.diffusion.config import DiffusionRecipe
from pipelines.train.kinds.diffusion.timesteps import Prediction, Timesteps, Told
from pipelines.train.plan.plan import Slot

WithoutCaption = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Text (B L width) and mask (B L) of captions to those that stand for them where they are left out."""


def no_tokens(text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """A caption that is left out has no tokens."""
    return text, torch.zeros_like(mask)


def told_fps(fps: Tensor, config: DiffusionRecipe) -> Tensor:
    """What the model is told of clips at ``fps`` (B): an image, at 0 in a dataset, is at the recipe's image_fps."""
    return torch.where(fps > 0, fps, config.conditioning.image_fps)


def slot_losses(
    process: Process,
    timesteps: Timesteps,
    model: Callable[..., Tensor],
    batch: Batch,
    latents: Tensor,
    slots: Sequence[Slot],
    config: DiffusionRecipe,
    without_caption: WithoutCaption = no_tokens,
) -> Tensor:
    """Loss of each clip (B) for latents (B C T H W).

    Noise, tasks and dropped captions depend on (seed, epoch, clip) and on nothing else, and so do timesteps unless they
    are drawn by importance, so neither the number of ranks nor a restart changes them. An image, or with
    conditioning.factorised off a whole video, is one prediction. A factorised video is two: its first latent frame alone,
    and the rest with the frames given that its task gives; the loss is their mean, weighted by frames.
    """
    keys = [(config.seed, slot.epoch, slot.clip_id) for slot in slots]
    places = tuple(slot.place for slot in slots)
    dropped = torch.tensor([uniform(*key, "caption") < config.conditioning.caption_drop for key in keys])
    dropped = dropped.to(latents.device)[:, None]
    left, left_mask = without_caption(batch.text, batch.text_mask)
    text = torch.where(dropped[..., None], left, batch.text)
    text_mask = torch.where(dropped, left_mask, batch.text_mask)
    fps = told_fps(batch.fps, config)
    frames, pixels = latents.shape[2], int(batch.size[0].prod())

    def part(data: Tensor, purpose: Prediction, given: Tensor) -> Tensor:
        noise = torch.stack([normal(tuple(data.shape[1:]), *key, purpose, "noise") for key in keys]).to(data)
        normals = torch.cat([normal((1,), *key, purpose, "timestep") for key in keys]).to(data.device)
        drawn = timesteps.draw(normals, pixels, data.shape[2])
        timestep = hold_given(drawn.timesteps[:, None].expand_as(given), given)
        noisy = torch.where(given[:, None, :, None, None], data, process.add_noise(data, noise, timestep))
        output = model(noisy, process.model_time(timestep), text, text_mask, fps, batch.size)
        losses = mean_over_asked(process.losses(output, data, noise, timestep), given)
        timesteps.tell(Told(purpose, places, drawn.timesteps, losses.detach()))
        return drawn.weights * losses

    def nothing(data: Tensor) -> Tensor:
        return torch.zeros(data.shape[0], data.shape[2], dtype=torch.bool, device=data.device)

    if frames == 1:
        return part(latents, "whole", nothing(latents))
    tasks = [config.conditioning.tasks.draw(uniform(*key, "task")) for key in keys]
    masks = [given_frames(task, frames, uniform(*key, "given")) for task, key in zip(tasks, keys, strict=True)]
    given = torch.stack(masks).to(latents.device)  # B T
    rest_loss = part(latents, "rest", given)
    if not config.conditioning.factorised:
        return rest_loss
    first = latents[:, :, :1]
    asked = (~given).sum(dim=1)
    return (part(first, "first", nothing(first)) + asked * rest_loss) / (1 + asked)
