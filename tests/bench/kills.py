"""SIGKILL at seeded points of every stage of a curation run: what comes out is what an undisturbed run makes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

SEED = 20
VIDEOS = 60
# Longest that any command may take, and that Ray's processes and its agents may live on after their driver was killed.
PATIENCE_S, GONE_S, AGENTS_GONE_S = 600.0, 20.0, 120.0
RECIPE = """
clips: {min_seconds: 1.125, max_seconds: 1.5}
filters: {resolution: {min: 32}, black: {max: 0.5}, static: {max: 0.9}, motion: {min: 0.0005}, text: {max: 0.5}}
scores: {text_area: {}, safety: {}}
captions: {require: true}
buckets: {sizes: [32x32x1, 32x32x9, 24x40x9], fps: 8.0}
shards: {rows: 4, row_group_size: 2}
"""
# Stages in their order, each with the files that it makes; what comes after all of them is closing.
STAGES = {
    "analysing": "work/analysis/*/*",
    "measuring": "work/measured/*",
    "scoring": "work/scores/*/*",
    "encoding": "work/clips/*/*",
    "captions": "work/text/*/*/*",
    "writing": "shards/*/*",
}
CLOSING = ("sources/*", "clips/*", "manifest.json", "report.html", "_SUCCESS")
KILLS = {"starting": 2, "analysing": 4, "measuring": 2, "scoring": 3, "encoding": 3, "captions": 1, "writing": 3}
KILLS["closing"] = 20 - sum(KILLS.values())

Files = dict[str, int]


@dataclass(frozen=True)
class Point:
    """When to kill: ``seconds`` after ``stage`` has been reached and has made ``files`` new files."""

    stage: str
    files: int = 0
    seconds: float = 0.0


# A corpus so small would be done in threads of the driver; what is killed here are Ray's workers too.
ON_RAY = (
    "from kineograph.ray_session import start_ray; from kineograph.cli.main import main; start_ray({workers}); main()"
)


class Driver:
    """``kineo data run`` on a Ray of its own, in a session of its own."""

    def __init__(self, folder: Path, raw: Path, run: Path, *overrides: str) -> None:
        self.log = folder / "log"
        settings = [part for override in overrides for part in ("--set", override)]
        workers = next((o.partition("=")[2] for o in overrides if o.startswith("workers=")), "2")
        recipe = [str(folder / "recipe.yaml"), "--input", str(raw), "--out", str(run), "--json", *settings]
        with open(self.log, "wb") as errors, open(folder / "answer.json", "wb") as answer:
            self.process = subprocess.Popen(
                [sys.executable, "-c", ON_RAY.format(workers=workers), "data", "run", *recipe],
                stdout=answer,
                stderr=errors,
                start_new_session=True,
            )
        self.answer = folder / "answer.json"

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def processes(self) -> list[psutil.Process]:
        """What the driver and Ray have started, the driver not among them."""
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def kill(self) -> tuple[float, list[psutil.Process]]:
        """SIGKILL; the seconds after which whatever could still write was gone, and those of Ray's agents that were not.

        Raises TimeoutError when anything else stays.
        """
        started = self.processes()
        self.process.kill()
        self.process.wait()
        began = time.monotonic()
        while others := [p for p in started if p.is_running() and not _is_agent(p)]:
            if time.monotonic() - began > GONE_S:
                names = [" ".join(p.cmdline())[:80] for p in others]
                raise TimeoutError(f"alive {GONE_S:g} s after the driver was killed: {names}")
            psutil.wait_procs(others, 0.2)
        return time.monotonic() - began, [p for p in started if p.is_running()]

    def finish(self) -> dict[str, Any]:
        """Its facts when it has ended well."""
        if self.process.wait(PATIENCE_S):
            raise SystemExit(f"the driver failed: {self.log.read_text()}")
        facts: dict[str, Any] = json.loads(self.answer.read_text())
        return facts


class Watch:
    """Which stage a session is in, seen from the files that it leaves."""

    def __init__(self, run: Path, complete: dict[str, int]) -> None:
        """``complete``: stage -> number of files that it makes in an undisturbed run."""
        self.run, self.complete = run, complete
        self.before = files(run, "work/sources.json", "recipe.yaml", *STAGES.values(), *CLOSING)

    def new(self, *patterns: str) -> int:
        """Files written since the session began, temporary ones included."""
        return len(set(files(self.run, *patterns).items()) - set(self.before.items()))

    def stage(self) -> str:
        if not self.new("work/sources.json"):
            return "analysing" if self.new(STAGES["analysing"]) else "starting"
        for stage, pattern in STAGES.items():
            if sum(".tmp-" not in name for name in files(self.run, pattern)) < self.complete[stage]:
                return stage
        return "closing"

    def reached(self, point: Point) -> bool:
        patterns = CLOSING if point.stage == "closing" else (STAGES.get(point.stage, "recipe.yaml"),)
        return self.stage() == point.stage and self.new(*patterns) >= point.files


def _is_agent(process: psutil.Process) -> bool:
    """One of Ray's two agents, which touch no file of the run: they ask for a minute after the head that has gone."""
    with suppress(psutil.Error):
        return "agent" in " ".join(process.cmdline()).lower()
    return False


def files(run: Path, *patterns: str) -> Files:
    """Name -> time of change of the files that match."""
    found: Files = {}
    for pattern in patterns:
        for path in run.glob(pattern):
            with suppress(OSError):  # a temporary file may be gone again
                found[str(path)] = path.stat().st_mtime_ns
    return found


def kill_at(point: Point, driver: Driver, watch: Watch) -> tuple[str, float, list[psutil.Process]]:
    """Kill ``driver`` at ``point``: the stage that it was in ("" when it ended before) and what Driver.kill returns."""
    deadline = time.monotonic() + PATIENCE_S
    while driver.running and not watch.reached(point) and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(point.seconds)
    if not driver.running:
        driver.finish()
        return "", 0.0, []
    return watch.stage(), *driver.kill()


def points(rng: np.random.Generator, complete: dict[str, int], kills: dict[str, int]) -> Iterator[Point]:
    """Seeded points in the order of the stages; those of a stage leave work for the ones that follow."""
    for stage, count in kills.items():
        if stage == "starting":
            yield from (Point(stage, seconds=float(rng.uniform(0, 5))) for _ in range(count))
        elif stage == "closing":
            yield from (Point(stage, files=int(rng.integers(0, len(CLOSING)))) for _ in range(count))
        elif complete[stage] < 2 * count:  # few files, and each takes seconds: by time
            yield from (Point(stage, seconds=float(rng.uniform(0, 8))) for _ in range(count))
        else:
            most = max(1, complete[stage] // (count + 1))
            yield from (Point(stage, files=int(rng.integers(0, most + 1))) for _ in range(count))


def complaints(run: Path) -> list[str]:
    """What is wrong with a finished run: leftovers, a ledger with gaps, shards that nobody lists."""
    from kineograph.store.manifest import Manifest, verify
    from pipelines.data.ledger import read_ledger

    found = [f"left over: {path}" for path in run.rglob("*.tmp-*")]
    manifest = Manifest.load(run)
    found += [f"{shard.path}: {problem}" for shard, problem in verify(run, manifest) if problem]
    standing = {path.relative_to(run).as_posix() for path in run.glob("shards/*/*")}
    found += [f"stale: {path}" for path in standing ^ {shard.path for shard in manifest.shards}]
    sources, clips = read_ledger(run)
    listed = json.loads((run / "work" / "sources.json").read_text())
    if sorted(row["uri"] for row in sources) != [line["source"]["uri"] for line in listed]:
        found.append("the ledger has not a row for every source")
    spans: dict[str, list[tuple[int, int]]] = {row["source_id"]: [] for row in sources if row["status"] == "ok"}
    for clip in clips:
        spans[clip["source_id"]].append((clip["start_frame"], clip["end_frame"]))
    for row in sources:
        parts = sorted(spans[row["source_id"]]) if row["status"] == "ok" else []
        if parts and [0, *[end for _, end in parts]] != [*[start for start, _ in parts], row["frames"]]:
            found.append(f"the clips of {row['uri']} do not part it")
    seconds = manifest.totals["seconds"]
    accounted = seconds["kept"] + seconds["unused"] + sum(seconds["rejected"].values())
    if abs(accounted - seconds["input"]) > 1e-3 * max(1.0, seconds["input"]):
        found.append(f"{accounted:g} of {seconds['input']:g} s are accounted for")
    if not (run / "_SUCCESS").is_file():
        found.append("no _SUCCESS")
    return found


class Assassin(threading.Thread):
    """Kills a Ray worker, a guard server and a guard server's child of ``driver`` in each of ``stages``."""

    def __init__(
        self,
        driver: Driver,
        watch: Watch,
        stages: Sequence[str],
        victims: Sequence[str] = ("child", "server", "worker"),
    ) -> None:
        super().__init__(daemon=True)
        self.driver, self.watch = driver, watch
        self.left = [(stage, victim) for stage in stages for victim in victims]
        self.killed: list[str] = []

    def run(self) -> None:
        while self.left and self.driver.running:
            stage, victim = self.left[0]
            at = self.watch.stage()
            there = at == stage or (at == "starting" and stage == "analysing")
            if there and self.watch.new(STAGES[stage]) >= 2 * len(self.killed) and self._kill(victim):
                self.killed.append(f"{victim} while {stage}")
                self.left.pop(0)
            time.sleep(0.01)

    def _kill(self, victim: str) -> bool:
        servers = [p for p in self.driver.processes() if _is_server(p) and not _is_server(p.parent())]
        until = time.monotonic() + 0.3
        while servers and time.monotonic() < until:
            for server in servers:
                pids = {"child": _children(server.pid), "server": [server.pid], "worker": [server.ppid()]}[victim]
                for pid in pids:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        return True
        return False


def _is_server(process: psutil.Process | None) -> bool:
    with suppress(psutil.Error):
        return process is not None and "kineograph.media.guard_server" in process.cmdline()
    return False


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def shuffled(folder: Path, raw: Path, run: Path) -> str:
    """The digest of a run whose sources are handed to Ray in another order."""
    code = (
        "import random, sys, time\n"
        "from pathlib import Path\n"
        "from kineograph.config import load_recipe\n"
        "from pipelines.data.config import CurateConfig\n"
        "from pipelines.data.inputs.sources import list_sources\n"
        "from pipelines.data.pipeline import curate_sources\n"
        "config = load_recipe(Path(sys.argv[1]), CurateConfig).model_copy(update={'input': sys.argv[2], 'workers': 2})\n"
        "sources = list(list_sources(sys.argv[2], config.inputs).sources)\n"
        "random.Random(1).shuffle(sources)\n"
        "print(curate_sources(config, sources, Path(sys.argv[3]), time.monotonic())['digest'])"
    )
    command = [sys.executable, "-c", code, str(folder / "recipe.yaml"), str(raw), str(run)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]


def measure(keep: str | None = None) -> dict[str, Any]:
    """Twenty kills of the driver, then of workers and guards, then other numbers of workers. ``keep``: a folder."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text(RECIPE)
        raw = folder / "raw"
        synth = ["data", "synth", str(raw), "--videos", str(VIDEOS), "--seed", str(SEED)]
        subprocess.run([sys.executable, "-m", "kineograph.cli.main", *synth], check=True, capture_output=True)
        return _measure(folder, raw)


def _measure(folder: Path, raw: Path) -> dict[str, Any]:
    calm = folder / "calm"
    digest = Driver(folder, raw, calm, "workers=2").finish()["digest"]
    complete = {stage: len(files(calm, pattern)) for stage, pattern in STAGES.items()}
    wrong = complaints(calm)

    run, hit, longest, agents = folder / "killed", Counter[str](), 0.0, list[psutil.Process]()
    todo = list(points(np.random.default_rng(SEED), complete, KILLS))
    while todo:
        driver, watch = Driver(folder, raw, run, "workers=2"), Watch(run, complete)
        stage, gone_s, left = kill_at(todo.pop(0), driver, watch)
        longest, agents = max(longest, gone_s), agents + left
        hit[stage or "none"] += 1
        if not stage:  # it had ended: closing is done again by every run
            todo.append(Point("closing", files=1))
        if sum(hit.values()) > 3 * sum(KILLS.values()):
            break
        print(f"killed while {stage or 'none'}; its processes were gone after {gone_s:.1f} s", file=sys.stderr)
    same = {"20 kills": Driver(folder, raw, run, "workers=2").finish()["digest"]}
    wrong += complaints(run)

    run = folder / "workers"
    driver, watch = Driver(folder, raw, run, "workers=2"), Watch(run, complete)
    assassin = Assassin(driver, watch, ("analysing", "encoding"))
    assassin.start()
    same["killed workers and guards"] = driver.finish()["digest"]
    assassin.join()
    wrong += complaints(run)

    for workers in (1, 3):
        same[f"{workers} workers"] = Driver(folder, raw, folder / f"w{workers}", f"workers={workers}").finish()[
            "digest"
        ]
    same["another order"] = shuffled(folder, raw, folder / "shuffled")
    wrong += [f"alive: {process}" for process in psutil.wait_procs(agents, AGENTS_GONE_S)[1]]
    other = [name for name, value in same.items() if value != digest]
    kills = sum(hit.values()) - hit["none"]
    every = set(hit) >= {"starting", *STAGES, "closing"} and len(assassin.killed) == 6
    return {
        "claim": "20 kills of the driver, killed workers and guards, and 1, 2 or 3 workers give the same dataset",
        "detail": (
            f"{kills} kills ({', '.join(f'{stage} {count}' for stage, count in hit.items() if stage != 'none')}), "
            f"processes gone within {longest:.1f} s; killed {', '.join(assassin.killed)}; "
            f"other digests: {', '.join(other) or 'none'}; {'; '.join(wrong[:5]) or 'nothing left over or lost'}; "
            f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        ),
        "holds": not other and not wrong and kills >= sum(KILLS.values()) and every,
    }


if __name__ == "__main__":
    print(measure(*sys.argv[1:2]))
