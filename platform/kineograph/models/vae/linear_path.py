"""A straight line past the network: latents and frames are also a linear map of patches.

Residual autoencoding (after Chen et al. 2024, DC-AE, whose shortcuts have no weights): the map starts as the principal
components of patches, in closed form, and the network, whose last layers start at zero, learns what that leaves. Training
then begins where patch-PCA ends, instead of learning first to pass on brightness.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kineograph.models.patches import Patch, patchify, unpatchify
from kineograph.models.vae.patch_pca import PCA, PatchPCA, PatchPCAConfig


class LinearPath(nn.Module):
    """Squares of the first frame, and tubes of the frames after it, to latents and back."""

    def __init__(self, channels: int, strides: tuple[int, int, int]) -> None:
        """``strides`` are frames, rows and columns of pixels per latent; rows and columns must be equal."""
        super().__init__()
        self.channels, self.strides = channels, strides
        self.square: Patch = (1, *strides[1:])
        squares, tubes = 3 * strides[1] * strides[2], 3 * strides[0] * strides[1] * strides[2]
        self.encode_first, self.decode_first = nn.Linear(squares, channels), nn.Linear(channels, squares)
        self.encode_rest: nn.Linear | None = None  # where a latent is one frame, every frame is like the first
        self.decode_rest: nn.Linear | None = None
        if strides[0] > 1:
            self.encode_rest, self.decode_rest = nn.Linear(tubes, channels), nn.Linear(channels, tubes)

    @torch.no_grad()
    def fit(self, videos: Iterable[Tensor]) -> None:
        """Become the principal components of ``videos``, each (3 T H W) in [-1, 1]; they are gone through more
        than once."""
        stride = self.strides[1]
        most = 3 * stride**2  # components that a square has
        channels = min(self.channels, most)
        pca = PatchPCA(
            PatchPCAConfig(stride=stride, temporal_stride=self.strides[0], channels=channels, decoder_noise=None)
        )
        pca.fit(videos)
        _take(pca.first, self.encode_first, self.decode_first)
        if self.encode_rest is not None and self.decode_rest is not None:
            _take(pca.rest, self.encode_rest, self.decode_rest)

    def encode(self, frames: Tensor, is_first: bool) -> Tensor:
        """(B 3 T H W), a first frame or tubes, to latents (B channels T' H' W')."""
        is_square = is_first or self.encode_rest is None
        patch, layer = (self.square, self.encode_first) if is_square else (self.strides, self.encode_rest)
        assert layer is not None
        size = (frames.shape[2] // patch[0], frames.shape[3] // patch[1], frames.shape[4] // patch[2])
        return unpatchify(layer(patchify(frames, patch)), (1, 1, 1), size)

    def decode(self, latents: Tensor, is_first: bool) -> Tensor:
        """The way back: (B channels T' H' W') to (B 3 T H W)."""
        is_square = is_first or self.decode_rest is None
        patch, layer = (self.square, self.decode_first) if is_square else (self.strides, self.decode_rest)
        assert layer is not None
        t, h, w = latents.shape[2:]
        return unpatchify(layer(patchify(latents, (1, 1, 1))), patch, (t * patch[0], h * patch[1], w * patch[2]))

    def encode_video(self, video: Tensor) -> Tensor:
        """(B 3 1+k·stride H W) to (B channels 1+k H' W')."""
        parts = [self.encode(video[:, :, :1], True)]
        if video.shape[2] > 1:
            parts.append(self.encode(video[:, :, 1:], False))
        return torch.cat(parts, dim=2)

    def decode_video(self, latents: Tensor) -> Tensor:
        """The way back."""
        parts = [self.decode(latents[:, :, :1], True)]
        if latents.shape[2] > 1:
            parts.append(self.decode(latents[:, :, 1:], False))
        return torch.cat(parts, dim=2)


def _take(pca: PCA, encode: nn.Linear, decode: nn.Linear) -> None:
    """Make the layers do what ``pca`` does; channels that it does not have stay zero."""
    kept = len(pca.components)
    for layer in (encode, decode):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    encode.weight[:kept] = pca.components / pca.scale
    encode.bias[:kept] = -(pca.components @ pca.mean) / pca.scale
    decode.weight[:, :kept] = pca.components.T * pca.scale
    decode.bias.copy_(pca.mean)
