"""What curation costs: beside decoding and doing nothing, beside Data-Juicer, in memory, and on two cores.

``python -m tests.bench curation`` measures all claims; ``--only NAME`` some of them, ``--files DIR`` takes more real
files along, ``--data-juicer DJ_PROCESS`` names the command of a virtual environment that has Data-Juicer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import psutil

from kineograph.media.probe import MediaLimits
from pipelines.data.analyse import analyse
from tests.bench import datajuicer
from tests.bench.real_clips import clip, files_of, repeat, rewrite

ROUNDS = 4
LEAST_SPEED = 0.5
# Width and height of the files made for the claim by size, and the clip that they are made of.
SIZES = {(640, 360): "bikes", (1280, 720): "bigbuckbunny", (1920, 1080): "bigbuckbunny"}
MADE_FRAMES = 250
LONG_SECONDS = 600
MOST_BYTES = 1.5e9
COPIES = 48
LEAST_SCALING = 1.7
# No copy is left out: the files of these claims are copies of few clips.
RUN_OPTIONS = ("--set", "duplicates.perceptual.enabled=false", "--set", "captions.require=false")


def measure(
    only: Sequence[str] = (), files: Path | None = None, data_juicer: Path | None = None
) -> list[dict[str, Any]]:
    """One result for each claim in ``only``, all claims by default. ``holds`` is None where it was skipped."""
    claims: dict[str, Callable[[], dict[str, Any]]] = {
        "analysis": lambda: analysis(files),
        "datajuicer": lambda: datajuicer.measure(data_juicer, files),
        "memory": memory,
        "scaling": scaling,
    }
    unknown = sorted(set(only) - set(claims))
    if unknown:
        raise SystemExit(f"no claim {unknown[0]!r} of curation; there are: {', '.join(claims)}")
    results = []
    for name in only or claims:
        before = os.getloadavg()[0]
        result = claims[name]()
        result["detail"] += f"; load average {before:.1f} before, {os.getloadavg()[0]:.1f} after"
        results.append({"name": f"curation/{name}", **result})
    return results


def analysis(files: Path | None) -> dict[str, Any]:
    """Process CPU time of analysing beside decoding, least of some rounds in turns, on one thread."""
    ratios: dict[str, float] = {}
    with TemporaryDirectory() as folder:
        made = [Path(folder) / f"{width}x{height}.mp4" for width, height in SIZES]
        for target, (size, name) in zip(made, SIZES.items(), strict=True):
            rewrite([clip(name)], target, size, frames=MADE_FRAMES)
        decoding, analysing = _alternate([*files_of(files), *made])
        real = files_of(files)
        ratios["real clips"] = sum(decoding[p] for p in real) / sum(analysing[p] for p in real)
        ratios.update({path.stem: decoding[path] / analysing[path] for path in made})
        each = {path.name: round(decoding[path] / analysing[path], 2) for path in real}
    return {
        "claim": "analysis takes at most twice the CPU time of decoding alone, on the real clips and from 640x360 up",
        "detail": ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()) + f" of decoding's speed; {each}",
        "holds": min(ratios.values()) >= LEAST_SPEED,
        "ratios": ratios,
        "files": each,
    }


def _alternate(files: list[Path]) -> tuple[dict[Path, float], dict[Path, float]]:
    """Least CPU seconds of decoding and of analysing each of ``files``."""
    limits = MediaLimits().model_dump(mode="json")
    decoding, analysing = dict.fromkeys(files, float("inf")), dict.fromkeys(files, float("inf"))
    for _ in range(ROUNDS):
        for path in files:
            decoding[path] = min(decoding[path], _cpu_seconds(partial(_decode, path)))
            analysing[path] = min(analysing[path], _cpu_seconds(partial(analyse, str(path), limits)))
    return decoding, analysing


def _decode(path: Path) -> None:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for _ in container.decode(stream):
            pass


def _cpu_seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def memory() -> dict[str, Any]:
    """Peak memory (PSS: shared pages are counted once) of a Ray worker and what it starts, on a long 1080p source."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "raw").mkdir()
        rewrite([clip("bigbuckbunny"), clip("bikes")], folder / "part.mp4", (1920, 1080))
        with av.open(str(folder / "part.mp4")) as container:
            times = round(LONG_SECONDS * 1e6 / container.duration) + 1
        repeat(folder / "part.mp4", folder / "raw" / "long.mp4", times)
        process = _start(folder / "raw", folder / "run", workers=1)
        peaks = _watch(process, folder / "run")
    most = max(stage.get("sum", 0) for stage in peaks.values())
    shown = [
        f"{stage}: " + ", ".join(f"{part} {size / 2**20:.0f} MiB" for part, size in sorted(of.items()))
        for stage, of in peaks.items()
    ]
    return {
        "claim": f"a worker takes at most {MOST_BYTES / 1e9:g} GB on a source of {LONG_SECONDS // 60} minutes of 1080p",
        "detail": "; ".join(shown),
        "holds": 0 < most <= MOST_BYTES,
        "peaks": peaks,
    }


def _watch(process: subprocess.Popen[str], run: Path) -> dict[str, dict[str, int]]:
    """Stage -> part -> most bytes, until ``process`` ends; "sum" is the most that the parts had at one moment."""
    peaks: dict[str, dict[str, int]] = {"analysis": {}, "encoding": {}}
    while process.poll() is None:
        time.sleep(0.2)
        parts = _worker_memory(process.pid)
        peak = peaks["encoding" if "analysed" in _stages(run) else "analysis"]
        for part, size in parts.items():
            peak[part] = max(peak.get(part, 0), size)
    _finished(process)
    return peaks


def _worker_memory(root: int) -> dict[str, int]:
    """Bytes of the guard's server, of the child that it has forked, and of the worker whose they are, below ``root``."""
    parts = {"worker": 0, "guard server": 0, "child": 0}
    try:
        for process in psutil.Process(root).children(recursive=True):
            try:
                parent = process.parent()
                if not _is_guard(process) or parent is None:
                    continue
                if _is_guard(parent):
                    parts["child"] += process.memory_full_info().pss
                else:
                    parts["guard server"] += process.memory_full_info().pss
                    parts["worker"] += parent.memory_full_info().pss
            except psutil.Error:  # it ended meanwhile
                continue
    except psutil.Error:
        pass
    return {**parts, "sum": sum(parts.values())} if parts["worker"] else {}


def _is_guard(process: psutil.Process) -> bool:
    return "kineograph.media.guard_server" in process.cmdline()


def scaling() -> dict[str, Any]:
    """Sources a second with one worker and with two, between the first source that is committed and the last."""
    rates: dict[str, dict[int, float]] = {"analysis": {}, "encoding": {}}
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "raw").mkdir()
        for copy in range(COPIES):
            repeat(clip("bikes"), folder / "raw" / f"{copy}.mp4", 1, title=str(copy))
        for turn in range(4):
            workers, run = 1 + turn % 2, folder / f"run{turn}"
            _finished(_start(folder / "raw", run, workers))
            for stage, pattern in (("analysis", "work/analysis/*/*.json.gz"), ("encoding", "work/seconds/*/*")):
                rates[stage][workers] = max(rates[stage].get(workers, 0.0), _rate(run, pattern))
    scales = {stage: of[2] / of[1] for stage, of in rates.items()}
    shown = ", ".join(f"{s} {scales[s]:.2f} ({of[1]:.2f} and {of[2]:.2f} sources/s)" for s, of in rates.items())
    return {
        "claim": f"two workers do at least {LEAST_SCALING} times what one does",
        "detail": f"{shown}, {COPIES} copies of a real clip, best of two runs each",
        "holds": min(scales.values()) >= LEAST_SCALING,
        "scales": scales,
    }


def _rate(run: Path, pattern: str) -> float:
    """Files a second that were written below ``run``, from the first one on."""
    written = sorted(path.stat().st_mtime for path in run.glob(pattern))
    return (len(written) - 1) / (written[-1] - written[0])


def _start(raw: Path, run: Path, workers: int) -> subprocess.Popen[str]:
    """The command line's curation, by the recipe ``default``."""
    command = [Path(sys.executable).with_name("kineo"), "data", "run", "default", "--input", raw, "--out", run]
    return subprocess.Popen(
        [*map(str, command), "--set", f"workers={workers}", *RUN_OPTIONS],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finished(process: subprocess.Popen[str]) -> None:
    """Wait for ``process``. Raises SystemExit with its last words when it failed."""
    _, words = process.communicate()
    if process.returncode:
        raise SystemExit(f"curation failed: {words[-500:]}")


def _stages(run: Path) -> list[str]:
    try:
        return [entry["stage"] for entry in json.loads((run / "work" / "stages.json").read_text())]
    except (OSError, ValueError):
        return []


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--only", action="append", default=[], help="A claim of curation; may be given again.")
    parser.add_argument("--files", type=Path, help="A folder with more real files.")
    parser.add_argument("--data-juicer", type=Path, help="The dj-process command of Data-Juicer's environment.")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    add_options(options)
    print(json.dumps(measure(**vars(options.parse_args())), indent=1))
