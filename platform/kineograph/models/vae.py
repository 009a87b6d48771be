"""Autoencoders behind one interface. Patch-PCA is the weight-free one: fitted in closed form, no training."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from kineograph.config import Config
from kineograph.errors import UserError
from kineograph.models.patches import patchify, unpatchify


class Autoencoder(Protocol):
    """Pixels to latents and back. Latents have unit variance over the data that the autoencoder was fitted on."""

    channels: int
    """Channels of a latent."""
    strides: tuple[int, int, int]
    """Frames, rows and columns of pixels per latent."""

    def encode(self, video: Tensor) -> Tensor:
        """(B 3 T H W) in [-1, 1] to latents (B channels T' H' W')."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to (B 3 T H W) in [-1, 1]."""
        ...


class PatchPCAConfig(Config):
    """Shape of a patch-PCA autoencoder."""

    kind: Literal["patch_pca"] = "patch_pca"
    stride: int = 4
    """Rows and columns of pixels in a patch. Time is not compressed."""
    channels: int = 12
    """Principal components kept, of stride² · 3."""


class PatchPCA(nn.Module):
    """Keeps the first principal components of the pixels of square patches; frame by frame, so an image is one frame.

    z = W (x - mean) / scale, x' = Wᵀ z · scale + mean, with the rows of W orthonormal. ``scale`` is one number, so that
    distances between latents are those between pixels and the latents' variance is one on average.
    """

    def __init__(self, config: PatchPCAConfig) -> None:
        super().__init__()
        size = 3 * config.stride**2
        if not 0 < config.channels <= size:
            raise UserError(f"vae.channels is {config.channels}: a patch of stride {config.stride} has 1 to {size}")
        self.config = config
        self.channels = config.channels
        self.strides = (1, config.stride, config.stride)
        self.mean: Tensor
        self.components: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("components", torch.eye(size)[: config.channels].clone())  # channels, patch pixels
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def fit(self, videos: list[Tensor]) -> float:
        """Fit to ``videos`` (each 3 T H W in [-1, 1]); return the share of variance kept, 0..1.

        The sign of each component is fixed (its largest entry is positive), so equal data gives equal latents.
        """
        total = torch.zeros(len(self.mean), dtype=torch.float64)
        outer = torch.zeros(len(self.mean), len(self.mean), dtype=torch.float64)
        count = 0
        for video in videos:
            x = self._patches(video[None]).flatten(0, 2).double()
            total += x.sum(0)
            outer += x.T @ x
            count += len(x)
        if count < 2:
            raise UserError("the patch-PCA autoencoder needs at least two patches to be fitted")
        mean = total / count
        covariance = outer / count - mean[:, None] * mean
        variances, vectors = torch.linalg.eigh(covariance)  # ascending
        components = vectors.flip(1).T[: self.channels]
        signs = components.gather(1, components.abs().argmax(1, keepdim=True)).sign()
        kept = variances.flip(0)[: self.channels].clamp_min(0)
        self.mean.copy_(mean)
        self.components.copy_(components * signs)
        self.scale.copy_((kept.mean().sqrt()).clamp_min(1e-6))
        return float(kept.sum() / variances.clamp_min(0).sum().clamp_min(1e-12))

    def encode(self, video: Tensor) -> Tensor:
        """(B 3 T H W) in [-1, 1], H and W multiples of the stride, to latents (B channels T H' W')."""
        t, h, w = video.shape[2:]
        stride = self.config.stride
        if h % stride or w % stride:
            raise ValueError(f"a frame of {h}x{w} is no multiple of the stride {stride}")
        x = (self._patches(video) - self.mean.to(video.dtype)) @ self.components.T.to(video.dtype) / self.scale
        return unpatchify(x, (1, 1, 1), (t, h // stride, w // stride))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B channels T H' W') to (B 3 T H W), clamped to [-1, 1]."""
        t, h, w = latents.shape[2:]
        stride = self.config.stride
        x = patchify(latents, (1, 1, 1)) * self.scale @ self.components.to(latents.dtype) + self.mean
        return unpatchify(x, (1, stride, stride), (t, h * stride, w * stride)).clamp(-1, 1)

    def _patches(self, video: Tensor) -> Tensor:
        return patchify(video, (1, self.config.stride, self.config.stride))


def to_unit_range(frames: Tensor) -> Tensor:
    """uint8 (... T H W 3) to float (... 3 T H W) in [-1, 1]."""
    return frames.movedim(-1, -4).float().div(127.5).sub(1)


def to_uint8(video: Tensor) -> Tensor:
    """float (... 3 T H W) in [-1, 1] to uint8 (... T H W 3)."""
    return video.movedim(-4, -1).add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
