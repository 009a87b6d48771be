"""Deciding again: ten thousand clips of a real run, a changed threshold, and nothing decoded."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np

FILMS = 210
SCENES = 10
SCENE_SECONDS = 6.0  # five windows of 1.2 s each
FPS = 10
WIDTH, HEIGHT = 96, 64
LEAST_CLIPS = 10_000
MOST_SECONDS = 10.0
RECIPE = """
clips: {min_seconds: 1.125, max_seconds: 1.2}
filters: {resolution: {min: 32}}
captions: {require: true}
buckets: {sizes: [32x32x9, 24x40x9], fps: 8.0}
shards: {rows: 512, row_group_size: 8}
"""
# Drops some clips of every film, so that no shard stays as it was.
CHANGED = "filters.motion.min=0.05"
BACK = "filters.motion.min=null"


def measure(keep: str | None = None) -> dict[str, Any]:
    """Curate FILMS small films, change a threshold and back. ``keep``: a folder for the run, used again if it is
    there."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(keep or temporary)
        raw, run = folder / "raw", folder / "run"
        if not (run / "_SUCCESS").is_file():
            write_films(raw, FILMS)
            (folder / "recipe.yaml").write_text(RECIPE)
            _kineo("data", "run", str(folder / "recipe.yaml"), "--input", str(raw), "--out", str(run))
        first = _kineo("data", "decide", str(run), "--set", BACK)  # the pages of a run of today are in memory too
        hidden = raw.rename(folder / "gone")  # what is not there cannot be decoded
        try:
            before = stamps(run)
            changed = _kineo("data", "decide", str(run), "--set", CHANGED)
            back = _kineo("data", "decide", str(run), "--set", BACK)
            untouched = stamps(run) == before
        finally:
            hidden.rename(raw)
        split = profile(run)
    clips = changed["totals"]["clips_kept"] + sum(changed["totals"]["clips_rejected"].values())
    dropped = first["totals"]["clips_kept"] - changed["totals"]["clips_kept"]
    same = back["digest"] == first["digest"] != changed["digest"]
    slowest = max(changed["seconds"], back["seconds"])
    return {
        "claim": f"deciding {LEAST_CLIPS} clips again takes under {MOST_SECONDS:g} s and decodes nothing",
        "detail": (
            f"{clips} clips: {changed['seconds']:.1f} s to drop {dropped}, {back['seconds']:.1f} s to take them back "
            f"(CPU {changed['cpu_s']:.1f} and {back['cpu_s']:.1f} s); load {os.getloadavg()[0]:.1f} on "
            f"{os.cpu_count()} cores; analyses and clips {'untouched' if untouched else 'CHANGED'}, sources away, "
            f"digest {'back' if same else 'NOT back'}; {split}"
        ),
        "holds": clips >= LEAST_CLIPS and dropped > 0 and same and untouched and slowest < MOST_SECONDS,
        "seconds": [changed["seconds"], back["seconds"]],
    }


def stamps(run: Path) -> dict[str, int]:
    """Name -> time of change of every file that is made by decoding."""
    folders = [run / "work" / name for name in ("analysis", "measured", "clips", "text")]
    return {str(path): path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*") if path.is_file()}


def profile(run: Path) -> str:
    """Where the time of deciding goes, by cumulative seconds of the functions of the pipeline (cProfile adds some)."""
    code = (
        "import cProfile, pstats, sys\n"
        "p = cProfile.Profile(); p.enable()\n"
        "from pipelines.data.pipeline import decide\n"
        "decide(sys.argv[1], [sys.argv[2]])\n"
        "p.disable(); pstats.Stats(p, stream=sys.stdout).sort_stats('cumulative').print_stats('pipelines|store', 40)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(run), CHANGED], capture_output=True, text=True, check=True)
    steps = (
        "select",
        "read_rows",
        "_copied_sources",
        "_reject_copies",
        "_check",
        "write_ledger",
        "embed",
        "_write",
        "_close",
    )
    times: dict[str, float] = {}
    for line in ended.stdout.splitlines():
        found = re.match(r"\s*\S+\s+\S+\s+\S+\s+(\S+)\s+\S+\s.*\((\w+)\)", line)
        if found and found[2] in (*steps, "write_report"):
            times.setdefault(found[2], float(found[1]))
    return "profile: " + ", ".join(f"{name.strip('_')} {seconds:.1f} s" for name, seconds in times.items())


def write_films(folder: Path, films: int) -> None:
    """``films`` videos of SCENES scenes with a caption for each, every one of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_write_film, [folder] * films, range(films)))


def _write_film(folder: Path, number: int) -> None:
    from kineograph.media.encode import write_mp4

    cv2.setNumThreads(1)
    rng = np.random.default_rng(number)
    frames = np.concatenate([_scene(rng) for _ in range(SCENES)])
    write_mp4(folder / f"film_{number:05d}.mp4", frames, FPS)
    starts = [SCENE_SECONDS * scene for scene in range(SCENES)]
    captions = [
        {"start_s": start, "end_s": start + SCENE_SECONDS, "caption": f"a coloured cloth of film {number} at {start:g}"}
        for start in starts
    ]
    (folder / f"film_{number:05d}.json").write_text(json.dumps({"captions": captions}))


def _scene(rng: np.random.Generator) -> np.ndarray:
    """A coloured pattern that drifts: uint8 (T, H, W, 3)."""
    side = 256
    pattern = cv2.resize(rng.integers(0, 256, (12, 12, 3), np.uint8), (side, side), interpolation=cv2.INTER_CUBIC)
    pattern = np.tile(pattern, (2, 2, 1))
    speed, angle = rng.uniform(0.5, 20.0), rng.uniform(0, 2 * np.pi)
    place = rng.uniform(0, side, 2)
    frames = []
    for index in range(round(SCENE_SECONDS * FPS)):
        moved = place + index / FPS * speed * np.array([np.cos(angle), np.sin(angle)])
        left, top = (moved % side).astype(int)
        frames.append(pattern[top : top + HEIGHT, left : left + WIDTH])
    return np.stack(frames)


def _kineo(*arguments: str) -> dict[str, Any]:
    """The facts that a command prints, with its wall and CPU seconds."""
    command = [sys.executable, "-m", "kineograph.cli.main", *arguments, "--json"]
    began, before = time.perf_counter(), os.times()
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)}: {ended.stderr}")
    seconds, after = time.perf_counter() - began, os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return {**json.loads(ended.stdout), "seconds": seconds, "cpu_s": cpu_s}


if __name__ == "__main__":
    print(measure(*sys.argv[1:2]))
