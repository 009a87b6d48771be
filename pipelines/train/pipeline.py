"""A training run from recipe to checkpoint: check, prepare, start the workers, follow them."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kineograph.config import dump_yaml
from kineograph.errors import Failure, UserError
from kineograph.progress import Progress, say
from kineograph.ray_session import start_ray
from kineograph.store.checkpoints import CHECKPOINTS, latest_checkpoint, read_config, step_of
from kineograph.store.commit import remove_leftovers, write_text
from kineograph.store.places import is_url
from pipelines.train.config import TrainConfig
from pipelines.train.costs import keep_costs, kept_costs
from pipelines.train.kinds.base import Kind, changed_since
from pipelines.train.observer import METRICS, close_for, read_state
from pipelines.train.plan.simulate import simulate
from pipelines.train.preflight import preflight, preflight_text
from pipelines.train.registry import open_kind
from pipelines.train.saving.fetch import prepare_upload

WORLDS = (8, 64, 512)
"""Numbers of ranks that --plan shows."""


def train(config: TrainConfig, data: str | Path | None, out: str | Path) -> dict[str, Any]:
    """Train on the curation run ``data`` (else the recipe's) into ``out``, from its last checkpoint if it has one.

    Returns where the checkpoint and the MLflow run are. Raises UserError when the request is wrong, Failure when the
    work failed, Stopped when it was asked to stop; checkpoints are kept in any case.
    """
    run = Path(out).resolve()
    check_run_directory(run)
    prepare_upload(run, config.checkpoint)
    kind = open_kind(config, dataset_place(config, data), run)
    done = check_resume(kind)
    if done >= config.steps:
        say(preflight_text(preflight(kind)))
        say(f"{run} has its {config.steps} steps already; give more with --set steps=N")
        close_for(kind, "FINISHED")
        return result(kind)
    kind.check()
    run.mkdir(parents=True, exist_ok=True)
    remove_leftovers(run)
    write_text(run / "recipe.yaml", dump_yaml(kind.config))
    if not done:
        kind.prepare()
    kind = _with_costs(kind)
    facts = preflight(kind)
    say(preflight_text(facts))
    write_text(run / "plan.json", json.dumps(facts, indent=2))
    _run(kind, done)
    return result(kind)


def plan(
    config: TrainConfig, data: str | Path | None, out: str | Path, worlds: Sequence[int] | None = (), steps: int = 1000
) -> dict[str, Any]:
    """What :func:`train` would train, in numbers, and how ``steps`` steps would be dealt to numbers of ranks, ``worlds``;
    None: to 8, 64 and 512, as far as a step has clips for them.

    Raises UserError as it would; writes nothing.
    """
    run = Path(out).resolve()
    kind = open_kind(config, dataset_place(config, data), run)
    facts = preflight(kind)
    if worlds is None:
        copies = config.workers.sequence_parallel
        fit = [ranks for ranks in WORLDS if ranks % copies == 0 and ranks // copies <= facts["clips_per_step"]]
        worlds = fit or [config.workers.count]
    if worlds:
        facts["balance"] = [simulation(kind, ranks, steps) for ranks in worlds]
    return facts


def simulation(kind: Kind[Any], ranks: int, steps: int) -> dict[str, Any]:
    """How the first ``steps`` steps would be dealt to ``ranks``. Raises UserError where they have too few clips, or are no
    multiple of workers.sequence_parallel."""
    costs, tokens = kind.costs, {bucket: kind.tokens(bucket) for bucket in kind.plan.buckets}
    copies = kind.config.workers.sequence_parallel
    if ranks % copies:
        raise UserError(f"--ranks {ranks} is no multiple of workers.sequence_parallel {copies}")
    replicas = ranks // copies
    return {
        **simulate(kind.plan, costs.model, replicas, steps, costs.most, kind.needs_all_ranks, tokens),
        "ranks": ranks,
    }


def _with_costs(kind: Kind[Any]) -> Kind[Any]:
    """The kind with the costs that its run keeps, which are measured now if the recipe wants that."""
    if kept_costs(kind.run) is None:
        if kind.config.costs.source == "measured":
            from pipelines.train.measuring import measure_worker
            from pipelines.train.ray_trainer import run_once

            say("measuring what clips take")
            start_ray()
            run_once(measure_worker, _job(kind), kind.config.workers)
        else:
            keep_costs(kind.run, kind.costs.model, kind.costs.source)
    return open_kind(kind.config, kind.reader.run, kind.run)


def _job(kind: Kind[Any]) -> dict[str, Any]:
    """What a worker is told."""
    return {
        "config": kind.config.model_dump(mode="json"),
        "run": str(kind.run),
        "data": str(kind.reader.run),
    }


def dataset_place(config: TrainConfig, data: str | Path | None) -> str:
    """The curation run to train on, a folder or a URL. Raises UserError when neither the caller nor the recipe names
    one."""
    source = data or config.data.run
    if source is None:
        raise UserError("no dataset: give --data RUN, or 'data.run:' in the recipe")
    return str(source) if is_url(source) else str(Path(source).resolve())


def check_run_directory(run: Path) -> None:
    """Raise UserError when ``run`` holds something that is not a training run."""
    ours = (run / "train.json").is_file() or (run / "plan.json").is_file() or (run / CHECKPOINTS).is_dir()
    if run.exists() and not run.is_dir():
        raise UserError(f"--out {run} is a file: give a directory")
    if run.is_dir() and any(run.iterdir()) and not ours:
        raise UserError(f"--out {run} holds something else than a training run: give a new or empty directory")


def check_resume(kind: Kind[Any]) -> int:
    """Steps that an earlier start has done. Raises UserError when it trained something else."""
    folder = latest_checkpoint(kind.run)
    if folder is None:
        return 0
    change = changed_since(read_config(folder), kind)
    if change:
        raise UserError(f"{kind.run} cannot go on from step {step_of(folder)}: {change}; give another --out")
    return step_of(folder)


def result(kind: Kind[Any]) -> dict[str, Any]:
    """What a finished run made."""
    made = kind.finish()
    folder = latest_checkpoint(kind.run)
    facts = {"run": str(kind.run), "kind": kind.config.kind, "checkpoint": str(folder) if folder else None}
    return {**facts, **read_state(kind.run), **made, "advice": kind.advice()}


def _run(kind: Kind[Any], done: int) -> None:
    from pipelines.train.ray_trainer import run_workers

    workers = kind.config.workers
    many = f"{workers.count}" if workers.fewest == workers.count else f"{workers.fewest} to {workers.count}"
    say(f"starting {many} workers" + (f" at step {done}" if done else ""))
    start_ray()
    stop = threading.Event()
    follower = threading.Thread(target=_follow, args=(kind, done, stop), daemon=True)
    follower.start()
    try:
        run_workers(_job(kind), workers, kind.run, done)
    except Failure:
        close_for(kind, "FAILED")  # rank 0 may have been ended with the others
        raise
    finally:
        stop.set()
        follower.join()


def _follow(kind: Kind[Any], done: int, stop: threading.Event) -> None:
    """Show the steps that rank 0 writes down as they come."""
    progress: Progress | None = None
    old = _last_line(kind.run / METRICS)  # perhaps of a step that is to be done again
    while not stop.wait(0.5) or progress is not None:
        last = _last_line(kind.run / METRICS)
        if last is not None and last != old and last["step"] > done:
            if progress is None:  # the clock starts with the first steps, not with the start of the workers
                progress = Progress("training", kind.config.steps, "steps", done=last["step"])
            known = {**read_state(kind.run).get("validation", {}), **last}
            progress.update(last["step"] - progress.done, progress_note(kind.headline, known))
        if stop.is_set():
            break
    if progress is not None:
        progress.__exit__()


def progress_note(headline: tuple[str, ...], metrics: dict[str, float]) -> str:
    """The metrics that matter for a kind, and how fast it goes."""
    shown = [f"{name} {metrics[name]:.4g}" for name in headline if name in metrics]
    skipped = [f"skipped {metrics['skipped_steps']:.0f}"] if metrics.get("skipped_steps") else []
    rates = [
        f"{metrics['clips_per_s']:.0f} clips/s",
        f"MFU {metrics['mfu']:.0%}",
        f"wait {metrics['data_wait_share']:.0%}",
    ]
    return "  ".join([*shown, *rates, *skipped])


def _last_line(path: Path) -> dict[str, Any] | None:
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 4096))
            lines = file.read().split(b"\n")[:-1]
        return json.loads(lines[-1]) if lines else None
    except (OSError, ValueError):
        return None
