"""What of MLflow's API is used, entry by entry of the outbox of tracking.py."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kineograph.outbox import Entry
from kineograph.progress import say
from kineograph.tracked_models import ModelStore

if TYPE_CHECKING:
    from PIL.Image import Image

SQLITE = "sqlite:///"
ARTIFACTS_NAME = "mlartifacts"

MOST_METRICS = 1000
"""Of one request."""
_MOST_PARAMS = 100
_LONGEST_DIGEST = 32
_REFUSALS = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "INVALID_STATE",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
}
_ENVIRONMENT = {  # MLflow's own defaults wait for minutes; what the user has set stands
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


class MlflowStore:
    """MLflow itself: every method waits for it and raises what it raises."""

    def __init__(self, uri: str) -> None:
        for key, value in _ENVIRONMENT.items():
            os.environ.setdefault(key, value)
        from mlflow.tracking import MlflowClient

        for logger in ("mlflow", "alembic"):
            logging.getLogger(logger).setLevel(logging.WARNING)
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it tells of every try; we do, once
        self._artifacts: str | None = None
        if uri.startswith(SQLITE):
            folder = Path(uri.removeprefix(SQLITE)).parent
            folder.mkdir(parents=True, exist_ok=True)
            self._artifacts = (folder.resolve() / ARTIFACTS_NAME).as_uri()
        self._client: Any = MlflowClient(tracking_uri=uri)

    def check(self, run_id: str) -> None:
        self._client.get_run(run_id)

    def open_run(self, experiment: str, run_name: str, run_id: str | None) -> str:
        """Resume ``run_id``; start a new run when it is None or not known here. Returns the run's id."""
        if run_id is not None:
            try:
                self._client.update_run(run_id, status="RUNNING")
                return run_id
            except Exception as error:
                if not is_refusal(error):
                    raise
                say(f"MLflow does not have run {run_id}: a new one is started")
        run = self._client.create_run(self._experiment(experiment), run_name=run_name)
        new_id: str = run.info.run_id
        return new_id

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                created: str = self._client.create_experiment(name, artifact_location=self._artifacts)
                return created
            except Exception as error:
                if not is_refusal(error):
                    raise
                found = self._client.get_experiment_by_name(name)  # another process was faster
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        experiment_id: str = found.experiment_id
        return experiment_id

    def apply(self, run_id: str, entries: Sequence[Entry]) -> None:
        """Send entries of one kind; only metrics may be more than one."""
        getattr(self, f"_apply_{entries[0]['op']}")(run_id, entries)

    def _apply_model(self, run_id: str, entries: Sequence[Entry]) -> None:
        from mlflow import entities

        ModelStore(self._client, entities).apply(run_id, entries[0])

    def _apply_metrics(self, run_id: str, entries: Sequence[Entry]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(key, value, entry["time"], entry["step"])
            for entry in entries
            for key, value in entry["metrics"].items()
        ]
        for start in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(run_id, metrics=metrics[start : start + MOST_METRICS])

    def _apply_params(self, run_id: str, entries: Sequence[Entry]) -> None:
        from mlflow.entities import Param

        standing = self._client.get_run(run_id).data.params
        params: dict[str, str] = entries[0]["params"]
        new = [Param(key, value) for key, value in params.items() if key not in standing]
        for start in range(0, len(new), _MOST_PARAMS):
            self._client.log_batch(run_id, params=new[start : start + _MOST_PARAMS])
        self._set_tags(run_id, {f"resumed.{k}": v for k, v in params.items() if standing.get(k, v) != v})

    def _apply_tags(self, run_id: str, entries: Sequence[Entry]) -> None:
        self._set_tags(run_id, entries[0]["tags"])

    def _set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        all_tags = [RunTag(key, value) for key, value in tags.items()]
        for start in range(0, len(all_tags), _MOST_PARAMS):
            self._client.log_batch(run_id, tags=all_tags[start : start + _MOST_PARAMS])

    def _apply_dataset(self, run_id: str, entries: Sequence[Entry]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        (entry,) = entries
        digest = entry["digest"]
        source = json.dumps({"uri": entry["source"]})
        dataset = Dataset(entry["name"], digest[:_LONGEST_DIGEST], source_type="local", source=source)
        tags = {"mlflow.data.context": entry["context"], "digest": digest, **entry["tags"]}
        self._client.log_inputs(run_id, [DatasetInput(dataset, [InputTag(k, v) for k, v in tags.items()])])
        self._set_tags(run_id, {f"dataset.{entry['context']}.digest": digest})

    def _apply_file(self, run_id: str, entries: Sequence[Entry]) -> None:
        (entry,) = entries
        if not Path(entry["path"]).is_file():
            raise ValueError(f"{entry['path']} is no longer there")
        self._client.log_artifact(run_id, entry["path"], entry["artifact_path"] or None)

    def _apply_image(self, run_id: str, entries: Sequence[Entry]) -> None:
        (entry,) = entries
        image = as_image(entry["image"] if "image" in entry else base64.b64decode(entry["png"]))
        self._client.log_image(run_id, image, key=entry["key"], step=entry["step"], timestamp=entry["time"])

    def _apply_finish(self, run_id: str, entries: Sequence[Entry]) -> None:
        self._client.set_terminated(run_id, status=entries[0]["status"], end_time=entries[0]["time"])


def as_image(image: Image | np.ndarray | bytes) -> Image:
    """A PIL image of an array, the bytes of a PNG, or an image."""
    from PIL import Image

    if isinstance(image, bytes):
        return Image.open(io.BytesIO(image))
    return Image.fromarray(image) if isinstance(image, np.ndarray) else image


def is_refusal(error: Exception) -> bool:
    """Whether the entry itself is at fault, so that sending it again would not help."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in _REFUSALS
    return isinstance(error, ValueError | TypeError | LookupError | AttributeError) and not isinstance(error, OSError)
