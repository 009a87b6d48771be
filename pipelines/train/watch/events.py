"""What the driver sees happen to the workers, and says."""

from __future__ import annotations

import time
from pathlib import Path

import ray

from kineograph.errors import Failure
from kineograph.progress import say
from pipelines.train.watch.report import newest_report, verdict_of
from pipelines.train.watch.restarts import read_restarts
from pipelines.train.watch.stop import SaveRequest

DRAINS_EVERY_S = 5.0


class Events:
    """What happens from now on. The workers are told that a machine is to go, as clusters that take one back say it."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._restarts = len(read_restarts(run))
        self._report = newest_report(run)
        self._drained: set[str] = set()
        self._next_look = 0.0

    def look(self) -> None:
        """Say what is new."""
        for restart in read_restarts(self._run)[self._restarts :]:
            say(str(restart))
            self._restarts += 1
            self._report = newest_report(self._run)
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + DRAINS_EVERY_S
            drained = set(ray._private.state.state.get_draining_nodes())
            if drained - self._drained:
                say("a machine is about to be taken away: saving at the next step")
                SaveRequest(self._run).ask()
            self._drained |= drained

    def hang(self) -> Failure | None:
        """What ended the workers, where it was a hang and they were not started again."""
        report = newest_report(self._run)
        return None if report in (None, self._report) else Failure(f"{verdict_of(report)} (see {report})")
