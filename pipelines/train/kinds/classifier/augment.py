"""Variations of a clip that depend on (seed, epoch, clip) alone."""

from __future__ import annotations

import numpy as np

from kineograph.diffusion.random import uniform
from pipelines.train.kinds.classifier.config import AugmentConfig


def augment(video: np.ndarray, config: AugmentConfig, *key: object) -> np.ndarray:
    """A crop of video uint8 (T H W 3), of the same aspect, perhaps mirrored; the same for every frame."""
    height, width = video.shape[1:3]
    scale = 1 - (1 - config.crop) * uniform(*key, "crop")
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    top = int(uniform(*key, "top") * (height - rows + 1))
    left = int(uniform(*key, "left") * (width - columns + 1))
    video = video[:, top : top + rows, left : left + columns]
    return video[:, :, ::-1] if config.flip and uniform(*key, "flip") < 0.5 else video
