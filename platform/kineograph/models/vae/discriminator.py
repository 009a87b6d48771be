"""Patch discriminators: is each patch of a picture, or of a video, real?"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from kineograph.config import Config

_NEGATIVE_SLOPE = 0.2


class DiscriminatorConfig(Config):
    """A PatchGAN."""

    kind: Literal["frames", "video"] = "frames"
    """frames: 2D, each frame alone; video: 3D, sees motion too."""
    width: int = Field(64, ge=8, multiple_of=8)
    """Channels of the first layer; each layer after it has twice as many, at most eight times."""
    layers: int = Field(3, ge=1)
    """Layers that halve rows and columns: with 3 a patch is 70 pixels wide."""


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017): a few convolutions whose every output judges one patch.

    Group norm in the place of batch norm, so that the judgement of a video does not depend on its neighbours.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.is_video = config.kind == "video"
        widths = [config.width * min(2**n, 8) for n in range(config.layers + 1)]
        layers: list[nn.Module] = [self._conv(3, widths[0], stride=2), nn.LeakyReLU(_NEGATIVE_SLOPE)]
        for index, (before, after) in enumerate(pairwise(widths), start=1):
            layers += [
                self._conv(before, after, stride=2 if index < config.layers else 1),
                nn.GroupNorm(8, after),
                nn.LeakyReLU(_NEGATIVE_SLOPE),
            ]
        self.layers = nn.Sequential(*layers, self._conv(widths[-1], 1, stride=1))
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.normal_(module.weight, std=0.02)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def _conv(self, channels: int, out: int, stride: int) -> nn.Module:
        if self.is_video:  # a clip has few frames, so none are skipped
            return nn.Conv3d(channels, out, (3, 4, 4), (1, stride, stride), padding=1)
        return nn.Conv2d(channels, out, 4, stride, padding=1)

    def forward(self, video: Tensor) -> Tensor:
        """(B 3 T H W) in [-1, 1] to a number for each patch, above zero for real: (B patches)."""
        if self.is_video:
            return self.layers(video).flatten(1)
        judged: Tensor = self.layers(video.transpose(1, 2).flatten(0, 1))
        return judged.unflatten(0, (len(video), -1)).flatten(1)
