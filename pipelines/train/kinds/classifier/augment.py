"""Variations of a clip that depend on (seed, epoch, clip) alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kineograph.diffusion.random import uniform
from kineograph.models.classifier import prepare
from kineograph.models.vit import ViTConfig
from kineograph.models.vivit import ViViTConfig
from kineograph.store.loader import LoadedClip
from pipelines.train.kinds.classifier.config import AugmentConfig
from pipelines.train.plan.plan import Slot


@dataclass(frozen=True)
class Inputs:
    """Makes what a model sees of clips in an epoch: of a ViT (B 3 H W), a random frame of each, of a ViViT (B 3 T H W);
    in [-1, 1]."""

    model: ViTConfig | ViViTConfig
    augment: AugmentConfig
    seed: int

    def __call__(self, clips: Sequence[LoadedClip], slots: Sequence[Slot]) -> Tensor:
        pairs = zip(clips, slots, strict=True)
        return torch.cat([self.of_clip(clip.picture.numpy(), slot) for clip, slot in pairs])

    def of_clip(self, video: np.ndarray, slot: Slot) -> Tensor:
        """The input, with its axis B, of video uint8 (T H W 3)."""
        key = (self.seed, slot.epoch, slot.clip_id)
        if isinstance(self.model, ViTConfig):
            frame = int(uniform(*key, "frame") * len(video))
            video = video[frame : frame + 1]
        return prepare(augment(video, self.augment, *key), self.model)


def augment(video: np.ndarray, config: AugmentConfig, *key: object) -> np.ndarray:
    """A crop of video uint8 (T H W 3), of the same aspect, perhaps mirrored; the same for every frame."""
    height, width = video.shape[1:3]
    scale = 1 - (1 - config.crop) * uniform(*key, "crop")
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    top = int(uniform(*key, "top") * (height - rows + 1))
    left = int(uniform(*key, "left") * (width - columns + 1))
    video = video[:, top : top + rows, left : left + columns]
    return video[:, :, ::-1] if config.flip and uniform(*key, "flip") < 0.5 else video
