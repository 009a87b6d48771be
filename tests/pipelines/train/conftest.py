"""A tiny curated dataset, a tiny recipe, and `kineo train` as a real process."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from kineograph.synth.corpus import BadShares, SynthConfig, write_corpus

STEPS = 100
RECIPE = {
    "steps": STEPS,
    "model": {"width": 32, "depth": 1, "heads": 2},
    "vae": {"channels": 8, "fit_clips": 16},
    "batch": {"videos": 3, "images": 3},  # odd: the two ranks get unequal parts
    "optimizer": {"lr": 1e-3, "warmup_steps": 5},
    "data": {"validation_share": 0.2},
    "validation": {"every": 50, "timesteps": [0.5]},
    "samples": {"every": 50, "steps": 2, "prompts": ["a red circle moving left", "a blue square"]},
    "checkpoint": {"every": 25, "keep": 10},
    "workers": {"count": 2, "cpus": 1},
    "deepspeed": {"zero_stage": 2},
    "tracking": {"log_every": 1},
}
CURATION = {
    "clips": {"min_seconds": 1.125, "max_seconds": 1.5},
    "buckets": {"sizes": ["32x32x1", "32x32x9"], "fps": 8.0},
    "shards": {"rows": 8, "row_group_size": 4},
    "workers": 2,
}


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """A curation run of a dozen clips: images and videos of one or two scenes. Read it; change a copy."""
    import ray

    from kineograph.ray_session import start_ray
    from pipelines.data.config import CurateConfig
    from pipelines.data.pipeline import curate

    folder = tmp_path_factory.mktemp("dataset")
    corpus = SynthConfig(
        videos=12,
        seed=3,
        max_side=128,
        max_seconds=3,
        max_scenes=2,
        images=0.4,
        fps=(8,),
        aspects=("1:1", "4:3"),
        bad=BadShares(**dict.fromkeys(BadShares.model_fields, 0.0)),
    )
    write_corpus(folder / "raw", corpus, progress=False)
    mine = not ray.is_initialized()
    start_ray(2)
    curate(CurateConfig.model_validate(CURATION), folder / "raw", folder / "run")
    if mine:
        ray.shutdown()
    return folder / "run"


@pytest.fixture(scope="module")
def ray_of_two():
    """One Ray for a file whose tests train in this process."""
    import ray

    from kineograph.ray_session import start_ray

    mine = not ray.is_initialized()
    start_ray(2)
    yield
    if mine:
        ray.shutdown()


@pytest.fixture(scope="session")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


class Training:
    """`kineo train` in a process group of its own; it does not outlive the block."""

    def __init__(self, recipe, data, run, *options):
        self.run = Path(run)
        self._log = self.run.with_suffix(".stderr")
        self._out = self.run.with_suffix(".stdout")
        command = [sys.executable, "-m", "kineograph.cli.main", "train", recipe, "--data", data, "--out", run, *options]
        environment = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")}
        with open(self._out, "w") as out, open(self._log, "w") as log:
            self.process = subprocess.Popen(
                list(map(str, command)), stdout=out, stderr=log, env=environment, start_new_session=True
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    @property
    def log(self):
        return self._log.read_text()

    @property
    def out(self):
        return self._out.read_text()

    @property
    def children(self):
        return psutil.Process(self.process.pid).children(recursive=True)

    def wait(self, timeout_s=240):
        return self.process.wait(timeout_s)

    def wait_for(self, is_there, what, timeout_s=240):
        """Until ``is_there()``; ``what`` is for the error where it never is."""
        end = time.monotonic() + timeout_s
        while not is_there():
            assert self.process.poll() is None, f"it ended before {what}:\n{self.log}"
            assert time.monotonic() < end, f"no {what}:\n{self.log}"
            time.sleep(0.01)

    def kill(self):
        """SIGKILL the process group; what Ray started elsewhere is to end by itself, or is ended."""
        if self.process.poll() is not None:
            return
        children = self.children
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for child in psutil.wait_procs(children, timeout=20)[1]:
            child.kill()


@dataclass
class Done:
    """What a start of `kineo train` left: its run, exit code and console."""

    run: Path
    code: int
    log: str
    out: str = ""


@pytest.fixture(scope="session")
def undisturbed(recipe, dataset, tmp_path_factory):
    with Training(recipe, dataset, tmp_path_factory.mktemp("undisturbed") / "train", "--json") as training:
        return Done(training.run, training.wait(), training.log, training.out)
