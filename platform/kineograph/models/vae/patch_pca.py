"""Patch-PCA: the autoencoder without weights to download, fitted in closed form, no training."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from kineograph.errors import UserError
from kineograph.models.patches import Patch, patchify, unpatchify
from kineograph.models.vae.base import Autoencoder, AutoencoderConfig
from kineograph.models.vae.streams import Coder, in_steps, regroup

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
    decoder_noise: float | None = Field(0.1, ge=0)
    """Standard deviation of the errors in latents (of unit variance) that tubes are decoded to be best for: each by linear
    regression on its own latent and those before and after it, so that tubes meet also where a model made them. 0 is best
    for latents without errors; none decodes each alone, by its principal components."""

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


class TubeDecoder(nn.Module):
    """Tubes as a linear map of the first ``seen`` of three latents: the one before, their own, and the one behind."""

    def __init__(self, pca: PCA, seen: int) -> None:
        super().__init__()
        self.seen = seen
        self.weight: Tensor
        self.bias: Tensor
        channels, size = pca.components.shape
        self.register_buffer("weight", torch.zeros(seen * channels, size))
        self.register_buffer("bias", torch.zeros(size))
        self.as_components(pca)

    def as_components(self, pca: PCA) -> None:
        """Decode as ``pca`` does: each tube alone."""
        channels = len(pca.components)
        self.weight.zero_()[channels : 2 * channels] = pca.components * pca.scale
        self.bias.copy_(pca.mean)

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]], noise: float) -> bool:
        """Become the regression of tubes (N size) on latents (N seen·channels) that have errors of deviation ``noise``,
        which is ridge regression (Bishop 1995, Training with Noise is Equivalent to Tikhonov Regularization). Stay as it
        is, and return False, where there is none."""
        wide, size = self.weight.shape
        square = torch.zeros(1 + wide, 1 + wide, dtype=torch.float64)
        product = torch.zeros(1 + wide, size, dtype=torch.float64)
        for latents, tubes in batches:
            x = torch.cat([torch.ones(len(latents), 1), latents], dim=1).double()
            square += x.T @ x
            product += x.T @ tubes.double()
        count = float(square[0, 0])
        if not count:
            return False
        square.diagonal()[1:] += count * noise**2
        solved = torch.linalg.pinv(square / count, rtol=1e-10, hermitian=True) @ product / count
        self.bias.copy_(solved[0])
        self.weight.copy_(solved[1:])
        return True

    def forward(self, latents: Tensor) -> Tensor:
        """(... seen·channels) to (... size)."""
        return latents @ self.weight + self.bias


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
        self.inner = TubeDecoder(self.rest, seen=3)
        self.last = TubeDecoder(self.rest, seen=2)

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
        self._fit_decoders(whole if has_motion else None)
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

    @torch.no_grad()
    def _fit_decoders(self, videos: Callable[[], Iterable[Tensor]] | None) -> None:
        """Fit what decodes tubes; the last of each video has none behind it. Without videos each is decoded alone: stills
        would teach that latents beside each other say the same."""
        self.inner.as_components(self.rest)
        self.last.as_components(self.rest)
        noise = self.config.decoder_noise
        if noise is None or videos is None:
            return

        def rows(decoder: TubeDecoder) -> Iterator[tuple[Tensor, Tensor]]:
            for video in videos():
                latents = self.encode(video[None])
                if latents.shape[2] < decoder.seen:
                    continue
                tubes = patchify(video[None, :, 1:], self.strides)  # 1 T S size
                seen = _beside(latents, decoder.seen)
                of = slice(-1, None) if decoder is self.last else slice(seen.shape[1])
                yield seen[:, of].flatten(0, -2), tubes[:, of].flatten(0, -2)

        self.last.fit(rows(self.last), noise)
        if not self.inner.fit(rows(self.inner), noise):  # no video has two tubes: go without what is behind
            self.inner.weight.zero_()[: len(self.last.weight)] = self.last.weight
            self.inner.bias.copy_(self.last.bias)

    def encoder(self, whole: bool) -> Coder:
        """See :class:`Autoencoder`. Patches are encoded alone, so chunks and tiles change nothing."""
        unit = self.strides[0]
        group = sys.maxsize if whole else unit * CHUNK
        return lambda pieces: in_steps(self._encode_chunk, pieces, group, unit)

    def decoder(self, whole: bool) -> Coder:
        """See :class:`Autoencoder`. A tube waits for the latent behind it."""
        return lambda pieces: self._decode_chunks(regroup(pieces, 1, sys.maxsize if whole else CHUNK))

    def _encode_chunk(self, frames: Tensor, is_first: bool) -> Tensor:
        """The first frame, or k·temporal_stride frames after it, to latents."""
        t, h, w = frames.shape[2:]
        pca, tube = (self.first, (1, *self.strides[1:])) if is_first else (self.rest, self.strides)
        grid = t // tube[0], h // tube[1], w // tube[2]
        return unpatchify(pca.encode(patchify(frames, tube)), (1, 1, 1), grid)

    def _decode_chunks(self, chunks: Iterator[Tensor]) -> Iterator[Tensor]:
        held = next(chunks)  # the latents that are seen again with the next chunk
        rows, columns = held.shape[3:]

        def frames(patches: Tensor, patch: Patch) -> Tensor:
            """Frames (B 3 T H W) of patches (B t S size)."""
            size = patches.shape[1] * patch[0], rows * patch[1], columns * patch[2]
            return unpatchify(patches, patch, size).clamp(-1, 1)

        yield frames(self.first.decode(_beside(held, 1)), (1, *self.strides[1:]))
        for chunk in chunks:
            held = torch.cat([held, chunk], dim=2)
            if held.shape[2] > 2:
                yield frames(self.inner(_beside(held, 3)), self.strides)
                held = held[:, :, -2:]
        if held.shape[2] > 1:
            yield frames(self.last(_beside(held, 2)), self.strides)


def _beside(latents: Tensor, seen: int) -> Tensor:
    """Latents (B C T H W) with ``seen`` that follow each other beside one another: (B T-seen+1 S seen·C), S in places."""
    return patchify(latents, (1, 1, 1)).unfold(1, seen, 1).transpose(-1, -2).flatten(-2)


def _still(video: Tensor, frames: int) -> Tensor:
    """The first frame of a video (3 T H W), ``frames`` times."""
    return video[:, :1].expand(-1, frames, -1, -1)
