"""Causal video autoencoders chunk by chunk: their convolutions are handed what they saw of the frames before.

A *coder step* takes the first frame alone, then any whole number of latents' frames, and remembers what the next step
needs. The result is that of the whole video, whatever the chunks.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Protocol

from torch import Tensor


class CachedSteps(Protocol):
    """One pass over one video, or over one tile of it."""

    def encode(self, frames: Tensor, is_first: bool) -> Tensor:
        """(B 3 T H W) to the posterior's parameters (B 2·channels T' H' W')."""
        ...

    def decode(self, latents: Tensor, is_first: bool) -> Tensor:
        """(B channels T' H' W') to (B 3 T H W), not clamped."""
        ...


def cached_steps(model: Any) -> CachedSteps:
    """A fresh pass of one of CACHED_CLASSES."""
    return MagvitSteps(model) if type(model).__name__ == "AutoencoderKLMagvit" else WanSteps(model)


class WanSteps:
    """Wan and its kin: each causal convolution has a place in a list of features, which the model reads and writes."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.features: dict[int, Any] = defaultdict(lambda: None)  # a convolution that has seen nothing finds None
        self.patch_size = model.config.get("patch_size")
        self.is_wan = type(model).__name__ == "AutoencoderKLWan"

    def encode(self, frames: Tensor, is_first: bool) -> Tensor:
        """See :class:`CachedSteps`."""
        if self.patch_size:
            from diffusers.models.autoencoders.autoencoder_kl_wan import patchify

            frames = patchify(frames, self.patch_size)  # in the order of channels that the weights are for
        hidden = self.model.encoder(frames, feat_cache=self.features, feat_idx=[0])
        return self.model.quant_conv(hidden)

    def decode(self, latents: Tensor, is_first: bool) -> Tensor:
        """See :class:`CachedSteps`."""
        hidden = self.model.post_quant_conv(latents)
        where: dict[str, Any] = {"feat_cache": self.features, "feat_idx": [0]}
        if self.is_wan:
            where["first_chunk"] = is_first
        frames = self.model.decoder(hidden, **where)
        if self.patch_size:
            from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

            frames = unpatchify(frames, self.patch_size)
        return frames


class MagvitSteps:
    """EasyAnimate's Magvit: each causal convolution keeps its own past, which is put in place for a step and taken away.

    Exact where its group norm is of single frames, as in the published weights.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.features: dict[Any, Tensor | None] = {}

    def encode(self, frames: Tensor, is_first: bool) -> Tensor:
        """See :class:`CachedSteps`."""
        return self.model.quant_conv(self._step(self.model.encoder, frames))

    def decode(self, latents: Tensor, is_first: bool) -> Tensor:
        """See :class:`CachedSteps`."""
        return self._step(self.model.decoder, self.model.post_quant_conv(latents))

    def _step(self, part: Any, x: Tensor) -> Tensor:
        convolutions = [module for module in part.modules() if hasattr(module, "prev_features")]
        for module in convolutions:
            module.prev_features = self.features.get(module)
        try:
            return part(x)
        finally:
            for module in convolutions:
                self.features[module] = module.prev_features
                module.prev_features = None
