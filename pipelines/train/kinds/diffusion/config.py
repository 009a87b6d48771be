"""The recipe of kind diffusion."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kineograph.config import Config
from kineograph.diffusion.conditioning import TaskMix
from kineograph.diffusion.flow import FlowConfig
from kineograph.diffusion.guidance import GuidanceConfig
from kineograph.diffusion.processes import DiffusionConfig, build_process
from kineograph.diffusion.samplers import SamplerConfig
from kineograph.errors import UserError
from kineograph.models.dit import DiTConfig, DiTShape
from kineograph.models.lora import LoRAConfig
from kineograph.models.presets import PRESETS
from kineograph.models.stdit import STDiTConfig, STDiTShape
from kineograph.models.vae import PatchPCAConfig
from pipelines.train.config import TrainConfig, ValidationConfig, kind_unless_given, preset_or_keys
from pipelines.train.kinds.diffusion.sampling import check_sampling, is_open, with_sampler_of

Timestep = Annotated[float, Field(ge=0, le=1)]


SHAPES: dict[str, STDiTShape | DiTShape] = {
    name: (STDiTShape if isinstance(preset.config, STDiTConfig) else DiTShape).model_validate(
        preset.config.model_dump(exclude={"in_channels", "text_width"})
    )
    for name, preset in PRESETS.items()
    if isinstance(preset.config, STDiTConfig | DiTConfig)
}
"""Shapes by name, without the channels of latents and text."""
TINY = "stdit-tiny/2"


class FittedVAE(PatchPCAConfig):
    """The patch-PCA autoencoder and what it is fitted on."""

    fit_clips: int = Field(256, ge=1)
    """Training clips that the components are computed from."""


class FolderVAE(Config):
    """An autoencoder that is there already."""

    kind: Literal["folder"]
    path: str
    """A folder of ours (vae of a run) or in diffusers' format, or a name on the Hugging Face hub."""


class ConditioningConfig(Config):
    """What a clip is trained with, besides its noise."""

    caption_drop: float = Field(0.1, ge=0, le=1)
    """Share of clips trained without their caption, for classifier-free guidance."""
    factorised: bool = True
    """Train the first frame of a video also alone, as an image, and sample videos as first frame | text, then
    rest | first frame, text; off: all frames at once."""
    tasks: TaskMix = TaskMix()
    """What is given of a video in training."""
    image_fps: float = Field(0.0, ge=0)
    """Frames per second that the model is told of an image; 120 in Open-Sora 1.2."""

    def check(self) -> None:
        """Raise ValueError when what sampling does is not trained."""
        name, why = ("image", "given its first frame") if self.factorised else ("text", "with nothing given")
        weight = self.tasks.image if self.factorised else self.tasks.text
        if not weight:
            raise ValueError(
                f"conditioning.tasks.{name} is 0, but sampling makes a video {why}: set it, or "
                f"conditioning.factorised={str(not self.factorised).lower()}"
            )


class TimestepValidationConfig(ValidationConfig):
    """Loss on held-out clips at fixed timesteps."""

    timesteps: tuple[Timestep, ...] = Field((0.1, 0.3, 0.5, 0.7, 0.9), min_length=1)
    """Where the loss is measured, 0 = data, 1 = noise."""


class SampleConfig(Config):
    """Videos sampled while training, to look at."""

    every: int = Field(500, ge=0)
    """Steps between samplings; 0 is once an epoch."""
    prompts: tuple[str, ...] = ()
    """What to sample; none samples nothing."""
    steps: int = Field(20, ge=1)
    """Steps of the sampler."""
    sampler: SamplerConfig = SamplerConfig()
    """Without a name euler, and ddim where diffusion is gaussian."""
    guidance: GuidanceConfig = GuidanceConfig()


class DiffusionRecipe(TrainConfig):
    """Training of a text-to-video model."""

    kind: Literal["diffusion"] = "diffusion"
    model: Annotated[STDiTShape | DiTShape, Field(discriminator="kind"), preset_or_keys(SHAPES, TINY)] = SHAPES[TINY]
    """A preset's name ('kineo model list'), keys of its kind, or both: {preset: stdit-b/2, depth: 8}. kind stdit, or dit,
    to which every frame is an image of its own."""
    start: str | None = None
    """A checkpoint or training run to fine-tune, such as one that 'kineo model import' wrote: its averaged weights, its
    model, and where the recipe is silent its diffusion, vae, samples (steps, sampler, guidance), and of conditioning
    factorised and image_fps."""
    vae: Annotated[FittedVAE | FolderVAE, Field(discriminator="kind"), kind_unless_given("patch_pca")] = FittedVAE()
    """A patch-PCA autoencoder to fit, or {kind: folder, path: FOLDER}."""
    diffusion: Annotated[DiffusionConfig, kind_unless_given("flow")] = FlowConfig()
    """kind flow (the default) or gaussian."""
    lora: LoRAConfig | None = None
    """Given: the weights of ``start`` stay as they are, and matrices of low rank beside them are trained."""
    conditioning: ConditioningConfig = ConditioningConfig()
    validation: TimestepValidationConfig = TimestepValidationConfig()
    samples: SampleConfig = SampleConfig()

    @model_validator(mode="before")
    @classmethod
    def _choose_sampler(cls, raw: Any) -> Any:
        return with_sampler_of(raw)

    @model_validator(mode="after")
    def _check_parts(self) -> DiffusionRecipe:
        if self.lora is not None and self.start is None:
            raise ValueError("lora is trained beside weights that are there: give start, a checkpoint")
        if is_open(self.start, self.model_fields_set):
            return self  # what the checkpoint brings is not known yet
        self.conditioning.check()
        if build_process(self.diffusion).output_factor == 2 and not self.model.learn_sigma:
            raise ValueError(
                "the variance is to be learned, and the model does not say one: set model.learn_sigma=true"
            )
        try:
            check_sampling(self.diffusion, self.samples.sampler, self.samples.steps)
        except UserError as error:
            raise ValueError(f"samples: {error}") from error
        return self
