"""A training run from recipe to checkpoint: check, prepare, start the workers, follow them."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from kineograph.config import digest, dump_yaml
from kineograph.errors import UserError
from kineograph.progress import Progress, say
from kineograph.ray_session import start_ray
from kineograph.store.checkpoints import CHECKPOINTS, latest_checkpoint, step_of
from kineograph.store.commit import remove_leftovers, write_text
from pipelines.train.config import TrainConfig
from pipelines.train.observer import METRICS, read_state
from pipelines.train.preflight import preflight, preflight_text
from pipelines.train.setup import Dataset, changed_since, open_dataset, prepare_components, take_autoencoder


def train(config: TrainConfig, data: str | Path | None, out: str | Path) -> dict[str, Any]:
    """Train on the curation run ``data`` (else the recipe's) into ``out``, from its last checkpoint if it has one.

    Returns where the checkpoint and the MLflow run are. Raises UserError when the request is wrong, Failure when the
    work failed; checkpoints are kept either way.
    """
    source = data or config.data.run
    if source is None:
        raise UserError("no dataset: give --data RUN, or 'data.run:' in the recipe")
    run, source = Path(out).resolve(), Path(source).resolve()
    check_run_directory(run)
    dataset = open_dataset(config, source)
    done = check_resume(run, config, dataset)
    facts = preflight(config, dataset)
    say(preflight_text(facts))
    if done >= config.steps:
        say(f"{run} has its {config.steps} steps already; give more with --set steps=N")
        return result(run)
    run.mkdir(parents=True, exist_ok=True)
    remove_leftovers(run)
    write_text(run / "recipe.yaml", dump_yaml(config))
    write_text(run / "plan.json", json.dumps(facts, indent=2))
    if dataset.from_latents:
        take_autoencoder(run, dataset)
    elif not (run / "vae.safetensors").is_file():
        kept = prepare_components(run, config, dataset)
        say(f"autoencoder fitted: {config.vae.channels} channels keep {kept:.1%} of the pixels' variance")
    dataset.reader.close()
    _run(config, run, source, done)
    return result(run)


def check_run_directory(run: Path) -> None:
    """Raise UserError when ``run`` holds something that is not a training run."""
    ours = (run / "train.json").is_file() or (run / "plan.json").is_file() or (run / CHECKPOINTS).is_dir()
    if run.exists() and not run.is_dir():
        raise UserError(f"--out {run} is a file: give a directory")
    if run.is_dir() and any(run.iterdir()) and not ours:
        raise UserError(f"--out {run} holds something else than a training run: give a new or empty directory")


def check_resume(run: Path, config: TrainConfig, dataset: Dataset) -> int:
    """Steps that an earlier start has done. Raises UserError when it trained something else."""
    folder = latest_checkpoint(run)
    if folder is None:
        return 0
    change = changed_since(folder, config, dataset)
    if change:
        raise UserError(f"{run} cannot go on from step {step_of(folder)}: {change}; give another --out")
    return step_of(folder)


def result(run: Path) -> dict[str, Any]:
    """What a finished run made."""
    folder = latest_checkpoint(run)
    return {"run": str(run), "checkpoint": str(folder) if folder else None, **read_state(run)}


def _run(config: TrainConfig, run: Path, data: Path, done: int) -> None:
    from pipelines.train.ray_trainer import run_workers

    say(f"starting {config.workers.count} workers" + (f" at step {done}" if done else ""))
    start_ray()
    job = {"config": config.model_dump(mode="json"), "run": str(run), "data": str(data)}
    stop = threading.Event()
    follower = threading.Thread(target=_follow, args=(run, config.steps, done, stop), daemon=True)
    follower.start()
    try:
        run_workers({**job, "digest": digest(config)}, config.workers, run)
    finally:
        stop.set()
        follower.join()


def _follow(run: Path, steps: int, done: int, stop: threading.Event) -> None:
    """Show the steps that rank 0 writes down as they come."""
    path = run / METRICS
    progress: Progress | None = None
    while not stop.wait(0.5) or progress is not None:
        last = _last_line(path)
        if last is not None and last["step"] > done:
            if progress is None:  # the clock starts with the first steps, not with the start of the workers
                progress = Progress("training", steps, "steps", done=last["step"])
            note = f"loss {last['loss']:.4f}  {last['clips_per_s']:.0f} clips/s  wait {last['data_wait_share']:.0%}"
            progress.update(last["step"] - progress.done, note)
        if stop.is_set():
            break
    if progress is not None:
        progress.__exit__()


def _last_line(path: Path) -> dict[str, Any] | None:
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 4096))
            lines = file.read().split(b"\n")[:-1]
        return json.loads(lines[-1]) if lines else None
    except (OSError, ValueError):
        return None
