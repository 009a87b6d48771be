"""Autoencoders behind one interface. Patch-PCA is the weight-free one: fitted in closed form, no training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Protocol

import torch
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kineograph.config import Config, digest
from kineograph.errors import UserError
from kineograph.models.patches import patchify, unpatchify
from kineograph.store.commit import committed, write_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"


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


class PatchPCA(nn.Module):
    """Principal components of pixel patches: of squares in the first frame, of tubes in the frames after it.

    The first frame stands alone, as in causal video autoencoders, so that an image is a video of one frame.
    """

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
        if any(v.shape[1] >= frames for v in videos):
            whole = (v for v in videos if v.shape[1] >= frames)
        else:
            whole = (v[:, :1].expand(-1, frames, -1, -1) for v in videos)
        return min(kept, self.rest.fit(patchify(v[None, :, 1:], self.strides).flatten(0, 2) for v in whole))

    def encode(self, video: Tensor) -> Tensor:
        """(B 3 1+k·temporal_stride H W) in [-1, 1], H and W multiples of the stride, to latents (B channels 1+k H' W')."""
        t, h, w = video.shape[2:]
        if h % self.strides[1] or w % self.strides[2] or (t - 1) % self.strides[0]:
            raise ValueError(
                f"{t} frames of {h}x{w} do not divide into patches of {self.strides} after the first frame"
            )
        grid = h // self.strides[1], w // self.strides[2]
        square = (1, *self.strides[1:])
        latents = [unpatchify(self.first.encode(patchify(video[:, :, :1], square)), (1, 1, 1), (1, *grid))]
        if t > 1:
            tubes = self.rest.encode(patchify(video[:, :, 1:], self.strides))
            latents.append(unpatchify(tubes, (1, 1, 1), ((t - 1) // self.strides[0], *grid)))
        return torch.cat(latents, dim=2)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B channels 1+k H' W') to (B 3 1+k·temporal_stride H W), clamped to [-1, 1]."""
        t, h, w = latents.shape[2:]
        size = h * self.strides[1], w * self.strides[2]
        square = (1, *self.strides[1:])
        frames = [unpatchify(self.first.decode(patchify(latents[:, :, :1], (1, 1, 1))), square, (1, *size))]
        if t > 1:
            tubes = self.rest.decode(patchify(latents[:, :, 1:], (1, 1, 1)))
            frames.append(unpatchify(tubes, self.strides, ((t - 1) * self.strides[0], *size)))
        return torch.cat(frames, dim=2).clamp(-1, 1)


KINDS = {"patch_pca": (PatchPCAConfig, PatchPCA)}
"""``kind`` in an autoencoder's config.json -> its config and its module: where another kind of autoencoder comes in."""


def save_autoencoder(vae: PatchPCA, folder: Path) -> None:
    """Write ``folder``/model.safetensors and then config.json. Raises DiskFullError."""
    with committed(folder / WEIGHTS) as temp:
        save_file({name: t.detach().cpu().contiguous() for name, t in vae.state_dict().items()}, temp)
    write_json(folder / CONFIG, vae.config.model_dump(mode="json"))


def load_autoencoder(folder: str | Path) -> PatchPCA:
    """The autoencoder that :func:`save_autoencoder` wrote, on the CPU. Raises UserError, one line, when there is none, it
    is of an unknown kind or damaged."""
    folder = Path(folder)
    try:
        raw = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"no autoencoder at {folder}: give a folder with {CONFIG} and {WEIGHTS}") from error
    kind = raw.get("kind") if isinstance(raw, dict) else None
    if kind not in KINDS:
        raise UserError(f"the autoencoder at {folder} is of kind {kind!r}; known: {', '.join(KINDS)}")
    config, module = KINDS[kind]
    try:
        vae = module(config.model_validate(raw))
        vae.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, RuntimeError, SafetensorError, ValidationError) as error:
        raise UserError(f"the autoencoder at {folder} is damaged: {' '.join(str(error).split())[:200]}") from error
    return vae.eval()


def fingerprint(vae: PatchPCA) -> str:
    """SHA-256 (hex) of an autoencoder's config and weights, wherever and on whichever device they are."""
    hasher = hashlib.sha256(digest(vae.config).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        hasher.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        hasher.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return hasher.hexdigest()


def to_unit_range(frames: Tensor) -> Tensor:
    """uint8 (... T H W 3) to float (... 3 T H W) in [-1, 1]."""
    return frames.movedim(-1, -4).float().div(127.5).sub(1)


def to_uint8(video: Tensor) -> Tensor:
    """float (... 3 T H W) in [-1, 1] to uint8 (... T H W 3)."""
    return video.movedim(-4, -1).add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
