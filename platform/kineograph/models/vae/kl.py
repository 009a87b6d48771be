"""Autoencoders with a Gaussian posterior, from the diffusers library, behind the interface of this package.

Kingma and Welling 2014; as latent spaces of diffusion Rombach et al. 2022 (images) and the causal video autoencoders after
Yu et al. 2024 (MAGVIT-v2).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from kineograph.errors import UserError
from kineograph.models.vae.architectures import (
    Architecture,
    build,
    model_channels,
    model_strides,
    published_scaling,
)
from kineograph.models.vae.base import Autoencoder, AutoencoderConfig
from kineograph.models.vae.init import last_layer, moments_layer, silence
from kineograph.models.vae.latent_norm import LatentNorm
from kineograph.models.vae.linear_path import LinearPath
from kineograph.models.vae.tiling import Tiling

MIN_LOGVAR, MAX_LOGVAR = -30.0, 20.0
"""Bounds of the posterior's log-variance, as diffusers has them."""


class KLAutoencoderConfig(AutoencoderConfig):
    """An autoencoder of the diffusers library."""

    architecture: Architecture
    """Its class and settings, or the name of a preset."""
    linear_path: bool = False
    """Whether a linear map of patches leads past the network, both ways: for training from scratch
    (:class:`LinearPath`)."""
    tiling: Tiling | None = Field(None)
    """Tiles that frames are coded in, for frames too large to be coded at once; none codes them whole."""


class Posterior(NamedTuple):
    """Of the latents as the model has them, before they are brought to unit variance; both (B C T' H' W')."""

    mean: Tensor
    logvar: Tensor


class Reconstruction(NamedTuple):
    """What training sees of an autoencoder."""

    video: Tensor
    """(B 3 T H W), decoded from a sample of the posterior, not clamped."""
    mean: Tensor
    """(B C T' H' W') of the posterior."""
    logvar: Tensor
    """(B C T' H' W') of the posterior, within -30..20."""


class KLAutoencoder(Autoencoder):
    """A diffusers autoencoder, ``model``, and the shift and scale that bring its latents to unit variance."""

    config: KLAutoencoderConfig

    def __init__(self, config: KLAutoencoderConfig, model: nn.Module | None = None) -> None:
        """``model`` is what ``config.architecture`` describes, with random weights unless given."""
        super().__init__()
        self.config = config
        self.tiling = config.tiling
        self.model: Any = build(config.architecture) if model is None else model
        self.channels = model_channels(self.model)
        self.strides = model_strides(self.model)
        if config.linear_path and moments_layer(self.model) is None:
            raise UserError(f"linear_path does not go with {config.architecture.class_name}: set linear_path=false")
        self.linear = LinearPath(self.channels, self.strides) if config.linear_path else None
        self.latent_norm = LatentNorm(self.channels)
        shift, scale = published_scaling(self.model, config.architecture.settings)
        self.latent_norm.shift.copy_(shift)
        self.latent_norm.scale.copy_(scale)

    @abstractmethod
    def posterior(self, video: Tensor) -> Posterior:
        """Of a video (B 3 T H W) in [-1, 1], with gradients."""

    @abstractmethod
    def reconstruct(self, latents: Tensor) -> Tensor:
        """(B C T' H' W') as the model has them to (B 3 T H W), not clamped, with gradients."""

    @torch.no_grad()
    def fit_linear_path(self, videos: Iterable[Tensor]) -> None:
        """Start the linear path as the principal components of ``videos``, each (3 T H W) in [-1, 1], and the network as
        adding nothing to it. The videos are gone through more than once."""
        assert self.linear is not None
        self.linear.fit(videos)
        silence(self.model)

    @property
    def last_layer(self) -> Tensor:
        """The weight of the decoder's last layer, where the adversarial loss is weighed against the others."""
        return next(weight for weight in last_layer(self.model).parameters() if weight.dim() > 1)

    @torch.no_grad()
    def fit_latents(self, videos: Iterable[Tensor]) -> None:
        """Bring latents to zero mean and unit variance per channel over ``videos``, each (3 T H W) in [-1, 1].

        They are gone through once, one at a time; frames beyond the last whole latent are left out. Call it when training
        is done: it changes what latents are. Raises UserError when there are too few.
        """
        self.latent_norm.fit(self._raw_latents(videos))

    def _raw_latents(self, videos: Iterable[Tensor]) -> Iterator[Tensor]:
        device = self.latent_norm.shift.device
        for video in videos:
            frames = video.shape[1] - (video.shape[1] - 1) % self.strides[0]
            for latents in self.encode_stream([video[None, :, :frames].to(device)]):
                yield self.latent_norm.denormalise(latents)


def posterior_of(encoded: Any) -> Posterior:
    """What a diffusers model's ``encode`` returned; one without a variance has the least there is."""
    distribution = encoded.latent_dist
    mean = distribution.mode()
    logvar = getattr(distribution, "logvar", None)
    if logvar is None:
        logvar = torch.full_like(mean, MIN_LOGVAR)
    return Posterior(mean, logvar)
