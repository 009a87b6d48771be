"""A directory with one run of each kind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest


def write(path: Path, value: object = "", age_s: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    os.utime(path, (1e9 - age_s, 1e9 - age_s))
    return path


def make_runs(root: Path) -> Path:
    """One run of each kind, at several depths; the evaluation is the newest."""
    for name in ("recipe.yaml", "report.html", "_SUCCESS"):
        write(root / "data" / name, "<h1>ledger</h1>", 30)
    write(
        root / "data" / "manifest.json",
        {"totals": {"frames": 9, "seconds": {"kept": 16.04}, "sources": 1200}},
        30,
    )
    write(root / "demo" / "train" / "train.json", {"step": 40}, 20)
    (root / "demo" / "train" / "checkpoints").mkdir()
    write(root / "demo" / "eval" / "report.html", "", 10)
    write(root / "demo" / "eval" / "_SUCCESS", "", 10)
    metrics = [
        {"name": "color_accuracy", "value": 0.984, "ci_low": 0.95, "ci_high": 1.0, "n": 64},
        {"name": "flicker", "value": 0.5},
    ]
    write(root / "demo" / "eval" / "metrics.json", {"metrics": metrics}, 10)
    return root


@pytest.fixture(scope="session")
def fill() -> Callable[[Path], Path]:
    return make_runs
