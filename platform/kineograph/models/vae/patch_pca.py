"""Patch-PCA: the autoencoder without weights to download, fitted in closed form, no training."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from kineograph.errors import UserError
from kineograph.models.patches import patchify, unpatchify
from kineograph.models.vae.base import Autoencoder, AutoencoderConfig
from kineograph.models.vae.streams import Coder, in_steps

CHUNK = 8
"""Latent frames that a stream codes at a time."""


class PatchPCAConfig(AutoencoderConfig):
    """Shape of a patch-PCA autoencoder."""

    kind: Literal["patch_pca"] = "patch_pca"
    stride: int = Field(4, ge=1)
    """Rows and columns of pixels per latent."""
    temporal_stride: int = Field(4, ge=1)
    """Frames per latent after the first frame, which is a latent of its own: a video has 1 + k·temporal_stride frames."""
    channels: int = Field(16, ge=1)
    """Principal components kept, at most 3·stride²."""

    @model_validator(mode="after")
    def _check(self) -> PatchPCAConfig:
        if self.channels > 3 * self.stride**2:
            raise ValueError(f"channels {self.channels} is more than the {3 * self.stride**2} pixels of a patch")
        return self


class PCA(nn.Module):
    """z = W (x - mean) / scale and x' = Wᵀ z·scale + mean, the rows of W orthonormal.

    ``scale`` is one number, so that distances between latents are those between pixels, and the latents' mean variance
    is one.
    """

    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.components: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("components", torch.eye(size)[:channels].clone())  # channels, size
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> float:
        """Fit to rows (N size), batch by batch; return the share of variance kept, 0..1.

        The largest entry of each component is made positive, so that equal data gives equal latents.
        """
        size, channels = self.mean.numel(), len(self.components)
        total = torch.zeros(size, dtype=torch.float64)
        outer = torch.zeros(size, size, dtype=torch.float64)
        count = 0
        for batch in batches:
            x = batch.double()
            total += x.sum(0)
            outer += x.T @ x
            count += len(x)
        if count < 2:
            raise UserError("the patch-PCA autoencoder needs at least two patches to be fitted")
        mean = total / count
        variances, vectors = torch.linalg.eigh(outer / count - mean[:, None] * mean)  # ascending
        components = vectors.flip(1).T[:channels]
        signs = components.gather(1, components.abs().argmax(1, keepdim=True)).sign()
        kept = variances.flip(0)[:channels].clamp_min(0)
        self.mean.copy_(mean)
        self.components.copy_(components * signs)
        self.scale.copy_(kept.mean().sqrt().clamp_min(1e-6))
        return float(kept.sum() / variances.clamp_min(0).sum().clamp_min(1e-12))

    def encode(self, x: Tensor) -> Tensor:
        """(... size) to (... channels)."""
        return (x - self.mean) @ self.components.T / self.scale

    def decode(self, z: Tensor) -> Tensor:
        """(... channels) to (... size)."""
        return z * self.scale @ self.components + self.mean


class PatchPCA(Autoencoder):
    """Principal components of pixel patches: of squares in the first frame, of tubes in the frames after it.

    The first frame stands alone, as in causal video autoencoders, so that an image is a video of one frame.
    """

    config: PatchPCAConfig

    def __init__(self, config: PatchPCAConfig) -> None:
        super().__init__()
        self.config = config
        self.channels = config.channels
        self.strides = (config.temporal_stride, config.stride, config.stride)
        patch_size = 3 * config.stride**2
        self.first = PCA(patch_size, config.channels)
        self.rest = PCA(patch_size * config.temporal_stride, config.channels)

    def fit(self, videos: Iterable[Tensor]) -> float:
        """Fit to ``videos`` (each 3 T H W in [-1, 1]); return the share of variance kept, 0..1.

        ``videos`` is gone through more than once, one video at a time: it may read them anew each time. Any frame may be
        a first frame, so all of them fit its components. Without a video of several frames the tubes' components are those
        of a patch that stands still.
        """
        square = (1, self.config.stride, self.config.stride)
        kept = self.first.fit(patchify(v[None], square).flatten(0, 2) for v in videos)
        frames = self.config.temporal_stride + 1
        has_motion = any(v.shape[1] >= frames for v in videos)

        def whole() -> Iterator[Tensor]:
            return (v for v in videos if v.shape[1] >= frames) if has_motion else (_still(v, frames) for v in videos)

        kept = min(kept, self.rest.fit(patchify(v[None, :, 1:], self.strides).flatten(0, 2) for v in whole()))
        self._align(whole())
        return kept

    @torch.no_grad()
    def _align(self, videos: Iterable[Tensor]) -> None:
        """Turn the tubes' components, within what they span, so that a tube's latents are as near as can be to those of
        the frame before it (orthogonal Procrustes problem, Schönemann 1966): nothing that is kept changes, and what stands
        still has much the same latents in every frame, which a model then need not learn to translate."""
        frames, square = self.config.temporal_stride, (1, self.config.stride, self.config.stride)
        cross = torch.zeros(self.channels, self.channels, dtype=torch.float64)
        for video in videos:
            before = self.first.encode(patchify(video[None, :, :-1:frames], square)).flatten(0, 2)
            after = self.rest.encode(patchify(video[None, :, 1:], self.strides)).flatten(0, 2)
            cross += after.double().T @ before.double()
        left, _, right = torch.linalg.svd(cross)
        self.rest.components.copy_((left @ right).T.to(self.rest.components) @ self.rest.components)

    def encoder(self, whole: bool) -> Coder:
        """See :class:`Autoencoder`. Patches are coded alone, so chunks and tiles change nothing."""
        unit = self.strides[0]
        group = sys.maxsize if whole else unit * CHUNK
        return lambda pieces: in_steps(self._encode_chunk, pieces, group, unit)

    def decoder(self, whole: bool) -> Coder:
        """See :class:`Autoencoder`."""
        return lambda pieces: in_steps(self._decode_chunk, pieces, sys.maxsize if whole else CHUNK)

    def _encode_chunk(self, frames: Tensor, is_first: bool) -> Tensor:
        """The first frame, or k·temporal_stride frames after it, to latents."""
        t, h, w = frames.shape[2:]
        pca, tube = (self.first, (1, *self.strides[1:])) if is_first else (self.rest, self.strides)
        grid = t // tube[0], h // tube[1], w // tube[2]
        return unpatchify(pca.encode(patchify(frames, tube)), (1, 1, 1), grid)

    def _decode_chunk(self, latents: Tensor, is_first: bool) -> Tensor:
        t, h, w = latents.shape[2:]
        pca, tube = (self.first, (1, *self.strides[1:])) if is_first else (self.rest, self.strides)
        size = t * tube[0], h * tube[1], w * tube[2]
        return unpatchify(pca.decode(patchify(latents, (1, 1, 1))), tube, size).clamp(-1, 1)


def _still(video: Tensor, frames: int) -> Tensor:
    """The first frame of a video (3 T H W), ``frames`` times."""
    return video[:, :1].expand(-1, frames, -1, -1)
