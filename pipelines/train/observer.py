"""What rank 0 tells the world: metrics to a file and to MLflow, validation loss, sample videos."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import psutil
import torch

from kineograph.diffusion.text_to_video import TextToVideo
from kineograph.diffusion.validation import validation_losses
from kineograph.media.encode import contact_sheet, write_mp4
from kineograph.models.stdit import STDiT
from kineograph.models.vae import PatchPCA
from kineograph.store.commit import write_json, write_text
from kineograph.store.loader import Batch, ClipLoader
from kineograph.tracking import Tracker, default_uri
from pipelines.train.checkpoint import Average
from pipelines.train.config import TrainConfig
from pipelines.train.plan import StepPlan
from pipelines.train.setup import Dataset, checkpoint_config, model_shape

METRICS = "metrics.jsonl"
STATE = "train.json"


class Observer:
    """Records a run from ``step`` on. ``mlflow`` says where: {uri, run_id}."""

    def __init__(self, run: Path, config: TrainConfig, dataset: Dataset, step: int) -> None:
        self.run, self.config, self.dataset = run, config, dataset
        self._window: list[dict[str, float]] = []
        self._drop_metrics_after(step)
        uri = config.tracking.uri or default_uri(run)
        self.tracker = Tracker.start(
            uri,
            config.tracking.experiment,
            run.name,
            read_state(run).get("mlflow", {}).get("run_id"),
            run_dir=run,
        )
        self._write_state(step, "running")
        if step == 0:
            self.tracker.log_params(config.model_dump(mode="json"))
            self.tracker.log_dataset("training", dataset.manifest.digest, str(dataset.reader.run))
        shape = model_shape(config, dataset.manifest)
        self._model = STDiT(shape).eval()
        self.tracker.set_tags({"parameters": sum(p.numel() for p in self._model.parameters())})

    @property
    def mlflow(self) -> dict[str, Any]:
        return {"uri": self.tracker.uri, "run_id": self.tracker.run_id}

    def after_step(
        self, plan: StepPlan, batch: Batch, loss: float, gradient_norm: float, took_s: float, waited_s: float
    ) -> None:
        """Count one step; every tracking.log_every steps the means over them are written."""
        step = plan.step + 1
        kind = "image" if plan.bucket.is_image else "video"
        self._window.append({"loss": loss, f"loss_{kind}": loss, "gradient_norm": gradient_norm})
        rates = {
            "took_s": took_s,
            "waited_s": waited_s,
            "clips": len(plan.slots),
            "tokens": self._tokens(plan),
        }
        self._window[-1].update({f"_{k}": v for k, v in rates.items()})
        if step % self.config.tracking.log_every == 0 or step == self.config.steps:
            metrics = self._means()
            with open(self.run / METRICS, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **metrics}) + "\n")
            self.tracker.log_metrics(metrics, step)
            self._window.clear()

    def look_if_due(self, step: int, average: Average, vae: PatchPCA) -> None:
        """Validate and sample with the averaged weights where the recipe says so, and at the last step."""
        last = step == self.config.steps
        validate = self.dataset.validation and (step % self.config.validation.every == 0 or last)
        sample = self.config.samples.prompts and (step % self.config.samples.every == 0 or last)
        if validate or sample:
            self._model.load_state_dict(average.state())
        if validate:
            self._validate(step, vae)
        if sample:
            self._sample(step, vae)

    def saved(self, folder: Path) -> None:
        """A checkpoint stands."""
        self._write_state(int(folder.name.removeprefix("step-")), "running")
        self.tracker.set_tags({"checkpoint": str(folder)})

    def close(self, status: str) -> None:
        self.tracker.finish(status)
        self._write_state(self.config.steps if status == "FINISHED" else None, status.lower())

    def _validate(self, step: int, vae: PatchPCA) -> None:
        loader = ClipLoader(self.dataset.reader, cache_bytes=0, latents=self.dataset.from_latents)
        total = torch.zeros(len(self.config.validation.timesteps))
        count = 0
        for bucket in sorted({c.bucket for c in self.dataset.validation}):
            entries = [c for c in self.dataset.validation if c.bucket == bucket][: self.config.validation.clips]
            batch = loader.batch(entries)
            rows = validation_losses(
                self._model,
                batch.latents(vae.cpu()),
                batch.text,
                batch.text_mask,
                batch.fps,
                batch.size,
                [e.clip_id for e in entries],
                self.config.validation.timesteps,
            )
            total += rows.sum(0)
            count += len(rows)
        means = (total / count).tolist()
        metrics = {f"validation_loss_t{t:g}": m for t, m in zip(self.config.validation.timesteps, means, strict=True)}
        self.tracker.log_metrics({"validation_loss": sum(means) / len(means), **metrics}, step)

    def _sample(self, step: int, vae: PatchPCA) -> None:
        config = checkpoint_config(self.config, self.dataset, self.mlflow)
        prompts = list(self.config.samples.prompts)
        generator = TextToVideo(self.run, config, self._model, vae.cpu(), "cpu")
        videos = generator.generate(prompts, seeds=list(range(len(prompts))))
        folder = self.run / "samples" / f"step-{step:08d}"
        for number, video in enumerate(videos):
            path = folder / f"{number:02d}.mp4"
            write_mp4(path, video, config["fps"])
            self.tracker.log_file(path, f"samples/step-{step:08d}")
        self.tracker.log_image("samples", contact_sheet(list(videos), prompts), step)

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

    def _tokens(self, plan: StepPlan) -> int:
        strides, patch = (self.config.vae.temporal_stride, self.config.vae.stride), self.config.model.patch
        rows = -(-plan.bucket.height // (strides[1] * patch[1]))
        columns = -(-plan.bucket.width // (strides[1] * patch[2]))
        return len(plan.slots) * (1 + (plan.bucket.frames - 1) // strides[0]) * rows * columns

    def _drop_metrics_after(self, step: int) -> None:
        """Forget what a killed start logged beyond its last checkpoint: those steps are done again."""
        path = self.run / METRICS
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            write_text(path, "".join(kept))

    def _write_state(self, step: int | None, status: str) -> None:
        state = {**read_state(self.run), "status": status, "steps": self.config.steps, "mlflow": self.mlflow}
        if step is not None:
            state["step"] = step
        write_json(self.run / STATE, state)


def read_state(run: Path) -> dict[str, Any]:
    """train.json of a run; empty before it started."""
    path = run / STATE
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return state
