"""ViViT: a video classifier of two transformers, one within each stretch of frames and one over the stretches.

Source: Arnab et al. 2021, ViViT: A Video Vision Transformer; model 2, the factorised encoder.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from kineograph.errors import UserError
from kineograph.models.patches import patchify
from kineograph.models.vit import SIZES, Encoder, EncoderConfig, ViT, check_alike, count_patches, initialise


class ViViTConfig(EncoderConfig):
    """Shape of a ViViT; ``depth`` is that of its spatial transformer."""

    kind: Literal["vivit"] = "vivit"
    size: tuple[int, int] = (224, 224)
    """Height and width of its videos, pixels; others are taken too, with positions interpolated."""
    frames: int = Field(32, ge=1)
    """Frames of its videos; other numbers are taken too, as the same time in more or fewer steps."""
    patch: tuple[int, int, int] = (2, 16, 16)
    """Frames, rows and columns of a tubelet."""
    temporal_depth: int = Field(4, ge=1)
    """Blocks of the temporal transformer."""

    @model_validator(mode="after")
    def _check_size(self) -> ViViTConfig:
        if min(*self.size, *self.patch) < 1:
            raise ValueError("sides of size and patch are 1 or more")
        return self

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tubelets along time, rows and columns in a video of ``frames`` and ``size``."""
        times, rows, columns = count_patches((self.frames, *self.size), self.patch)
        return times, rows, columns


class ViViT(nn.Module):
    """Classifies videos: the class tokens of all stretches of frames are the tokens of the temporal transformer."""

    def __init__(self, config: ViViTConfig, classes: int) -> None:
        super().__init__()
        self.config = config
        times, rows, columns = config.grid
        self.embed_patches = nn.Linear(3 * math.prod(config.patch), config.width)
        self.spatial = Encoder(config, config.depth, (rows, columns))
        self.temporal = Encoder(config, config.temporal_depth, (times,))
        self.head = nn.Linear(config.width, classes)
        initialise(self, self.head)

    def features(self, video: Tensor) -> Tensor:
        """The temporal class token's last, normalised state (B D) of video (B 3 T H W) in [-1, 1] of any size and length.

        The last frame is repeated and rows and columns are zero-padded to whole tubelets.
        """
        patch = self.config.patch
        times, rows, columns = count_patches(video.shape[2:], patch)
        missing = times * patch[0] - video.shape[2]
        if missing:
            video = torch.cat([video, video[:, :, -1:].expand(-1, -1, missing, -1, -1)], dim=2)
        x = self.embed_patches(patchify(video, patch))  # B T S D
        x = self.spatial(x.flatten(0, 1), (rows, columns))[:, 0].unflatten(0, (len(video), times))  # B T D
        return self.temporal(x, (times,))[:, 0]

    def forward(self, video: Tensor) -> Tensor:
        """Logits (B classes) of video (B 3 T H W) in [-1, 1]."""
        return self.head(self.features(video))

    @torch.no_grad()
    def start_from(self, vit: ViT, inflation: Literal["central", "average"] = "central") -> None:
        """Take a ViT's weights as the spatial transformer; the temporal one and the head stay as they are.

        A tubelet starts as the patch of its middle frame ("central": the others weigh zero) or of the mean of its frames
        ("average": filter inflation); section 3.4 of the paper. Raises UserError when the two differ in shape.
        """
        frames, *patch = self.config.patch
        check_alike(self.config, vit.config, ("width", "depth", "heads", "mlp_ratio", "qk_norm"))
        if vit.config.patch != tuple(patch):
            raise UserError(f"the ViT to start from has patches of {vit.config.patch}, this model of {tuple(patch)}")
        kernel = vit.embed_patches.weight  # D rows·columns·3
        tubelet = (kernel / frames)[:, None].repeat(1, frames, 1)  # D frames rows·columns·3
        if inflation == "central":
            tubelet.zero_()[:, frames // 2] = kernel
        self.embed_patches.weight.copy_(tubelet.flatten(1))
        self.embed_patches.bias.copy_(vit.embed_patches.bias)
        self.spatial.start_from(vit.encoder)


VIVIT_PRESETS = {
    "vivit-demo": ViViTConfig(size=(32, 32), frames=9, patch=(3, 8, 8), width=128, depth=4, heads=4, temporal_depth=2),
    **{
        f"vivit-{name}/16x2": ViViTConfig(width=width, depth=depth, heads=heads)
        for name, (width, depth, heads) in SIZES.items()
    },
}
"""Shapes by name: vivit-demo learns 9 frames of 32x32 on a CPU."""
