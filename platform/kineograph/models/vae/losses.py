"""What autoencoders with a posterior are trained on: reconstruction, KL, perceptual and adversarial losses."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from kineograph.config import Config
from kineograph.models.vae.discriminator import (
    DiscriminatorConfig,
    PatchDiscriminator,
    adaptive_weight,
    hinge_discriminator_loss,
)
from kineograph.models.vae.kl import Reconstruction
from kineograph.models.vae.perceptual import Backbone, Perceptual


class PerceptualConfig(Config):
    """LPIPS."""

    weight: float = Field(1.0, gt=0)
    """Beside the reconstruction loss."""
    backbone: Backbone = "vgg"
    """The network whose features are compared."""
    weights: str | None = None
    """torchvision's file of that network's weights; none looks where torch.hub keeps what it downloads."""


class AdversarialConfig(Config):
    """A discriminator that the decoder learns to deceive."""

    weight: float = Field(0.5, gt=0)
    """Of the adversarial loss, times the adaptive weight."""
    start: int = Field(0, ge=0)
    """Step from which it is used: a discriminator learns nothing from a decoder that cannot do anything yet."""
    discriminator: DiscriminatorConfig = DiscriminatorConfig()


class VAELossConfig(Config):
    """Losses and their weights; all are means, per pixel or per latent value, so that sizes do not matter."""

    reconstruction: Literal["l1", "l2"] = "l1"
    """Absolute or squared difference of pixels in [-1, 1]."""
    kl_weight: float = Field(1e-6, ge=0)
    """Of the KL divergence in nats per latent value. Rombach et al. 2022 sum instead; their 1e-6 is 2e-8 here at 8x8."""
    perceptual: PerceptualConfig | None = None
    """LPIPS, where its weights are there; none leaves it out."""
    adversarial: AdversarialConfig | None = None
    """A discriminator; none leaves it out."""


def reconstruction_loss(video: Tensor, reference: Tensor, kind: Literal["l1", "l2"]) -> Tensor:
    """Mean over pixels of |x' - x| or (x' - x)²: (B 3 T H W) twice to (B)."""
    difference = video - reference
    return (difference.abs() if kind == "l1" else difference.square()).flatten(1).mean(1)


def kl_loss(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp logvar) ‖ N(0, 1)) = ½·(mean² + exp logvar - 1 - logvar), mean over latent values: (B ...) to (B)."""
    return (mean.square() + logvar.exp() - 1 - logvar).div(2).flatten(1).mean(1)


class VAELoss(nn.Module):
    """All losses of an autoencoder, with the discriminator as a module of its own parameters.

    >>> total, parts = loss(out, video, vae.last_layer, step)      # then total.backward(), step of the autoencoder
    >>> total = loss.discriminator_loss(out.video, video)          # then total.backward(), step of the discriminator
    """

    def __init__(self, config: VAELossConfig) -> None:
        """Raises UserError when the perceptual loss is wanted and its weights are not there."""
        super().__init__()
        self.config = config
        self.perceptual = (
            Perceptual(config.perceptual.backbone, config.perceptual.weights) if config.perceptual else None
        )
        self.discriminator = PatchDiscriminator(config.adversarial.discriminator) if config.adversarial else None

    def uses_discriminator(self, step: int) -> bool:
        """Whether the adversarial loss plays a part in ``step``."""
        return self.config.adversarial is not None and step >= self.config.adversarial.start

    def forward(
        self, out: Reconstruction, video: Tensor, last_layer: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the autoencoder and its parts, unweighted, detached; means over the batch.

        ``video`` (B 3 T H W) is what ``out`` should be, ``last_layer`` a weight of the decoder, which must require
        gradients where the adversarial loss is used.
        """
        config = self.config
        reconstruction = reconstruction_loss(out.video, video, config.reconstruction).mean()
        parts = {"reconstruction": reconstruction, "kl": kl_loss(out.mean, out.logvar).mean()}
        looks = reconstruction
        if self.perceptual is not None and config.perceptual is not None:
            parts["perceptual"] = self.perceptual(out.video, video).mean()
            looks = looks + config.perceptual.weight * parts["perceptual"]
        total = looks + config.kl_weight * parts["kl"]
        if self.discriminator is not None and config.adversarial is not None and self.uses_discriminator(step):
            parts["adversarial"] = -self.discriminator(out.video).mean()
            parts["adaptive_weight"] = adaptive_weight(looks, parts["adversarial"], last_layer)
            total = total + config.adversarial.weight * parts["adaptive_weight"] * parts["adversarial"]
        return total, {name: part.detach() for name, part in parts.items()}

    def discriminator_loss(self, reconstruction: Tensor, video: Tensor) -> Tensor:
        """The discriminator's hinge loss on real and reconstructed videos (B 3 T H W); the autoencoder gets no gradient."""
        assert self.discriminator is not None
        return hinge_discriminator_loss(self.discriminator(video), self.discriminator(reconstruction.detach()))
