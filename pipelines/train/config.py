"""The training recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kineograph.config import Config
from kineograph.diffusion.flow import FlowConfig
from kineograph.models.stdit import check_shape
from kineograph.models.vae import PatchPCAConfig

Timestep = Annotated[float, Field(ge=0, le=1)]


class ModelConfig(Config):
    """Shape of the STDiT; the channels of latents and text come from the autoencoder and the dataset."""

    kind: Literal["stdit"] = "stdit"
    patch: tuple[int, int, int] = (1, 2, 2)
    """Latent frames, rows, columns of a patch."""
    width: int = Field(128, ge=4)
    """Channels of a token."""
    depth: int = Field(4, ge=1)
    """Blocks."""
    heads: int = Field(4, ge=1)
    """Attention heads."""
    mlp_ratio: float = Field(4.0, gt=0)
    """Hidden width of the MLP over width."""

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        check_shape(self.width, self.heads, self.patch)
        return self


class VAEConfig(PatchPCAConfig):
    """The patch-PCA autoencoder and what it is fitted on."""

    fit_clips: int = Field(256, ge=1)
    """Training clips that the components are computed from."""


class DataConfig(Config):
    """What is read and how."""

    run: str | None = None
    """The curation run; --data gives it too."""
    validation_share: float = Field(0.05, ge=0, lt=1)
    """Share of sources, 0..1, kept out of training for the validation loss."""
    cache_mib: int = Field(1024, ge=0)
    """Decoded clips a worker keeps in memory, MiB."""


class ConditioningConfig(Config):
    """What a clip is trained with, besides its noise."""

    caption_drop: float = Field(0.1, ge=0, le=1)
    """Share of clips trained without their caption, for classifier-free guidance."""
    factorised: bool = True
    """Train videos as first frame | text and rest | first frame, text, and sample them so; off: all frames at once."""


class BatchConfig(Config):
    """Clips per optimizer step, over all workers together."""

    videos: int = Field(32, ge=1)
    """Clips in a step of a video bucket."""
    images: int = Field(32, ge=1)
    """Images in a step of an image bucket."""


class OptimizerConfig(Config):
    """AdamW with linear warm-up."""

    lr: float = Field(1e-4, gt=0)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(0.0, ge=0)
    warmup_steps: int = Field(50, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: down to final_ratio·lr at the last step, or flat."""
    final_ratio: float = Field(0.05, ge=0, le=1)
    clip_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this global norm."""
    ema_decay: float = Field(0.999, ge=0, lt=1)
    """Decay per step of the weights' moving average; shorter at the start: min(decay, (1 + step) / (10 + step))."""


class ValidationConfig(Config):
    """Flow loss on held-out clips at fixed timesteps."""

    every: int = Field(500, ge=1)
    """Steps between validations."""
    clips: int = Field(32, ge=1)
    """Held-out clips used, at most."""
    timesteps: tuple[Timestep, ...] = Field((0.1, 0.3, 0.5, 0.7, 0.9), min_length=1)
    """Where the loss is measured, 0 = data, 1 = noise."""


class SampleConfig(Config):
    """Videos sampled while training, to look at."""

    every: int = Field(500, ge=1)
    """Steps between samplings."""
    prompts: tuple[str, ...] = ()
    """What to sample; none samples nothing."""
    steps: int = Field(20, ge=1)
    """Euler steps."""
    guidance_scale: float = Field(4.0, ge=1)


class CheckpointConfig(Config):
    """When the state is saved and how much of it is kept."""

    every: int = Field(500, ge=1)
    """Steps between checkpoints; the last step is always saved."""
    keep: int = Field(2, ge=1)
    """Newest checkpoints kept."""


class WorkersConfig(Config):
    """What Ray Train starts."""

    count: int = Field(1, ge=1)
    """Training workers (ranks)."""
    cpus: float = Field(1, gt=0)
    """CPUs reserved for each; also its number of torch threads."""
    gpu: bool = False
    """One GPU for each."""
    zero_stage: Literal[0, 1, 2] = 2
    """DeepSpeed ZeRO: 1 shards the optimizer's state, 2 the gradients too."""
    max_failures: int = Field(2, ge=0)
    """How often the group is restarted from its last checkpoint after a worker died."""


class TrackingConfig(Config):
    """Where MLflow is."""

    experiment: str = "kineograph"
    uri: str | None = None
    """Tracking URI; none: MLFLOW_TRACKING_URI if set, else sqlite in mlflow.db beside the run directory."""
    log_every: int = Field(10, ge=1)
    """Steps between logged metrics."""


class TrainConfig(Config):
    """A training run."""

    kind: Literal["diffusion"] = "diffusion"
    seed: int = 0
    """Of the initial weights, the order of clips, noise, timesteps and caption drop."""
    steps: int = Field(ge=1)
    """Optimizer steps in all."""
    precision: Literal["fp32", "bf16"] = "fp32"
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    vae: VAEConfig = VAEConfig()
    flow: FlowConfig = FlowConfig()
    conditioning: ConditioningConfig = ConditioningConfig()
    batch: BatchConfig = BatchConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    validation: ValidationConfig = ValidationConfig()
    samples: SampleConfig = SampleConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    workers: WorkersConfig = WorkersConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.optimizer.warmup_steps >= self.steps:
            raise ValueError(f"optimizer.warmup_steps {self.optimizer.warmup_steps} must be below steps {self.steps}")
        for name, clips in (("videos", self.batch.videos), ("images", self.batch.images)):
            if clips < self.workers.count:
                raise ValueError(f"batch.{name} {clips} is less than one clip for each of {self.workers.count} workers")
        return self
