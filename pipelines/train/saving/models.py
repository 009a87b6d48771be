"""A run's checkpoints as models in MLflow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from kineograph.store.checkpoints import DIGESTS, parse_digests, read_config, step_of
from kineograph.tracked_models import ModelLog
from pipelines.train.saving.depot import step_name

COPY = "copy"
"""Tag of a model: where its checkpoint was copied to."""


class Models:
    """Tells a tracker of checkpoints, as models called RUN-step-STEP."""

    def __init__(self, run: Path, tracker: ModelLog) -> None:
        self._run, self._tracker = run, tracker

    def saved(self, folder: Path) -> None:
        """A checkpoint stands. To be told of it again does no harm."""
        config = read_config(folder)
        digests = parse_digests((folder / DIGESTS).read_bytes())
        tags = {f"sha256.{name}": digest for name, digest in digests.items()}
        tags |= {key: str(config[key]) for key in ("manifest_digest", "recipe_digest") if key in config}
        plain = {key: str(value) for key, value in config.items() if isinstance(value, str | int | float)}
        self._tracker.log_model(self._name(step_of(folder)), step_of(folder), folder, plain, tags)

    def measured(self, step: int, metrics: Mapping[str, float]) -> None:
        """Validation found ``metrics`` of the checkpoint of ``step``."""
        self._tracker.log_model_metrics(self._name(step), step, metrics)

    def copied(self, step: int, place: str) -> None:
        """The checkpoint of ``step`` is at ``place`` too."""
        self._tracker.set_model_tags(self._name(step), {COPY: f"{place}/{step_name(step)}"})

    def kept(self, steps: Iterable[int]) -> None:
        """The run has the checkpoints of ``steps`` and no others."""
        self._tracker.keep_models(map(self._name, steps))

    def _name(self, step: int) -> str:
        return f"{self._run.name}-step-{step:08d}"
