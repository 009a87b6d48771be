"""Training by the demo's recipe on two cores: how long a step waits for its clips, and what the engine costs.

The wait is what ``kineo train`` logs, with nothing kept from step to step: every clip is read from its shard and decoded
each time. The overhead is that of one rank without Ray, which adds nothing to a step, beside a loop in plain torch over
tensors in memory (training_peers.py). The peers train in turns of some steps, and stand still with all their processes in
between. What counts is their time less that in which other work of the machine kept the core from them.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from tests.bench.training_peers import CPUS, STEPS

VIDEOS, SEED = 120, 5
MOST_WAIT = {"latents": 0.02, "clips": 0.10, "larger clips": 0.10}
MOST_OVERHEAD = 0.10
WAIT_STEPS, LEFT_OUT = 100, 20
ROUNDS = 20
NOTHING_KEPT = ("data.cache_mib=0", "data.row_group_cache_mib=1")
"""Each row group is read again for the next batch, and each clip is decoded again."""
CURATION = {
    "latents": ("encode.latents={}", "encode.video=false"),
    "clips": (),
    "larger clips": ("buckets.sizes=[64x64x17]", "filters.resolution.min=64", "clips.max_seconds=2.5"),
}
"""Changes of the demo's recipe. It has clips of 9 frames, 32x32 and 24x40 pixels, and latents of 8x8x3 and 6x10x3."""
TRAINING = {"latents": (), "clips": (), "larger clips": ("batch.videos=8",)}
"""The same for training: a step of larger clips shall not take long."""
SETTINGS = {"LOCAL_RANK": "0", "OMP_NUM_THREADS": str(CPUS)}


def measure() -> list[dict[str, Any]]:
    with TemporaryDirectory() as name:
        data = make_data(Path(name))
        return [
            {"name": "training/wait", **wait(Path(name), data)},
            {"name": "training/overhead", **overhead(Path(name), data)},
        ]


def make_data(folder: Path) -> dict[str, Path]:
    """Curation runs of one synthetic corpus, by name."""
    from kineograph.synth.corpus import write_corpus
    from kineograph.synth.plan import SynthConfig

    corpus = SynthConfig(seed=SEED, videos=VIDEOS, max_side=256, min_seconds=3, max_seconds=10)
    write_corpus(folder / "raw", corpus, progress=False)
    runs = {name: folder / f"data of {name}" for name in CURATION}
    for name, run in runs.items():
        _kineo("data", "run", "demo", "--input", folder / "raw", "--out", run, changes=CURATION[name])
    return runs


def wait(folder: Path, data: dict[str, Path]) -> dict[str, Any]:
    """The share of a step's time in which the rank waits for its batch, without the first steps."""
    found: dict[str, dict[str, float]] = {}
    for name in data:
        for workers in (1, 2):
            found[f"{name}, {workers} rank{'s' * (workers - 1)}"] = _train(folder / f"{name} {workers}", data[name], workers, TRAINING[name])
    shares = {name: sum(row["data_wait_share"] for row in rows) / len(rows) for name, rows in found.items()}
    return {
        "claim": "Of a step's time a rank waits for its clips at most "
        + ", ".join(f"{most:.0%} with {name}" for name, most in MOST_WAIT.items()),
        "detail": "",
        "holds": True,
        "shares": shares,
    }
