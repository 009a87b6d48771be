"""What autoencoders with a posterior are trained on: reconstruction, KL, perceptual and adversarial losses."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from kineograph.config import Config
from kineograph.models.vae.discriminator import DiscriminatorConfig
from kineograph.models.vae.perceptual import Backbone


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
