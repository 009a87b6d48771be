"""The recipe of kind vae."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kineograph.config import Config
from kineograph.models.vae import CausalVAEConfig, ImageVAEConfig
from kineograph.models.vae.losses import VAELossConfig
from pipelines.train.config import TrainConfig, ValidationConfig, kind_unless_given


class CropConfig(Config):
    """What is seen of a clip in an epoch; what does not divide into latents is cut off."""

    size: tuple[int, int] | None = None
    """Height and width of a random crop, pixels; none, or where a clip is smaller: all of it."""
    frames: int | None = Field(None, ge=1)
    """Frames of a random stretch; none, or where a clip is shorter: all of them."""
    flip: bool = False
    """Mirror every other clip."""


class DiscriminatorOptimizerConfig(Config):
    """AdamW of the discriminator, at a constant rate from loss.adversarial.start on."""

    lr: float = Field(1e-4, gt=0)
    betas: tuple[float, float] = (0.5, 0.9)
    weight_decay: float = Field(0.0, ge=0)


class VAEValidationConfig(ValidationConfig):
    """PSNR and SSIM on held-out clips, and some of them beside their reconstruction."""

    every: int = Field(0, ge=0)
    """Steps between validations; 0 is once an epoch. The last step is always validated."""
    pictures: int = Field(4, ge=0)
    """Clips of each bucket that are shown."""


class VAERecipe(TrainConfig):
    """Training of an autoencoder."""

    kind: Literal["vae"] = "vae"
    vae: (
        Annotated[CausalVAEConfig | ImageVAEConfig, Field(discriminator="kind"), kind_unless_given("causal_vae")] | None
    ) = None
    """What is trained from scratch: kind causal_vae (the default) or image_vae, architecture: a preset or {class_name,
    settings}."""
    start: str | None = None
    """In place of ``vae``: a folder of ours or in diffusers' format, or a hub name, whose autoencoder is trained on."""
    crop: CropConfig = CropConfig()
    loss: VAELossConfig = VAELossConfig()
    discriminator: DiscriminatorOptimizerConfig = DiscriminatorOptimizerConfig()
    """Of loss.adversarial, where there is one."""
    validation: VAEValidationConfig = VAEValidationConfig()
    fit_clips: int = Field(256, ge=1)
    """Training clips that the linear path starts from, and that bring the latents to unit variance when training is
    done."""

    @property
    def least_side(self) -> int:
        """Pixels that a side of what is seen must have at least: where a discriminator judges, one of its patches."""
        if self.loss.adversarial is None:
            return 1
        # Its layers halve a side, and two convolutions after them take one off each.
        return 3 * 2**self.loss.adversarial.discriminator.layers

    @model_validator(mode="after")
    def _check_discriminator(self) -> VAERecipe:
        if self.crop.size is not None and min(self.crop.size) < self.least_side:
            raise ValueError(
                f"loss.adversarial.discriminator.layers needs sides of {self.least_side} pixels or more, and crop.size is "
                f"{list(self.crop.size)}: give fewer layers or a larger crop"
            )
        return self

    @model_validator(mode="after")
    def _check_start(self) -> VAERecipe:
        if (self.vae is None) == (self.start is None):
            raise ValueError("give either vae, such as {architecture: causal-mini}, or start, a folder to go on from")
        return self
