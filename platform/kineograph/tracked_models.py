"""Checkpoints as models in MLflow: one logged model each, with where it lies, its digests and its scores.

The bytes of the weights stay where they are: a model's artifacts are a description of some kilobytes. A model whose
checkpoint was deleted stays, with the tag state=deleted: its scores remain to be compared.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kineograph.outbox import Entry
from kineograph.store.checkpoints import CONFIG, DIGESTS, parse_digests, read_config

STATE = "state"
KEPT, DELETED = "kept", "deleted"
MODEL_TYPE = "kineograph-checkpoint"
DESCRIPTION = "checkpoint.json"
FLAVOR = "kineograph"

_BAD = re.compile(r"[/:.%\"'\\]")
_LONGEST = 5000
_MOST = 100  # parameters of a model


class ModelLog(ABC):
    """What a tracker is told of models. A model is known by its name, which no other of the run has."""

    def __init__(self) -> None:
        self._times: dict[str, tuple[int, float, int]] = {}

    @abstractmethod
    def _put(self, **entry: Any) -> None: ...

    def log_model(
        self,
        name: str,
        step: int,
        folder: Path,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> None:
        """Log the checkpoint in ``folder`` as a model, made at optimizer step ``step``; told again, its tags are set anew.

        Its config and digests are read now, since the folder may be gone when MLflow answers. Raises OSError, ValueError
        and UserError when they cannot be.
        """
        about = {"config": read_config(folder), "digests": parse_digests((folder / DIGESTS).read_bytes())}
        texts = {"path": str(folder), "step": step, STATE: KEPT, **(tags or {})}
        self._put(
            op="model",
            do="log",
            name=model_name(name),
            step=int(step),
            about={"path": str(folder), "step": int(step), **about},
            params=dict(list((params or {}).items())[:_MOST]),
            tags={key: str(value)[:_LONGEST] for key, value in texts.items()},
            time=int(time.time() * 1000),
        )

    def set_model_tags(self, name: str, tags: Mapping[str, Any]) -> None:
        """Set tags of a model."""
        self._put(op="model", do="tag", name=model_name(name), tags={k: str(v)[:_LONGEST] for k, v in tags.items()})

    def keep_models(self, names: Iterable[str]) -> None:
        """Of the run's models only ``names`` still have a checkpoint: the others get the tag state=deleted."""
        self._put(op="model", do="keep", names=[model_name(name) for name in names])

    def log_model_metrics(self, name: str, step: int, metrics: Mapping[str, float]) -> None:
        """Log numbers of a model. MLflow gives them to its run too, where a point that :meth:`log_metrics` told stays
        one."""
        points = {}
        for key, value in metrics.items():
            told_at, told, when = self._times.get(metric_name(key), (None, None, 0))
            is_told = (told_at, told) == (step, float(value))
            points[metric_name(key)] = (float(value), when if is_told else int(time.time() * 1000))
        self._put(op="model", do="measure", name=model_name(name), step=int(step), metrics=points)

    def _remember(self, values: Mapping[str, float], step: int, time_ms: int) -> int:
        """Note when the run was told ``values``; returns ``time_ms``."""
        self._times.update({key: (step, value, time_ms) for key, value in values.items()})
        return time_ms


class ModelStore:
    """The models of MLflow's store. Every method waits for it and raises what it raises."""

    def __init__(self, client: Any, entities: Any) -> None:
        """``client`` is an MlflowClient, ``entities`` the module mlflow.entities."""
        self._client, self._entities = client, entities

    def apply(self, run_id: str, entry: Entry) -> None:
        """Send an entry of :class:`ModelLog`. What was sent before changes nothing."""
        getattr(self, f"_{entry['do']}")(run_id, entry)

    def _log(self, run_id: str, entry: Entry) -> None:
        client = self._client
        run = client.get_run(run_id)
        model = self._find(run_id, entry["name"])
        if model is None:
            model = client.create_logged_model(
                run.info.experiment_id, entry["name"], run_id, entry["tags"], entry["params"], MODEL_TYPE
            )
        else:
            client.set_logged_model_tags(model.model_id, entry["tags"])
        outputs = run.outputs.model_outputs if run.outputs else []
        if all(output.model_id != model.model_id for output in outputs):
            client.log_outputs(run_id, [self._entities.LoggedModelOutput(model.model_id, entry["step"])])
        with tempfile.TemporaryDirectory() as folder:
            _describe(Path(folder), model, entry)
            client.log_model_artifacts(model.model_id, folder)
        if str(model.status) != "READY":
            client.finalize_logged_model(model.model_id, "READY")

    def _tag(self, run_id: str, entry: Entry) -> None:
        self._client.set_logged_model_tags(self._get(run_id, entry["name"]).model_id, entry["tags"])

    def _keep(self, run_id: str, entry: Entry) -> None:
        for model in self._search(run_id, f"tags.{STATE} = '{KEPT}'"):
            if model.name not in entry["names"]:
                self._client.set_logged_model_tags(model.model_id, {STATE: DELETED})

    def _measure(self, run_id: str, entry: Entry) -> None:
        model_id, step = self._get(run_id, entry["name"]).model_id, entry["step"]
        metrics = [
            self._entities.Metric(key, value, at, step, model_id=model_id)
            for key, (value, at) in entry["metrics"].items()
        ]
        self._client.log_batch(run_id, metrics=metrics)

    def _get(self, run_id: str, name: str) -> Any:
        model = self._find(run_id, name)
        if model is None:
            raise ValueError(f"there is no model {name}")
        return model

    def _find(self, run_id: str, name: str) -> Any:
        return next(iter(self._search(run_id, f"name = '{name}'")), None)

    def _search(self, run_id: str, condition: str) -> Sequence[Any]:
        experiment = self._client.get_run(run_id).info.experiment_id
        found: list[Any] = []
        token = None
        while True:
            page = self._client.search_logged_models(
                [experiment], f"source_run_id = '{run_id}' AND {condition}", page_token=token
            )
            found += page
            token = page.token
            if not token:
                return found


def metric_name(key: str) -> str:
    """A key of the characters that every MLflow takes."""
    return re.sub(r"[^\w\-./ ]", "_", key)[:250]


def model_name(name: str) -> str:
    """``name`` of the characters that MLflow takes in names of models."""
    return _BAD.sub("_", name)[:250]


def _describe(folder: Path, model: Any, entry: Entry) -> None:
    """Write what a model's artifacts are: its description, and the file by which MLflow knows what it is."""
    about = entry["about"]
    (folder / DESCRIPTION).write_text(json.dumps(about, indent=2, sort_keys=True), encoding="utf-8")
    facts = {
        "artifact_path": model.artifact_location,
        "flavors": {FLAVOR: {"checkpoint": about["path"], "description": DESCRIPTION, "config": CONFIG}},
        "model_id": model.model_id,
        "model_uuid": model.model_id,
        "run_id": model.source_run_id,
        "utc_time_created": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(entry["time"] / 1000)),
    }
    (folder / "MLmodel").write_text(yaml.safe_dump(facts, sort_keys=False), encoding="utf-8")
