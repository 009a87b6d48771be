"""What every autoencoder offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from kineograph.config import Config
from kineograph.models.vae.streams import Coder
from kineograph.models.vae.tiling import Tiling, tiled


class AutoencoderConfig(Config):
    """Shape of an autoencoder."""

    kind: str
    """Which autoencoder it is: a key of kineograph.models.vae.KINDS."""


class Autoencoder(nn.Module, ABC):
    """Pixels to latents and back. Latents have unit variance over the data that the autoencoder was fitted on.

    The first frame is a latent of its own, so that an image is a video of one frame; each latent after it stands for
    ``strides[0]`` frames. Sides are multiples of ``strides[1:]``.
    """

    config: AutoencoderConfig
    channels: int
    """Channels of a latent."""
    strides: tuple[int, int, int]
    """Frames, rows and columns of pixels per latent."""
    tiling: Tiling | None = None
    """How frames are cut into tiles where a call does not say; None codes them whole."""

    @property
    def streams_exactly(self) -> bool:
        """Whether a stream is what encode and decode give, but for rounding: coded with all that came before it."""
        return False

    @abstractmethod
    def encoder(self, whole: bool) -> Coder:
        """Pieces (B 3 T H W) in [-1, 1] to pieces (B channels T' H' W'), in chunks unless ``whole``."""

    @abstractmethod
    def decoder(self, whole: bool) -> Coder:
        """Pieces (B channels T' H' W') to pieces (B 3 T H W) in [-1, 1], in chunks unless ``whole``."""

    def encode(self, video: Tensor, tiling: Tiling | None = None) -> Tensor:
        """(B 3 T H W) in [-1, 1] to latents (B channels T' H' W'). Raises ValueError for a size that does not divide."""
        self.check_size(*video.shape[2:])
        return torch.cat(list(self._tiled(self.encoder(whole=True), tiling, encode=True)([video])), dim=2)

    def decode(self, latents: Tensor, tiling: Tiling | None = None) -> Tensor:
        """Latents (B channels T' H' W') to (B 3 T H W) in [-1, 1]."""
        return torch.cat(list(self._tiled(self.decoder(whole=True), tiling, encode=False)([latents])), dim=2)

    @torch.no_grad()
    def encode_stream(self, pieces: Iterable[Tensor], tiling: Tiling | None = None) -> Iterator[Tensor]:
        """Pieces (B 3 T H W), any T each, to pieces of the latents, as soon as they are known.

        Memory does not depend on the number of pieces. Raises ValueError, at the end, when the frames do not divide.
        """
        yield from self._tiled(self.encoder(whole=False), tiling, encode=True)(self._checked(pieces))

    @torch.no_grad()
    def decode_stream(self, pieces: Iterable[Tensor], tiling: Tiling | None = None) -> Iterator[Tensor]:
        """Pieces of latents (B channels T' H' W'), any T' each, to pieces of the video (B 3 T H W) in [-1, 1]."""
        yield from self._tiled(self.decoder(whole=False), tiling, encode=False)(pieces)

    def check_size(self, frames: int, height: int, width: int) -> None:
        """Raise ValueError when a video of that size does not divide into latents."""
        t, h, w = self.strides
        if height % h or width % w or (frames - 1) % t:
            raise ValueError(
                f"{frames} frames of {height}x{width} do not divide into patches of {self.strides} after the first frame"
            )

    def _tiled(self, coder: Coder, tiling: Tiling | None, encode: bool) -> Coder:
        tiling = tiling or self.tiling
        return coder if tiling is None else tiled(coder, tiling, self.strides[1:], encode)

    def _checked(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        for piece in pieces:
            self.check_size(1, *piece.shape[3:])
            yield piece
