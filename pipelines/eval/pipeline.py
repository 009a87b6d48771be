"""An evaluation from its first line to its last: sample, grade, write, attach to the run, hold to the
gate."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kineograph.config import digest, dump_yaml
from kineograph.diffusion.text_to_video import TextToVideo
from kineograph.errors import Failure, GateError, UserError
from kineograph.media.geometry import Bucket
from kineograph.models.vae import fingerprint
from kineograph.progress import Progress, say
from kineograph.store.checkpoints import DIGESTS, resolve_checkpoint, step_of
from kineograph.store.commit import write_bytes, write_json, write_text
from kineograph.store.loader import ClipLoader
from kineograph.store.manifest import SUCCESS_NAME
from kineograph.store.shards import ShardReader
from kineograph.store.split import held_out_clips
from kineograph.synth.oracle import expected
from kineograph.tracking import log_scores
from pipelines.eval.config import EvalConfig
from pipelines.eval.gate import judge, missed
from pipelines.eval.grade import (
    Grade,
    Score,
    accuracy_scores,
    flicker_score,
    flow_loss_score,
    flow_losses,
    oracle_grades,
)
from pipelines.eval.prompts import Prompt, choose_prompts, grid_prompts
from pipelines.eval.report import REPORT_NAME, write_pictures, write_report
from pipelines.eval.truth import render_truth

METRICS_NAME = "metrics.json"
METRICS_VERSION = 1


@dataclass
class Evaluation:
    """What an evaluation finds, as it is found."""

    config: EvalConfig
    samples: list[Prompt]
    videos: np.ndarray
    """uint8 (N, T, H, W, 3)."""
    fps: float
    grades: list[Grade] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was not measured, and why; what a reader must know."""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def bucket(self) -> Bucket:
        frames, height, width = self.videos.shape[1:4]
        return Bucket(height, width, frames)


def evaluate(
    config: EvalConfig, checkpoint: str | Path, data: str | Path | None = None, out: str | Path | None = None
) -> dict[str, Any]:
    """As :func:`grade_checkpoint`, then :func:`hold_to_gate`."""
    facts = grade_checkpoint(config, checkpoint, data, out)
    hold_to_gate(facts)
    return facts


def hold_to_gate(facts: dict[str, Any]) -> None:
    """Raise GateError, one line, when a condition of the recipe's gate does not hold."""
    if short := missed(facts["gate"]["conditions"]):
        name = Path(facts["checkpoint"]["path"]).name
        report = Path(facts["out"]) / REPORT_NAME
        raise GateError(f"checkpoint {name} misses the gate: {'; '.join(short)}; see {report}")


def grade_checkpoint(
    config: EvalConfig, checkpoint: str | Path, data: str | Path | None = None, out: str | Path | None = None
) -> dict[str, Any]:
    """Grade a checkpoint folder, or the newest of a training run, and attach the scores to its MLflow run.

    ``data`` is the curation run for the validation loss. ``out`` is by default RUN/eval/step-XXXXXXXX beside
    the checkpoint's run. Returns what metrics.json holds, with ``out`` and ``mlflow``. Raises UserError for
    what is asked wrongly, before anything is sampled.
    """
    began = time.monotonic()
    folder = resolve_checkpoint(checkpoint)
    out = Path(out) if out is not None else folder.parents[1] / "eval" / folder.name
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: give a directory with --out")
    generator = TextToVideo.load(folder, device="cuda" if torch.cuda.is_available() else "cpu")
    reader = _open_data(data, generator) if data is not None else None
    (out / SUCCESS_NAME).unlink(missing_ok=True)
    found = _sample(config, generator)
    _grade(found)
    _validate(found, generator, reader)
    metrics = {
        **_facts(found, generator, folder),
        "digests": {
            "checkpoint": digest(json.loads((folder / DIGESTS).read_text(encoding="utf-8"))),
            "recipe": config.recipe_digest,
            "data": reader.manifest.digest if reader else None,
            "training_data": generator.config.get("manifest_digest"),
            "training_recipe": generator.config.get("recipe_digest"),
        },
        "wall_s": round(time.monotonic() - began, 1),
    }
    files = _write(out, found, metrics)
    return {**metrics, "out": str(out), "mlflow": _attach(metrics, generator.config.get("mlflow"), files)}


def _facts(found: Evaluation, generator: TextToVideo, folder: Path) -> dict[str, Any]:
    """What was found, as metrics.json holds it."""
    conditions = judge(found.config.gate, found.scores)
    return {
        "version": METRICS_VERSION,
        "metrics": found.scores,
        "confidence": found.config.confidence.model_dump(),
        "gate": {"passed": not missed(conditions), "conditions": conditions},
        "notes": found.notes,
        "checkpoint": {
            "path": str(folder.resolve()),
            "step": step_of(folder),
            "epoch": generator.config.get("epoch"),
            "weights": "ema",
        },
        "sampling": found.details["sampling"],
        "validation_loss_by_timestep": found.details.get("by_timestep"),
        "samples": [{"prompt": p.text, "seed": p.seed, **g} for p, g in zip(found.samples, found.grades, strict=True)],
    }


def _open_data(data: str | Path, generator: TextToVideo) -> ShardReader:
    """The curation run, when the checkpoint can read it. Raises UserError when it cannot."""
    reader = ShardReader(data)
    made_by, wanted = reader.manifest.text_encoder.name, generator.config["text_encoder"]["name"]
    if made_by != wanted:
        raise UserError(f"{data} has captions encoded by {made_by}, the checkpoint knows those of {wanted}")
    frames, rows, columns = generator.vae.strides
    for bucket in reader.manifest.buckets:
        if bucket.height % rows or bucket.width % columns or (bucket.frames - 1) % frames:
            raise UserError(
                f"the checkpoint's autoencoder cannot encode {bucket.name} of {data}: sides must be multiples of "
                f"{rows} and {columns}, frames 1 + a multiple of {frames}"
            )
    return reader


def _sample(config: EvalConfig, generator: TextToVideo) -> Evaluation:
    """Sample the prompts, aloud."""
    samples = choose_prompts(config.videos, config.seed, config.prompts)
    steps = config.steps or generator.sampling.steps
    guidance_scale = config.guidance_scale or generator.sampling.guidance.scale
    fps = config.fps or generator.fps
    with Progress("sampling", len(samples), "videos") as progress:
        videos = generator.generate(
            [prompt.text for prompt in samples],
            [prompt.seed for prompt in samples],
            bucket=Bucket.parse(config.bucket) if config.bucket else None,
            fps=fps,
            steps=steps,
            guidance_scale=guidance_scale,
            batch_size=config.batch_size,
            on_progress=progress.update,
        )
    found = Evaluation(config, samples, videos, fps)
    found.details["sampling"] = {
        "bucket": found.bucket.name,
        "fps": fps,
        "steps": steps,
        "guidance_scale": guidance_scale,
    }
    return found


def _grade(found: Evaluation) -> None:
    """Grade the samples by the oracle, and the oracle by rendered truth of the same prompts' kind and
    size."""
    config = found.config
    texts = [p.text for p in found.samples]
    found.grades = oracle_grades(found.videos, texts)
    found.scores += accuracy_scores(found.grades, config.confidence, config.seed)
    found.scores += flicker_score(found.videos, config.confidence, config.seed)
    known = [text for text in texts if expected(text)]
    if unknown := len(texts) - len(known):
        found.notes.append(f"the oracle knows nothing of {unknown} of the {len(texts)} prompts")
    if not known:
        return
    count = config.oracle_scenes
    if config.prompts:
        truths = [known[i % len(known)] for i in range(count)]
    else:
        truths = grid_prompts(count, config.seed + 1)
    rendered = list(render_truth(truths, config.seed, found.bucket, found.fps))
    grades = oracle_grades(rendered, truths)
    found.scores += accuracy_scores(grades, config.confidence, config.seed, prefix="oracle_")
    found.scores += flicker_score(rendered, config.confidence, config.seed, name="oracle_flicker")


def _validate(found: Evaluation, generator: TextToVideo, reader: ShardReader | None) -> None:
    """Add the flow loss on clips held out of training, or a note that says why there is none."""
    config = found.config
    if reader is None or not config.validation.clips:
        reason = "no --data was given" if reader is None else "validation.clips is 0"
        found.notes.append(f"no validation loss: {reason}")
        return
    if reader.manifest.digest != generator.config.get("manifest_digest"):
        found.notes.append("the validation loss is on another dataset version than the one trained on")
    held_out = held_out_clips(reader, float(generator.config["validation_share"]), config.validation.clips)
    clips = [clip for some in held_out.values() for clip in some]
    if not clips:
        found.notes.append("no validation loss: the dataset holds no clip out of training")
        return
    made = reader.manifest.autoencoder
    latents = made is not None and made.digest == fingerprint(generator.vae)
    if not latents and not reader.manifest.video:
        found.notes.append("no validation loss: the dataset holds latents of another autoencoder, and no videos")
        return
    loader = ClipLoader(reader, cache_bytes=0, latents=latents)
    losses = flow_losses(generator.process, generator.model, generator.vae, loader, clips, config.validation.timesteps)
    found.scores.append(flow_loss_score(losses, config.confidence, config.seed))
    found.details["by_timestep"] = {
        f"{timestep:g}": float(mean)
        for timestep, mean in zip(config.validation.timesteps, losses.mean(axis=0), strict=True)
    }


def _write(out: Path, found: Evaluation, metrics: dict[str, Any]) -> list[tuple[Path, str]]:
    """Write the run directory, its marker last; returns the files for MLflow with their folders there."""
    write_text(out / "recipe.yaml", dump_yaml(found.config))
    samples = metrics["samples"]
    sheets, videos = write_pictures(out, found.config.report, samples, found.videos, found.fps or 1.0)
    for sample, path in zip(samples, videos, strict=False):
        sample["video"] = path.relative_to(out).as_posix()
    write_json(out / METRICS_NAME, metrics)
    write_report(out, metrics, sheets)
    write_bytes(out / SUCCESS_NAME, b"")
    top = [(out / REPORT_NAME, ""), (out / METRICS_NAME, "")]
    return top + [(p, "sheets") for p in sheets] + [(p, "videos") for p in videos]


def _attach(metrics: dict[str, Any], run: dict[str, str] | None, files: list[tuple[Path, str]]) -> dict[str, Any]:
    """Put scores and files into the checkpoint's MLflow run. A line says when that fails."""
    if not run or not run.get("run_id"):
        say("the checkpoint knows no MLflow run: the scores are in the run directory alone")
        return {"attached": False}
    step = metrics["checkpoint"]["step"]
    values = {}
    for entry in metrics["metrics"]:
        values[f"eval/{entry['name']}"] = entry["value"]
        values[f"eval/{entry['name']}_ci_low"] = entry["ci_low"]
        values[f"eval/{entry['name']}_ci_high"] = entry["ci_high"]
    folder = f"eval/step-{step:08d}"
    placed = [(path, f"{folder}/{under}".rstrip("/")) for path, under in files]
    tags = {f"eval.digest.{name}": value for name, value in metrics["digests"].items() if value}
    tags["eval.gate"] = "passed" if metrics["gate"]["passed"] else "missed"
    try:
        log_scores(run["uri"], run["run_id"], values, step, placed, tags)
    except Failure as error:
        say(str(error))
        return {"attached": False, "uri": run["uri"], "run_id": run["run_id"]}
    return {"attached": True, "uri": run["uri"], "run_id": run["run_id"], "step": step}
