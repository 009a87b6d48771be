"""Training by the demo's recipe on two cores: how long steps wait for their clips, and what the engine costs.

The wait is what ``kineo train`` logs, with one rank and with two, where nothing is kept between steps: every clip is read
from its shard and decoded each time. The overhead is that of a run's only rank, without Ray, over loops in plain torch with
the batches in memory (training_peers.py). They train in turns, in which the others stand still with all their processes,
and what counts is their time less that in which other work of the machine kept the core from them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from typing_extensions import Self

VIDEOS, SEED = 120, 5
DEMO = "9 frames of 32x32 and 24x40 pixels"
CURATION = {
    "latents": ("encode.latents={}", "encode.video=false"),
    "clips": (),
    "larger clips": ("buckets.sizes=[64x64x17]", "filters.resolution.min=64", "clips.max_seconds=2.5"),
}
"""Datasets by name, and what their curation changes of the demo's, which has clips of 9 frames, 32x32 and 24x40."""
MOST_WAIT = {"latents": 0.02, "clips": 0.10, "larger clips": 0.10}
MOST_OVERHEAD = 0.10
NOTHING_KEPT = ("data.cache_mib=0", "data.row_group_cache_mib=1")
LOOKED_AT = ("samples.prompts=[]", "validation.clips=1")
"""Nearly nothing, in the last step, which is not counted."""
WAIT_STEPS, LEFT_OUT = 80, 20
ROUNDS, TURN_STEPS = 20, 10
PEERS = ("engine", "bare", "plain")
CLOSE = 1e-3
"""Relative difference, at most, of the losses of engine and bare loop: the same but for the order of additions."""


def measure() -> list[dict[str, Any]]:
    with TemporaryDirectory() as name:
        folder = Path(name)
        data = make_data(folder)
        results = {"wait": wait(folder, data), "overhead": overhead(folder, data)}
    return [{"name": f"training/{name}", **result} for name, result in results.items()]


def make_data(folder: Path) -> dict[str, Path]:
    """The datasets, curated from one synthetic corpus."""
    from kineograph.synth.corpus import write_corpus
    from kineograph.synth.plan import SynthConfig

    corpus = SynthConfig(seed=SEED, videos=VIDEOS, max_side=256, min_seconds=3, max_seconds=10)
    write_corpus(folder / "raw", corpus, progress=False)
    data = {name: folder / f"data-{number}" for number, name in enumerate(CURATION)}
    for name, changes in CURATION.items():
        _kineo("data", "run", "demo", "--input", folder / "raw", "--out", data[name], changes=changes)
    return data


def wait(folder: Path, data: dict[str, Path]) -> dict[str, Any]:
    """The share of a step's time in which rank 0 waits for its batch, without the first steps."""
    shares: dict[str, dict[int, float]] = {name: {} for name in data}
    for name, place in data.items():
        for ranks in (1, 2):
            run = folder / f"wait-{place.name}-{ranks}"
            pack = ("batch.videos=8",) if name == "larger clips" else ()  # a step of them shall not take long
            changes = (f"workers.count={ranks}", f"steps={WAIT_STEPS}", *NOTHING_KEPT, *LOOKED_AT, *pack)
            _kineo("train", "demo", "--data", place, "--out", run, changes=changes)
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            rows = [row for row in rows if row["step"] > LEFT_OUT]
            shares[name][ranks] = sum(r["data_wait_share"] * r["step_s"] for r in rows) / sum(r["step_s"] for r in rows)
    told = (f"{name} {of[1]:.2%} (one rank), {of[2]:.2%} (two)" for name, of in shares.items())
    return {
        "claim": "Of a step's time a rank waits for its clips at most "
        + ", ".join(f"{most:.0%} ({name})" for name, most in MOST_WAIT.items()),
        "detail": f"{'; '.join(told)}; load average {os.getloadavg()[0]:.1f}",
        "holds": all(share <= MOST_WAIT[name] for name, of in shares.items() for share in of.values()),
        "shares": shares,
    }


def overhead(folder: Path, data: dict[str, Path]) -> dict[str, Any]:
    """The median over rounds of what a turn of the engine takes beside one of each loop."""
    found = {name: compare(folder / f"overhead-{data[name].name}", data[name]) for name in ("latents", "clips")}
    told = (
        f"{name} {of['bare']['time']:+.1%}, {of['bare']['cpu']:+.1%} CPU seconds, {of['plain']['time']:+.1%} over a loop "
        f"without keyed noise ({of['engine_ms']:.0f} ms a step)"
        for name, of in found.items()
    )
    return {
        "claim": f"A step under the engine takes at most {MOST_OVERHEAD:.0%} longer than in a bare loop at the demo's size",
        "detail": f"{'; '.join(told)}; load average {os.getloadavg()[0]:.1f}",
        "holds": all(of[loop]["time"] <= MOST_OVERHEAD for of in found.values() for loop in PEERS[1:]),
        "overhead": found,
    }


def compare(folder: Path, data: Path) -> dict[str, Any]:
    """What turns of the engine take more than those of each loop, in time and in CPU seconds of the rank's process."""
    with ExitStack() as stack:
        peers = {name: stack.enter_context(Peer(name, folder / name, data)) for name in PEERS}
        rounds = []
        for number in range(1 + ROUNDS):
            order = PEERS if number % 2 else PEERS[::-1]
            rounds.append({name: peers[name].turn() for name in order})
    rounds = rounds[1:]
    for turns in rounds:
        for ours, theirs in zip(turns["engine"]["losses"], turns["bare"]["losses"], strict=True):
            if abs(ours - theirs) > CLOSE * abs(theirs):
                raise SystemExit(f"the engine and the bare loop do not train the same: losses {ours} and {theirs}")
    more = {
        loop: {key: median(turns["engine"][key] / turns[loop][key] for turns in rounds) - 1 for key in ("time", "cpu")}
        for loop in PEERS[1:]
    }
    return {**more, "engine_ms": median(turns["engine"]["time"] for turns in rounds) / TURN_STEPS * 1e3}


class Peer:
    """A process of training_peers.py, and those that it has started, which stand still between its turns."""

    def __init__(self, name: str, folder: Path, data: Path) -> None:
        """Start it, and have it do a first turn; leave the ``with`` block to end it."""
        (folder / "run").mkdir(parents=True)
        steps = (2 + ROUNDS) * TURN_STEPS
        job = {"data": str(data), "run": str(folder / "run"), "steps": steps, "turn": TURN_STEPS}
        (folder / "job.json").write_text(json.dumps({**job, "set": ["workers.count=1", *NOTHING_KEPT, *LOOKED_AT]}))
        self._words = folder / "stderr"
        with open(self._words, "w") as words:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.bench.training_peers", name, str(folder / "job.json")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        self._answer()

    def turn(self) -> dict[str, Any]:
        """What a turn took: ``time`` and ``cpu`` in seconds; and the ``losses`` of its steps."""
        assert self._process.stdin is not None
        for process in self._all():
            process.resume()
        print("go", file=self._process.stdin, flush=True)
        return self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._all():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a peer has failed: {self._words.read_text()[-500:]}")
        for process in self._all():  # at once: its loader would read ahead for nothing
            process.suspend()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _all(self) -> list[psutil.Process]:
        process = psutil.Process(self._process.pid)
        return [process, *process.children(recursive=True)]


def _kineo(*arguments: str | Path, changes: Sequence[str]) -> None:
    overrides = [part for change in changes for part in ("--set", change)]
    command = [sys.executable, "-m", "kineograph.cli.main", *map(str, arguments), *overrides]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"kineo {' '.join(map(str, arguments))} failed: {done.stderr[-500:]}")


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
