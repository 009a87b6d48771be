"""The recipe of an evaluation."""

from __future__ import annotations

from pydantic import Field, field_validator

from kineograph.config import Config, digest
from kineograph.media.geometry import Bucket


class Validation(Config):
    """Flow loss on clips that training held out; needs the curation run (--data)."""

    clips: int = Field(256, ge=0)
    """Held-out clips used of each bucket, at most; 0 measures no loss. Training validates on the same ones."""
    timesteps: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    """Where the loss is measured, 0 = data, 1 = noise."""

    @field_validator("timesteps")
    @classmethod
    def _are_timesteps(cls, timesteps: tuple[float, ...]) -> tuple[float, ...]:
        if not timesteps or not all(0 < t <= 1 for t in timesteps):
            raise ValueError("timesteps lie above 0 and up to 1, e.g. [0.1, 0.5, 0.9]")
        return timesteps


class Confidence(Config):
    """The bootstrap intervals."""

    level: float = Field(0.95, gt=0, lt=1)
    """Chance that such an interval holds the true value."""
    resamples: int = Field(10_000, ge=100)
    """Resamples of each score."""


class Gate(Config):
    """What a checkpoint must reach; a condition that is null is not asked. A score that is not measured
    fails."""

    colour_accuracy: float | None = Field(None, ge=0, le=1)
    """Least share of videos in the colour that the prompt demands."""
    shape_accuracy: float | None = Field(None, ge=0, le=1)
    """Least share of videos with the shape."""
    direction_accuracy: float | None = Field(None, ge=0, le=1)
    """Least share of videos that move the demanded way."""
    flicker: float | None = Field(None, ge=0, le=1)
    """Least VBench temporal flickering: 1 is a still."""
    validation_loss: float | None = Field(None, gt=0)
    """Most flow loss on held-out clips."""
    oracle_colour_accuracy: float | None = Field(None, ge=0, le=1)
    """Least accuracy of the oracle's colours on rendered truth: is the examiner to be believed?"""
    oracle_shape_accuracy: float | None = Field(None, ge=0, le=1)
    """Least accuracy of the oracle's shapes on rendered truth."""
    oracle_direction_accuracy: float | None = Field(None, ge=0, le=1)
    """Least accuracy of the oracle's directions on rendered truth."""


class Report(Config):
    """What is kept for people to look at."""

    videos: int = Field(8, ge=0)
    """Samples written as mp4, the first ones."""
    rows: int = Field(16, ge=1)
    """Videos of a contact sheet."""
    sheets: int = Field(8, ge=1)
    """Contact sheets, at most."""
    frames: int = Field(8, ge=1)
    """Frames of a video in its row, at most."""


class EvalConfig(Config):
    """An evaluation of one checkpoint."""

    seed: int = 0
    """Of the prompts drawn, the noise of each sample and the truth that the oracle is tested on."""
    videos: int = Field(64, ge=1)
    """Videos sampled."""
    prompts: tuple[str, ...] = ()
    """What to sample, in turn; none: the synthetic world's grid of colour, shape and direction."""
    bucket: str | None = None
    """Size of the samples as HEIGHTxWIDTHxFRAMES; null takes the checkpoint's."""
    fps: float | None = Field(None, gt=0)
    """Frames per second of the samples; null takes the checkpoint's."""
    steps: int | None = Field(None, ge=1)
    """Euler steps; null takes the checkpoint's."""
    guidance_scale: float | None = Field(None, ge=1)
    """Classifier-free guidance, 1 = none; null takes the checkpoint's."""
    batch_size: int = Field(32, ge=1)
    """Videos sampled together."""
    oracle_scenes: int = Field(256, ge=1)
    """Rendered scenes on which the oracle itself is graded."""
    validation: Validation = Validation()
    """Flow loss on held-out clips."""
    confidence: Confidence = Confidence()
    """Bootstrap intervals."""
    gate: Gate = Gate()
    """What must be reached, or the evaluation exits with 1."""
    report: Report = Report()
    """Contact sheets and videos."""

    @field_validator("prompts")
    @classmethod
    def _are_prompts(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        if any(not prompt.strip() for prompt in prompts):
            raise ValueError("a prompt is empty")
        return prompts

    @field_validator("bucket")
    @classmethod
    def _is_bucket(cls, bucket: str | None) -> str | None:
        if bucket is not None:
            Bucket.parse(bucket)
        return bucket

    @property
    def recipe_digest(self) -> str:
        """SHA-256 of what decides the scores: all but what is kept to look at."""
        return digest(self.model_dump(mode="json", exclude={"report"}))
