"""An image autoencoder, frame by frame: such as Stable Diffusion's. A latent is one frame."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator
from torch import Tensor

from kineograph.models.vae.architectures import IMAGE_CLASSES, named_architecture
from kineograph.models.vae.kl import KLAutoencoder, KLAutoencoderConfig, Posterior, posterior_of
from kineograph.models.vae.streams import Coder, regroup


class ImageVAEConfig(KLAutoencoderConfig):
    """An image autoencoder of the diffusers library, applied to each frame."""

    kind: Literal["image_vae"] = "image_vae"
    frames_at_once: int = Field(8, ge=1)
    """Frames that go through the model together."""

    @field_validator("architecture", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        return named_architecture(value, IMAGE_CLASSES)


class ImageVAE(KLAutoencoder):
    """Every frame is a latent of its own."""

    config: ImageVAEConfig

    @property
    def streams_exactly(self) -> bool:
        """See :class:`Autoencoder`."""
        return True

    def encoder(self, whole: bool) -> Coder:
        """See :class:`Autoencoder`. Frames go through the model in chunks of ``frames_at_once``, whole or not."""
        return lambda pieces: (
            self.latent_norm.normalise(self.posterior(chunk).mean)
            for chunk in regroup(pieces, self.config.frames_at_once, self.config.frames_at_once)
        )

    def decoder(self, whole: bool) -> Coder:
        """See :class:`Autoencoder`."""
        return lambda pieces: (
            self.reconstruct(self.latent_norm.denormalise(chunk)).clamp(-1, 1)
            for chunk in regroup(pieces, self.config.frames_at_once, self.config.frames_at_once)
        )

    def posterior(self, video: Tensor) -> Posterior:
        """See :class:`KLAutoencoder`."""
        mean, logvar = posterior_of(self.model.encode(_as_images(video)))
        if self.linear is not None:
            mean = mean + _as_images(self.linear.encode(video, is_first=True))
        return Posterior(_as_videos(mean, len(video)), _as_videos(logvar, len(video)))

    def reconstruct(self, latents: Tensor) -> Tensor:
        """See :class:`KLAutoencoder`."""
        video = _as_videos(self.model.decode(_as_images(latents)).sample, len(latents))
        return video if self.linear is None else video + self.linear.decode(latents, is_first=True)


def _as_images(video: Tensor) -> Tensor:
    """(B C T H W) to (B·T C H W)."""
    return video.transpose(1, 2).flatten(0, 1)


def _as_videos(images: Tensor, batch: int) -> Tensor:
    """(B·T C H W) to (B C T H W)."""
    return images.unflatten(0, (batch, -1)).transpose(1, 2)
