"""Training one of whose two workers is killed every 20 s for 3 minutes takes the steps of a run that nobody disturbed."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from tests.pipelines.train.conftest import Training

EVERY_S, KILLS = 20.0, 9
VIDEOS, SEED = 30, 7
CURATION = """
clips: {min_seconds: 1.125, max_seconds: 1.5}
buckets: {sizes: [32x32x1, 32x32x9, 24x40x9], fps: 8.0}
workers: 2
"""
RECIPE = """
model: {width: 64, depth: 4, heads: 4}
vae: {channels: 8, fit_clips: 32}
batch: {videos: 6, images: 6, packs: 2}
optimizer: {lr: 1.0e-3, warmup_steps: 5}
validation: {every: 1000000, timesteps: [0.5]}
samples: {prompts: []}
checkpoint: {every: 10, keep: 2}
workers: {count: 2, cpus: 1, max_failures: -1}
deepspeed: {zero_stage: 2}
tracking: {log_every: 1}
"""
TIMED_STEPS, LONGEST_S = 40, 170.0
"""Of all steps without a kill: between two of them workers need seconds to start, so nine come before the end."""
EXACT = ("step", "loss", "gradient_norm", "clips")
PATIENCE_S = 1800.0


def measure(keep: str | None = None) -> dict[str, Any]:
    """Train in peace, then with kills. ``keep``: a folder for both runs."""
    with TemporaryDirectory() as temporary:
        folder = Path(keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        data = make_data(folder)
        (folder / "train.yaml").write_text(RECIPE)
        with _train(folder, data, "timed", TIMED_STEPS) as timed:
            _finish(timed)
        took = sorted(row["step_s"] for row in rows(folder / "timed"))
        steps = math.ceil(LONGEST_S / took[len(took) // 2])
        with _train(folder, data, "calm", steps) as calm:
            _finish(calm)
        with _train(folder, data, "killed", steps) as training:
            killed_after, lasted_s = kill_workers(training)
            _finish(training)
        return result(folder, steps, killed_after, lasted_s)


def make_data(folder: Path) -> Path:
    """A curated synthetic corpus of images and videos."""
    from kineograph.synth.corpus import write_corpus
    from kineograph.synth.plan import SynthConfig

    data = folder / "data"
    if not (data / "_SUCCESS").is_file():
        write_corpus(folder / "raw", SynthConfig(seed=SEED, videos=VIDEOS, max_side=256, images=0.3), progress=False)
        (folder / "data.yaml").write_text(CURATION)
        command = ["data", "run", folder / "data.yaml", "--input", folder / "raw", "--out", data]
        arguments = [sys.executable, "-m", "kineograph.cli.main", *map(str, command)]
        subprocess.run(arguments, check=True, capture_output=True)
    return data


def kill_workers(training: Training) -> tuple[list[int], float]:
    """SIGKILL one worker or the other every EVERY_S seconds from the first step on: the last step that was logged before
    each kill, and how long it went on."""
    rng = random.Random(SEED)
    training.wait_for(lambda: rows(training.run), "a first step", PATIENCE_S)
    began, killed_after = time.monotonic(), list[int]()
    for number in range(1, KILLS + 1):
        while time.monotonic() < began + number * EVERY_S and training.process.poll() is None:
            time.sleep(0.05)
        workers = list[psutil.Process]()
        while not workers and training.process.poll() is None:  # Ray may be starting them
            workers = _workers(training)
        if training.process.poll() is not None:
            break
        killed_after.append(rows(training.run)[-1]["step"])
        rng.choice(workers).kill()
        print(f"kill {number} after step {killed_after[-1]}", file=sys.stderr)
    return killed_after, time.monotonic() - began


def result(folder: Path, steps: int, killed_after: list[int], lasted_s: float) -> dict[str, Any]:
    """The two runs compared."""
    from pipelines.train.watch.restarts import read_restarts

    calm, killed = rows(folder / "calm"), rows(folder / "killed")
    other = [ours["step"] for ours, theirs in zip(killed, calm, strict=False) if _exact(ours) != _exact(theirs)]
    same_length = len(killed) == len(calm) == steps
    parts = [name for name in ("model", "ema", "optimizer") if not same_bytes(folder, steps, name)]
    restarts = read_restarts(folder / "killed")
    again = sum(restart.in_a_row > 1 for restart in restarts)
    differing = ", ".join([*(f"step {step}" for step in other[:5]), *parts]) or "none"
    return {
        "claim": f"Training one of whose two workers is killed every {EVERY_S:.0f} s for {KILLS * EVERY_S:.0f} s ends with "
        "the losses, gradient norms, clips and weights of a run that nobody disturbed, to the bit",
        "detail": f"{len(killed_after)} kills in {lasted_s:.0f} s, after steps {', '.join(map(str, killed_after))} of "
        f"{steps}; {len(restarts)} restarts, {again} of them without a new checkpoint since the one before; {len(killed)} "
        f"steps in the end; what differs: {differing}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
        "holds": same_length and not other and not parts and len(killed_after) == KILLS,
        "steps": steps,
        "killed_after": killed_after,
        "restarts": dict(Counter(restart.reason for restart in restarts)),
    }


def rows(run: Path) -> list[dict[str, Any]]:
    """Lines of a run's metrics that are whole; empty before the first."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def same_bytes(folder: Path, steps: int, part: str) -> bool:
    """Whether a file of the two last checkpoints is the same."""
    from kineograph.store.checkpoints import checkpoint_folder

    calm, killed = (checkpoint_folder(folder / run, steps) / f"{part}.safetensors" for run in ("calm", "killed"))
    return calm.is_file() and killed.is_file() and calm.read_bytes() == killed.read_bytes()


def _train(folder: Path, data: Path, name: str, steps: int) -> Training:
    return Training(folder / "train.yaml", data, folder / name, "--set", f"steps={steps}")


def _finish(training: Training) -> None:
    if training.wait(PATIENCE_S):
        raise SystemExit(f"training failed: {training.log[-1000:]}")


def _workers(training: Training) -> list[psutil.Process]:
    found = []
    for process in training.children:
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _exact(row: dict[str, Any]) -> list[Any]:
    return [row[name] for name in EXACT]


if __name__ == "__main__":
    print(measure(*sys.argv[1:2]))
