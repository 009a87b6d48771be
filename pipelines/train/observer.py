"""What rank 0 tells the world: metrics to a file and to MLflow, and what is found by looking at the averaged model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kineograph.models.execution import recompute_factor
from kineograph.models.flops import peak_flops
from kineograph.progress import say
from kineograph.store.checkpoints import step_of
from kineograph.store.commit import write_json, write_text
from kineograph.tracking import SPOOL_NAME, Tracker, default_uri
from pipelines.train.kinds.base import Findings, Kind
from pipelines.train.system import system_metrics

METRICS = "metrics.jsonl"
STATE = "train.json"


@dataclass(frozen=True)
class StepFacts:
    """One step, over all ranks."""

    step: int
    """Steps done, this one among them."""
    means: dict[str, float]
    """Of the loss, its parts and what the kind tells."""
    clips: int
    fingerprint: str
    """Of which clips they were (Totals.clips)."""
    left_out: int
    """Of them, since they are damaged."""
    tokens: int
    flops: float
    gradient_norm: float
    lr: float
    is_skipped: bool
    """Whether the gradient was not finite, and nothing was learned."""
    balance: dict[str, float]
    """Modelled time of the slowest rank over the mean of all, less 1: of the step, and where ranks wait in every round."""
    took_s: float
    waited_s: float
    """Of them for data, on rank 0."""


class Observer:
    """Records a run from ``step`` on. ``mlflow`` says where: {uri, run_id}."""

    def __init__(self, kind: Kind[Any], step: int, world: int) -> None:
        self.run, self.config, self.kind = kind.run, kind.config, kind
        self._window: list[StepFacts] = []
        self._skipped, self._left_out = 0, 0
        device = kind.device
        self._peak = world * peak_flops(device, self.config.precision)
        self._recompute = recompute_factor(self.config.execution)
        self._drop_metrics_after(step)
        self.tracker = _start_tracker(kind)
        starts = read_state(self.run).get("starts", 0) + 1
        self.write(status="running", step=step, starts=starts, workers=world)
        if step == 0:
            self.tracker.log_params(self.config.model_dump(mode="json"))
            dataset = kind.dataset
            self.tracker.log_dataset("training", dataset.manifest.digest, str(dataset.reader.run))
        self.tracker.log_metrics({"workers": world, "starts": starts}, step)

    @property
    def mlflow(self) -> dict[str, Any]:
        return _place(self.run, self.tracker)

    def after_step(self, facts: StepFacts) -> None:
        """Count one step; every tracking.log_every steps the means over them are written."""
        self._window.append(facts)
        self._skipped += facts.is_skipped
        self._left_out += facts.left_out
        if facts.is_skipped:
            say(f"step {facts.step} is skipped: its gradient is not finite")
        if facts.step % self.config.tracking.log_every == 0 or facts.step == self.config.steps:
            means = self._means()
            with open(self.run / METRICS, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": facts.step, "clips": facts.fingerprint, **means}) + "\n")
            self.tracker.log_metrics({**means, **system_metrics(self.run, self.kind.device)}, facts.step)
            self._window.clear()

    def looked(self, found: Findings, step: int) -> None:
        """A look at the averaged model after ``step`` steps found something."""
        if found.metrics:
            self.tracker.log_metrics(found.metrics, step)
            self.write(validation={"step": step, **found.metrics})
        for path in found.files:
            self.tracker.log_file(path, path.parent.relative_to(self.run).as_posix())
        for name, image in found.images.items():
            self.tracker.log_image(name, image, step)

    def saved(self, folder: Path) -> None:
        """A checkpoint stands."""
        self.tracker.set_tags({"checkpoint": str(folder), "checkpoint.step": step_of(folder)})

    def close(self, status: str, step: int) -> None:
        """The end: FINISHED, FAILED or KILLED after ``step`` steps."""
        self.tracker.finish(status)
        self.write(status=status.lower(), step=step)

    def write(self, **facts: Any) -> None:
        """Set facts in train.json."""
        write_state(self.run, {"steps": self.config.steps, "mlflow": self.mlflow, **facts})

    def _means(self) -> dict[str, float]:
        """Over the window: of what a step has, the mean over the steps that have it."""
        window = self._window
        numbers = [{**f.means, "gradient_norm": f.gradient_norm, **f.balance} for f in window]
        names = dict.fromkeys(n for row in numbers for n in row)
        kept = {n: [row[n] for row in numbers if n in row] for n in names}
        took = sum(f.took_s for f in window)
        mfu = sum(f.flops for f in window) / took / self._peak
        return {
            **{n: sum(values) / len(values) for n, values in kept.items()},
            "learning_rate": window[-1].lr,
            "clips_per_s": sum(f.clips for f in window) / took,
            "tokens": sum(f.tokens for f in window) / len(window),
            "tokens_per_s": sum(f.tokens for f in window) / took,
            "step_s": took / len(window),
            "data_wait_share": sum(f.waited_s for f in window) / took,
            "mfu": mfu,
            "hfu": mfu * self._recompute,
            "skipped_steps": self._skipped,
            "damaged_clips": self._left_out,
        }

    def _drop_metrics_after(self, step: int) -> None:
        """Forget what a killed start logged beyond its last checkpoint: those steps are done again. What it counted up to
        there is counted on."""
        path = self.run / METRICS
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            write_text(path, "".join(kept))
            if kept:
                last = json.loads(kept[-1])
                self._skipped, self._left_out = last["skipped_steps"], last["damaged_clips"]


def close_for(kind: Kind[Any], status: str) -> None:
    """Tell how a run ended, where rank 0 could not, and send MLflow what it missed."""
    if read_state(kind.run).get("status") == "running" or (kind.run / SPOOL_NAME).is_file():
        tracker = _start_tracker(kind)
        tracker.finish(status)
        write_state(kind.run, {"status": status.lower(), "mlflow": _place(kind.run, tracker)})


def _start_tracker(kind: Kind[Any]) -> Tracker:
    tracking, known = kind.config.tracking, read_state(kind.run).get("mlflow", {})
    uri = tracking.uri or default_uri(kind.run)
    return Tracker.start(uri, tracking.experiment, kind.run.name, known.get("run_id"), run_dir=kind.run)


def _place(run: Path, tracker: Tracker) -> dict[str, Any]:
    """Where a run is in MLflow: as far as is known, while it does not answer."""
    return {"uri": tracker.uri, "run_id": tracker.run_id or read_state(run).get("mlflow", {}).get("run_id")}


def read_state(run: Path) -> dict[str, Any]:
    """train.json of a run; empty before it started."""
    path = run / STATE
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return state


def write_state(run: Path, facts: dict[str, Any]) -> None:
    """Set ``facts`` in train.json of a run."""
    write_json(run / STATE, {**read_state(run), **facts})
