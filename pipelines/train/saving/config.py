"""What a recipe says of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from kineograph.config import Config
from kineograph.errors import UserError
from kineograph.store.places import is_url
from pipelines.train.loading.config import LoadingConfig


class CheckpointConfig(Config):
    """When the state is saved, how much of it is kept and where it is copied to."""

    every: int = Field(500, ge=1)
    """Steps between checkpoints; the last step is always saved."""
    minutes: float | None = Field(None, gt=0)
    """Save also where so much time has passed since the last checkpoint; none: by steps alone."""
    keep: int = Field(2, ge=1)
    """Newest checkpoints kept."""
    keep_every: int = Field(0, ge=0)
    """Checkpoints of multiples of so many steps are kept for ever; 0: none is."""
    keep_best: int = Field(0, ge=0)
    """Best checkpoints kept, by ``best``. Those count that are of a step with a validation."""
    best: str = Field("validation_loss", min_length=2)
    """Metric of validation by which checkpoints are better, the lower the better; with a minus sign before it, such as
    -validation_accuracy, the higher. RUN@best is the best one."""
    upload: str | None = None
    """A place of the run's own, s3://BUCKET/KEY, gs://BUCKET/KEY or an absolute path, that checkpoints are copied to while
    training goes on, and that a machine without them goes on from. The same are kept there. None: nowhere."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """Where ``upload`` is a URL, options of s3fs or gcsfs, such as endpoint_url. No credentials: those come from the
    standard AWS and Google environment variables and files."""
    mlflow_models: bool = True
    """Whether every checkpoint is a model in MLflow: its path, digests and scores, not its bytes."""

    @field_validator("upload")
    @classmethod
    def _is_place(cls, upload: str | None) -> str | None:
        try:
            if upload is not None and not is_url(upload) and not Path(upload).is_absolute():
                raise ValueError("give a URL, or a path from the root on: workers may run in other folders")
        except UserError as error:
            raise ValueError(str(error)) from error
        return upload

    @field_validator("storage_options")
    @classmethod
    def _no_secrets(cls, options: dict[str, Any]) -> dict[str, Any]:
        return LoadingConfig._no_secrets(options)  # what holds for places that are read holds here

    def is_due(self, step: int, steps: int) -> bool:
        """Whether the state after ``step`` of ``steps`` steps is saved."""
        return step % self.every == 0 or step == steps
