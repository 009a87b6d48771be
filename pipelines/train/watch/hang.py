"""A rank that hangs is named and ended: each rank says where it is, two of them listen to all and judge.

The first rank judges; the last one, usually on another machine, does a little later, in case it is the first that hangs.
On a verdict every rank that lives writes its stacks into RUN/hang-TIME and ends, and one beside the culprit ends it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch.distributed as dist

from kineograph.progress import say
from pipelines.train.watch.judge import Sign, Verdict, judge, table
from pipelines.train.watch.report import Stacks, new_report
from pipelines.train.watch.talk import Talk
from pipelines.train.workers import WorkersConfig

SLOW_PHASES = frozenset({"starting", "gathering", "saving", "looking"})
HANG_EXIT = 75
"""Exit code of a process that is ended since its group hangs."""
GRACE_S = 2.0
"""For a culprit to write its stacks and end by itself."""


class Mark(NamedTuple):
    """Where a rank is."""

    step: int
    phase: str
    since: float
    """By its own monotonic clock."""
    allowed_s: float


class Beat:
    """A rank's heart: ``with Beat(run, workers) as beat: … beat.phase("forward", step)``.

    Every rank must enter it, with torch.distributed up, in the thread that trains. Marks are what counts as progress;
    a mark takes a microsecond.
    """

    def __init__(self, run: Path, workers: WorkersConfig) -> None:
        self._run = run
        self._timeout_s, self._slow_s = workers.hang_timeout_s, workers.slow_timeout_s
        self._interval_s = min(1 + workers.count / 250, max(0.1, self._timeout_s / 20))  # judges hear 250 in a second
        self._first_step: int | None = None
        self._mark = Mark(-1, "starting", time.monotonic(), self._slow_s)
        self._end = threading.Event()

    def phase(self, name: str, step: int) -> None:
        """Say that this rank is in ``name`` of ``step`` from now on. Saying it again is progress too."""
        if self._first_step is None:
            self._first_step = step
        is_slow = name in SLOW_PHASES or step == self._first_step
        self._mark = Mark(step, name, time.monotonic(), self._slow_s if is_slow else self._timeout_s)

    def __enter__(self) -> Beat:
        self._trains = threading.get_ident()
        self._talk = Talk()
        self._rank, self._world = self._talk.rank, len(self._talk.members)
        self._judges = sorted({0, self._world - 1})
        # A judge has two looks at the group more than the first before it acts.
        self._late_s = 0.0 if self._rank == 0 else 1 + 3 * self._interval_s
        nothing_yet = Sign(-1, "starting", 0.0, self._slow_s)
        self._heard = dict.fromkeys(range(self._world), (nothing_yet, time.monotonic()))
        self._front_at_silence: dict[int, int] = {}
        self._judges_from = self._last_round = time.monotonic()
        self._stacks = Stacks(self._run, self._rank)
        self._thread = threading.Thread(target=self._beat, name="beat", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._talk.tell([self._rank], "wake")
        self._thread.join()
        for _ in range(2):
            self._talk.tell(self._judges, "gone", self._rank)
        self._talk.close()
        self._stacks.close()

    # The thread.

    def _beat(self) -> None:
        try:
            while not self._end.is_set():
                self._talk.tell(self._judges, "sign", self._rank, asdict(self._sign()))
                self._stacks.write_unless_back_in(self._timeout_s / 2)
                until = time.monotonic() + self._interval_s
                while (message := self._talk.hear(until)) and not self._end.is_set():
                    self._take(*message)
                if self._rank in self._judges and not self._end.is_set():
                    self._judge(time.monotonic())
        except Exception as error:  # noqa: BLE001  training goes on without a watch rather than not at all
            say(f"rank {self._rank} is no longer watched for hangs: {type(error).__name__}: {error}")

    def _sign(self) -> Sign:
        mark = self._mark
        still_s = time.monotonic() - mark.since
        return Sign(mark.step, mark.phase, still_s, mark.allowed_s, _waits_for_others(self._trains))

    def _take(self, what: str, *values: Any) -> None:
        if what == "sign" and values[0] in self._heard:
            rank, sign = values
            self._heard[rank] = (Sign(**sign), time.monotonic())
            self._front_at_silence.pop(rank, None)
        elif what == "gone":
            self._heard.pop(values[0], None)
        elif what == "verdict":
            report, culprits = values
            self._stacks.write(Path(report))
            self._leave(culprits)

    def _judge(self, now: float) -> None:
        if now - self._last_round > self._timeout_s / 2:  # this process was stopped itself: all may have been
            self._judges_from = now + self._timeout_s
        self._last_round = now
        if now < self._judges_from:
            return
        signs = self._signs(now)
        verdict = judge(signs, self._talk.names, silence_s=0.9 * self._timeout_s)
        if verdict is not None:
            self._carry_out(verdict, signs)

    def _signs(self, now: float) -> dict[int, Sign]:
        """Everybody's last sign, as old as it is by now."""
        front = max((sign.step for sign, _ in self._heard.values()), default=0)
        signs = {}
        for rank, (sign, at) in self._heard.items():
            silent_s = now - at
            if silent_s > 2 * self._interval_s:
                self._front_at_silence.setdefault(rank, front)
            signs[rank] = replace(
                sign,
                still_s=sign.still_s + silent_s,
                allowed_s=sign.allowed_s + self._late_s,
                silent_s=max(0.0, silent_s - self._late_s),
                passed=front - self._front_at_silence.get(rank, front),
            )
        return signs

    def _carry_out(self, verdict: Verdict, signs: dict[int, Sign]) -> None:
        try:
            report = new_report(self._run, verdict.text, table(signs, self._talk.names), verdict.culprits)
        except OSError as error:
            say(f"{verdict.text}; the report cannot be written: {error}")
            report = self._run
        self._stacks.write(report)  # before anybody ends, while all are where they hang
        for _ in range(3):
            self._talk.tell(set(range(self._world)) - {self._rank}, "verdict", str(report), verdict.culprits)
            time.sleep(0.1)
        self._leave(verdict.culprits)

    def _leave(self, culprits: Iterable[int]) -> None:
        """End this process, and any culprit beside it that does not end by itself."""
        try:
            self._stacks.close()
            time.sleep(0.5)  # for others to write their stacks: a rank that loses a peer leaves its place
            beside = self._talk.beside()
            if self._rank == min(set(beside) - set(culprits), default=None):
                processes = [self._talk.members[rank].process() for rank in culprits if rank in beside]
                _end([process for process in processes if process is not None])
            for child in psutil.Process().children(recursive=True):
                child.kill()
        finally:
            os._exit(HANG_EXIT)  # the thread that trains may be in a call that never returns


def _end(processes: list[psutil.Process]) -> None:
    """Give ``processes`` a moment to end, then end them and what they started."""
    for process in psutil.wait_procs(processes, timeout=GRACE_S)[1]:
        for each in [*process.children(recursive=True), process]:
            each.kill()


def _waits_for_others(thread_id: int) -> bool:
    """Whether a thread is inside a call of torch.distributed."""
    frame = sys._current_frames().get(thread_id)
    while frame is not None:
        if frame.f_code.co_filename == dist.distributed_c10d.__file__:
            return True
        frame = frame.f_back
    return False
