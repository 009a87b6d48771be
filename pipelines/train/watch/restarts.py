"""What to do when a training worker fails: start all again from the last checkpoint, or give up. And a record of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from kineograph.store.checkpoints import COMPLETE, list_checkpoints, step_of
from pipelines.train.watch.report import culprit_of, newest_report, verdict_of
from pipelines.train.watch.stop import StopRequest

RESTARTS = "restarts.jsonl"

Cause = Literal["ours", "error", "memory", "death", "start", "taken away", "no room", "room"]
"""An error of ours, which nothing heals; any other; want of memory; a process that ended; a group that did not come up; a
machine that was taken away with notice; a cluster without room for the workers; one with room for more of them."""


@dataclass(frozen=True)
class GroupFailure:
    """Why a group of workers ended."""

    cause: Cause
    reason: str
    """One line."""
    rank: int | None = None
    """The worker that failed first or hung, where one did."""


@dataclass(frozen=True)
class Restart:
    """A line of RUN/restarts.jsonl. One whose cause is "no room" waits for machines and is done once more."""

    cause: Cause
    reason: str
    rank: int | None
    step: int
    """Of the checkpoint that all start again from; 0 is the beginning."""
    in_a_row: int
    """Failures since the last new checkpoint, this one among them."""
    time: float
    """Seconds since 1970."""

    def __str__(self) -> str:
        if self.cause == "no room":
            return f"{self.reason}; waiting"
        where = f"from step {self.step}" if self.step else "from the beginning"
        return f"{self.reason}; all start again {where}"


class Saved:
    """How far a run's finished checkpoints go. Their bytes are not checked: that takes long, and every start does it."""

    def __init__(self, run: Path, begun: int | None = None) -> None:
        """Those there are now after step ``begun``, which this start goes on from, are damaged: they do not count."""
        self._run = run
        damaged = [] if begun is None else [f for f in list_checkpoints(run) if step_of(f) > begun]
        self._damaged = {folder: _finished_at(folder) for folder in damaged}

    def steps(self) -> int:
        """The newest one's; 0 without one."""
        found = ((folder, _finished_at(folder)) for folder in list_checkpoints(self._run))
        good = (folder for folder, at in found if at is not None and at != self._damaged.get(folder))
        return max(map(step_of, good), default=0)


def _finished_at(folder: Path) -> int | None:
    try:
        return (folder / COMPLETE).stat().st_mtime_ns
    except FileNotFoundError:
        return None


class Restarts:
    """Decides after each failure of a run whether it is worth another start. ``most``: failures in a row; -1 any number."""

    def __init__(self, run: Path, most: int, saved: Saved | None = None) -> None:
        self._run, self._most = run, most
        self._saving = saved or Saved(run)
        self._in_a_row = 0
        self._saved = self._saving.steps()
        self._last: GroupFailure | None = None
        self._report = newest_report(run)

    def after(self, failure: GroupFailure) -> bool:
        """Whether all start again after ``failure``; it is recorded then."""
        failure = self._explained(failure)
        saved = self._saving.steps()
        if saved > self._saved:
            self._saved, self._in_a_row, self._last = saved, 0, None
        starts_again = self._heals(failure) and not StopRequest(self._run).is_set()
        if failure.cause not in ("taken away", "no room"):
            self._in_a_row += 1
            starts_again = starts_again and (self._most == -1 or self._in_a_row <= self._most)
        if starts_again and not (failure.cause == "no room" and self._last == failure):  # waiting is said once
            record_restart(self._run, failure, saved, self._in_a_row)
        self._last = failure
        return starts_again

    def _heals(self, failure: GroupFailure) -> bool:
        """Steps are the same each time they are done: memory that was short twice after one checkpoint always will be."""
        is_short_again = failure.cause == "memory" and self._last is not None and self._last.cause == "memory"
        return failure.cause != "ours" and not is_short_again

    def _explained(self, failure: GroupFailure) -> GroupFailure:
        """The verdict where the worker was ended since one hung."""
        report = newest_report(self._run)
        if report is None or report == self._report or failure.cause == "ours":
            return failure
        self._report = report
        return GroupFailure("death", f"{verdict_of(report)} (see {report.relative_to(self._run)})", culprit_of(report))


def record_restart(run: Path, why: GroupFailure, step: int, in_a_row: int = 0) -> None:
    """Add a line to RUN/restarts.jsonl."""
    restart = Restart(**asdict(why), step=step, in_a_row=in_a_row, time=time.time())
    with open(run / RESTARTS, "a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(restart)) + "\n")


def read_restarts(run: Path) -> list[Restart]:
    """Every restart of a run so far, the first one first. A line that a killed writer left is passed over."""
    path = run / RESTARTS
    return list(_parsed(path.read_text(encoding="utf-8"))) if path.is_file() else []


def _parsed(text: str) -> Iterator[Restart]:
    for line in text.splitlines():
        try:
            facts: dict[str, Any] = json.loads(line)
        except ValueError:
            continue
        yield Restart(**facts)
