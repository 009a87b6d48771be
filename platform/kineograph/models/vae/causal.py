"""Causal video autoencoders: the first frame is a latent of its own, later latents stand for several frames each."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, field_validator
from torch import Tensor, cat

from kineograph.models.vae.architectures import CACHED_CLASSES, CAUSAL_CLASSES, named_architecture
from kineograph.models.vae.caches import cached_steps
from kineograph.models.vae.kl import MAX_LOGVAR, MIN_LOGVAR, KLAutoencoder, KLAutoencoderConfig, Posterior, posterior_of
from kineograph.models.vae.streams import Coder, Window, in_steps, in_windows


class CausalVAEConfig(KLAutoencoderConfig):
    """A causal video autoencoder of the diffusers library."""

    kind: Literal["causal_vae"] = "causal_vae"
    chunk: int = Field(4, ge=1)
    """Latent frames coded at a time after the first: more are quicker and take more memory."""
    overlap: int = Field(2, ge=1)
    """Latent frames that chunks share and are blended over, where a class has no exact way to go on from a chunk."""

    @field_validator("architecture", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        return named_architecture(value, CAUSAL_CLASSES)

    @property
    def is_exact(self) -> bool:
        """Whether chunks give what the whole video gives."""
        return self.architecture.class_name in CACHED_CLASSES


class CausalVAE(KLAutoencoder):
    """Wan's autoencoder and others of its shape.

    Where the model remembers features from chunk to chunk, a stream is exactly what the whole video gives, and both take
    the memory of one chunk. Other models see a video whole in encode and decode, and in overlapping windows in a stream.
    """

    config: CausalVAEConfig

    @property
    def streams_exactly(self) -> bool:
        """See :class:`Autoencoder`."""
        return self.config.is_exact

    def encoder(self, whole: bool) -> Coder:
        """See :class:`Autoencoder`."""
        stride = self.strides[0]
        if self.config.is_exact:
            return lambda pieces: in_steps(self._encode_step(), pieces, stride * self.config.chunk, stride)

        def encode(frames: Tensor) -> Tensor:
            return self.latent_norm.normalise(self.posterior(frames).mean)

        return lambda pieces: in_windows(encode, pieces, self._window(whole), stride, 1)

    def decoder(self, whole: bool) -> Coder:
        """See :class:`Autoencoder`."""
        if self.config.is_exact:
            return lambda pieces: in_steps(self._decode_step(), pieces, self.config.chunk)

        def decode(latents: Tensor) -> Tensor:
            return self.reconstruct(self.latent_norm.denormalise(latents)).clamp(-1, 1)

        return lambda pieces: in_windows(decode, pieces, self._window(whole), 1, self.strides[0])

    def posterior(self, video: Tensor) -> Posterior:
        """See :class:`KLAutoencoder`."""
        if self.config.is_exact:
            steps = cached_steps(self.model)
            moments = list(in_steps(steps.encode, [video], sys.maxsize, self.strides[0]))
            mean, logvar = cat(moments, dim=2).chunk(2, dim=1)
            posterior = Posterior(mean, logvar.clamp(MIN_LOGVAR, MAX_LOGVAR))
        else:
            posterior = posterior_of(self.model.encode(video))
        if self.linear is None:
            return posterior
        return Posterior(posterior.mean + self.linear.encode_video(video), posterior.logvar)

    def reconstruct(self, latents: Tensor) -> Tensor:
        """See :class:`KLAutoencoder`."""
        if self.config.is_exact:
            video = cat(list(in_steps(cached_steps(self.model).decode, [latents], sys.maxsize)), dim=2)
        else:
            video = self.model.decode(latents).sample
        return video if self.linear is None else video + self.linear.decode_video(latents)

    def _window(self, whole: bool) -> Window:
        overlap = self.config.overlap
        return Window(sys.maxsize if whole else self.config.chunk + overlap, overlap)

    def _encode_step(self) -> Callable[[Tensor, bool], Tensor]:
        steps = cached_steps(self.model)

        def step(frames: Tensor, is_first: bool) -> Tensor:
            mean = steps.encode(frames, is_first).chunk(2, dim=1)[0]
            if self.linear is not None:
                mean = mean + self.linear.encode(frames, is_first)
            return self.latent_norm.normalise(mean)

        return step

    def _decode_step(self) -> Callable[[Tensor, bool], Tensor]:
        steps = cached_steps(self.model)

        def step(latents: Tensor, is_first: bool) -> Tensor:
            latents = self.latent_norm.denormalise(latents)
            frames = steps.decode(latents, is_first)
            if self.linear is not None:
                frames = frames + self.linear.decode(latents, is_first)
            return frames.clamp(-1, 1)

        return step
