"""What recipes of every kind of training have in common; the rest is in kinds/*/config.py."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from kineograph.config import Config


def kind_unless_given(kind: str) -> BeforeValidator:
    """For a field that takes one of several configs, told apart by their ``kind``: which is meant where none is given."""

    def add(value: Any) -> Any:
        return {"kind": kind, **value} if isinstance(value, dict) else value

    return BeforeValidator(add)


def preset_or_keys(presets: Mapping[str, Config], default: str) -> BeforeValidator:
    """For a field that takes a model's shape: the name of a preset, keys, or both, {preset: NAME, key: value}. Keys alone
    change ``default``, where they are of its ``kind``."""

    def complete(value: Any) -> Any:
        given = {"preset": value} if isinstance(value, str) else value
        if not isinstance(given, dict):
            return value
        name = given.get("preset", default)
        if name not in presets:
            nearest = difflib.get_close_matches(str(name), presets, n=1, cutoff=0.4)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(presets)}"
            raise ValueError(f"no preset {name!r} for this; {hint}")
        base, keys = presets[name].model_dump(), {k: v for k, v in given.items() if k != "preset"}
        if "preset" not in given and keys.get("kind", base["kind"]) != base["kind"]:
            return keys
        return {**base, **keys}

    return BeforeValidator(complete)


class DataConfig(Config):
    """What is read and how."""

    run: str | None = None
    """The curation run; --data gives it too."""
    validation_share: float = Field(0.05, ge=0, lt=1)
    """Share of sources, 0..1, kept out of training for validation."""
    cache_mib: int = Field(1024, ge=0)
    """Decoded clips a worker keeps in memory, MiB."""


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
    """What is measured on held-out clips while training."""

    every: int = Field(500, ge=0)
    """Steps between validations; 0 is once an epoch. The last step is always validated."""
    clips: int = Field(32, ge=1)
    """Held-out clips used of each bucket, at most."""


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
    """DeepSpeed ZeRO: 1 shards the optimizer's state, 2 the gradients too. In bf16 0 is 1."""
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
    """What every training run has; each kind adds its own (kinds/*/config.py)."""

    kind: str
    """What is trained: diffusion, vae or classifier."""
    seed: int = 0
    """Of the initial weights, the order of clips and every random number drawn for a clip."""
    steps: int = Field(ge=1)
    """Optimizer steps in all."""
    precision: Literal["fp32", "bf16"] = "fp32"
    data: DataConfig = DataConfig()
    batch: BatchConfig = BatchConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    validation: ValidationConfig = ValidationConfig()
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
