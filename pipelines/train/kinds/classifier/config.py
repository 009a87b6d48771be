"""The recipe of kind classifier."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kineograph.config import Config
from kineograph.models.vit import VIT_PRESETS, ViTConfig
from kineograph.models.vivit import VIVIT_PRESETS, ViViTConfig
from kineograph.store.labels import LabelSource
from pipelines.train.config import TrainConfig, ValidationConfig, preset_or_keys

PRESETS: dict[str, ViTConfig | ViViTConfig] = {**VIT_PRESETS, **VIVIT_PRESETS}
DEMO = "vit-demo"


class AugmentConfig(Config):
    """How a clip is varied from epoch to epoch; all frames of a clip alike."""

    crop: float = Field(1.0, gt=0, le=1)
    """Least share of the sides that a random crop keeps; 1 crops nothing."""
    flip: bool = False
    """Mirror every other clip. Not where left and right are what is learned."""


class ClassifierValidationConfig(ValidationConfig):
    """Accuracy on held-out clips."""

    clips: int = Field(512, ge=1)
    """Held-out clips used of each bucket, at most."""


class ClassifierRecipe(TrainConfig):
    """Training of an image classifier (ViT) or a video classifier (ViViT)."""

    kind: Literal["classifier"] = "classifier"
    label: LabelSource
    """What is learned: {column: NAME} of the curation's manifest, or {truth: shape | colour | direction | speed}."""
    media: Literal["all", "images", "videos"] = "all"
    """Which clips are used. A ViT sees a random frame of a video; a ViViT takes videos alone."""
    model: Annotated[ViTConfig | ViViTConfig, Field(discriminator="kind"), preset_or_keys(PRESETS, DEMO)] = PRESETS[
        DEMO
    ]
    """A preset's name ('kineo model list'), keys of its kind, or both: {preset: vit-s/16, size: [128, 128]}. kind vit or
    vivit."""
    start: str | None = None
    """A classifier to start from, but for its head: a training run or checkpoint, or a ViT in transformers' format, from
    which a ViViT takes its spatial transformer."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target that is spread over all classes (Szegedy et al. 2016)."""
    augment: AugmentConfig = AugmentConfig()
    validation: ClassifierValidationConfig = ClassifierValidationConfig()

    @model_validator(mode="after")
    def _check_media(self) -> ClassifierRecipe:
        if isinstance(self.model, ViViTConfig) and self.media == "images":
            raise ValueError("a ViViT classifies videos: set media=videos, or model.kind=vit")
        if self.augment.flip and self.label.truth == "direction":
            raise ValueError("a mirrored clip moves the other way: set augment.flip=false")
        return self
