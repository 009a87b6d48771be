"""What rank 0 tells the world: metrics to a file and to MLflow, and what is found by looking at the averaged model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import psutil

from kineograph.store.checkpoints import step_of
from kineograph.store.commit import write_json, write_text
from kineograph.tracking import Tracker, default_uri
from pipelines.train.checkpoint import Average
from pipelines.train.kinds.base import Kind
from pipelines.train.plan import StepPlan

METRICS = "metrics.jsonl"
STATE = "train.json"


class Observer:
    """Records a run from ``step`` on. ``mlflow`` says where: {uri, run_id}."""

    def __init__(self, kind: Kind[Any], step: int) -> None:
        self.run, self.config, self.kind = kind.run, kind.config, kind
        self._window: list[dict[str, float]] = []
        self._drop_metrics_after(step)
        self.tracker = Tracker.start(
            self.config.tracking.uri or default_uri(self.run),
            self.config.tracking.experiment,
            self.run.name,
            read_state(self.run).get("mlflow", {}).get("run_id"),
            run_dir=self.run,
        )
        self._write_state("running", step=step)
        if step == 0:
            self.tracker.log_params(self.config.model_dump(mode="json"))
            dataset = kind.dataset
            self.tracker.log_dataset("training", dataset.manifest.digest, str(dataset.reader.run))
        self._model = kind.build().eval()
        self.tracker.set_tags(
            {"kind": self.config.kind, "parameters": sum(p.numel() for p in self._model.parameters())}
        )

    @property
    def mlflow(self) -> dict[str, Any]:
        return {"uri": self.tracker.uri, "run_id": self.tracker.run_id}

    def after_step(self, plan: StepPlan, metrics: dict[str, float], took_s: float, waited_s: float) -> None:
        """Count one step; every tracking.log_every steps the means over them are written."""
        step = plan.step + 1
        media = "image" if plan.bucket.is_image else "video"
        rates = {
            "took_s": took_s,
            "waited_s": waited_s,
            "clips": len(plan.slots),
            "tokens": self.kind.tokens(plan),
        }
        self._window.append({**metrics, f"loss_{media}": metrics["loss"], **{f"_{k}": v for k, v in rates.items()}})
        if step % self.config.tracking.log_every == 0 or step == self.config.steps:
            means = self._means()
            with open(self.run / METRICS, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **means}) + "\n")
            self.tracker.log_metrics(means, step)
            self._window.clear()

    def look_if_due(self, step: int, average: Average) -> None:
        """Look at the averaged model where the kind says so: validate, sample."""
        looks = self.kind.looks(step)
        if not looks:
            return
        self._model.load_state_dict(average.state())
        self._model.to(self.kind.device)
        for look in looks:
            found = look(self._model)
            if found.metrics:
                self.tracker.log_metrics(found.metrics, step)
                self._write_state("running", validation={"step": step, **found.metrics})
            for path in found.files:
                self.tracker.log_file(path, path.parent.relative_to(self.run).as_posix())
            for name, image in found.images.items():
                self.tracker.log_image(name, image, step)
        self._model.cpu()

    def saved(self, folder: Path) -> None:
        """A checkpoint stands."""
        self._write_state("running", step=step_of(folder))
        self.tracker.set_tags({"checkpoint": str(folder)})

    def close(self, status: str) -> None:
        self.tracker.finish(status)
        self._write_state(status.lower(), **({"step": self.config.steps} if status == "FINISHED" else {}))

    def _means(self) -> dict[str, float]:
        names = dict.fromkeys(n for row in self._window for n in row)
        sums = {n: [row[n] for row in self._window if n in row] for n in names}
        took = sum(sums["_took_s"])
        means = {n: sum(v) / len(v) for n, v in sums.items() if not n.startswith("_")}
        return {
            **means,
            "clips_per_s": sum(sums["_clips"]) / took,
            "tokens_per_s": sum(sums["_tokens"]) / took,
            "step_s": took / len(self._window),
            "data_wait_share": sum(sums["_waited_s"]) / took,
            "memory_gib": psutil.Process(os.getpid()).memory_info().rss / 2**30,
        }

    def _drop_metrics_after(self, step: int) -> None:
        """Forget what a killed start logged beyond its last checkpoint: those steps are done again."""
        path = self.run / METRICS
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            write_text(path, "".join(kept))

    def _write_state(self, status: str, **facts: Any) -> None:
        state = {"status": status, "steps": self.config.steps, "mlflow": self.mlflow, **facts}
        write_state(self.run, state)


def read_state(run: Path) -> dict[str, Any]:
    """train.json of a run; empty before it started."""
    path = run / STATE
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return state


def write_state(run: Path, facts: dict[str, Any]) -> None:
    """Set ``facts`` in train.json of a run."""
    write_json(run / STATE, {**read_state(run), **facts})
