"""What recipes of every kind of training have in common; the rest is in kinds/*/config.py."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from kineograph.config import Config
from kineograph.models.execution import ExecutionConfig
from pipelines.train.loading.config import LoadingConfig
from pipelines.train.optimizer import DeepSpeedConfig, OptimizerConfig
from pipelines.train.plan.costs import CostConfig
from pipelines.train.plan.plan import BatchConfig
from pipelines.train.saving.config import CheckpointConfig
from pipelines.train.workers import WorkersConfig


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


class DataConfig(LoadingConfig):
    """What is read and how."""

    run: str | None = None
    """The curation run, a directory or a URL such as s3://bucket/run; --data gives it too."""
    validation_share: float = Field(0.05, ge=0, lt=1)
    """Share of sources, 0..1, kept out of training for validation."""
    shuffle_groups: int = Field(32, ge=1)
    """Row groups of a bucket whose clips are shuffled together: more mix better, and are held in memory as files."""


class ValidationConfig(Config):
    """What is measured on held-out clips while training."""

    every: int = Field(500, ge=0)
    """Steps between validations; 0 is once an epoch. The last step is always validated."""
    clips: int = Field(32, ge=1)
    """Held-out clips used of each bucket, at most."""


class TrackingConfig(Config):
    """Where MLflow is, and what is told."""

    experiment: str = "kineograph"
    uri: str | None = None
    """Tracking URI; none: MLFLOW_TRACKING_URI if set, else sqlite in mlflow.db beside the run directory."""
    log_every: int = Field(10, ge=1)
    """Steps between logged metrics."""
    profile: tuple[int, ...] = ()
    """Steps of which a profiler's trace is written, RUN/profile/step-….json for Perfetto; `touch RUN/profile-next`
    asks for the next step."""


class TrainConfig(Config):
    """What every training run has; each kind adds its own (kinds/*/config.py)."""

    kind: str
    """What is trained: diffusion, vae or classifier."""
    seed: int = 0
    """Of the initial weights, the order of clips and every random number drawn for a clip."""
    steps: int = Field(ge=1)
    """Optimizer steps in all."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes matrix products in bf16; weights, gradients, sums and norms are fp32."""
    data: DataConfig = DataConfig()
    batch: BatchConfig = BatchConfig()
    costs: CostConfig = CostConfig()
    execution: ExecutionConfig = ExecutionConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    validation: ValidationConfig = ValidationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    workers: WorkersConfig = WorkersConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.optimizer.warmup_steps >= self.steps:
            raise ValueError(f"optimizer.warmup_steps {self.optimizer.warmup_steps} must be below steps {self.steps}")
        return self
