"""Asking a run to stop or to save: files in its directory, which any process that sees it may write.

    RUN/stop    save at the next step and leave. A signal to `kineo train` writes it; so does `touch RUN/stop`
    RUN/save    save at the next step and go on, once

Rank 0 looks for them between steps. On a network file system a new file is seen within the time that it caches names.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from kineograph.errors import KineographError
from kineograph.progress import say
from kineograph.store.commit import write_json

STOP = "stop"
SAVE = "save"
SIGNALS = (signal.SIGTERM, signal.SIGINT)
LOOK_EVERY_S = 0.5


class Stopped(KineographError):
    """Training was asked to stop and did. ``exit_code``: 128 + the signal's number; 130 where a file asked."""

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class Request:
    """Whether a file was put into a run's directory; it is looked for every half second at most."""

    def __init__(self, run: Path, name: str) -> None:
        self.path = run / name
        self._next_look = float("-inf")
        self._is_set = False

    def is_set(self) -> bool:
        """Whether the file is there."""
        now = time.monotonic()
        if not self._is_set and now >= self._next_look:
            self._next_look = now + LOOK_EVERY_S
            self._is_set = self.path.exists()
        return self._is_set

    def ask(self) -> None:
        """Put the file there."""
        self.path.touch()

    def take_back(self) -> None:
        """Remove the file, done or out of date."""
        self.path.unlink(missing_ok=True)
        self._is_set = False


class StopRequest(Request):
    """RUN/stop."""

    def __init__(self, run: Path) -> None:
        super().__init__(run, STOP)

    def obeyed(self, step: int) -> None:
        """Rank 0 says that all leave, with ``step`` steps saved."""
        write_json(self.path, {**self.facts(), "step": step})

    def facts(self) -> dict[str, Any]:
        """``signal``: number of the signal that asked, if one did; ``step``: where the workers left, once they did."""
        try:
            facts = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # nobody asks, or `touch` did
            return {}
        return facts if isinstance(facts, dict) else {}


class SaveRequest(Request):
    """RUN/save. Rank 0 alone looks for it, and takes it back once the checkpoint is on its way."""

    def __init__(self, run: Path) -> None:
        super().__init__(run, SAVE)


@contextmanager
def stopped_by_signals(run: Path) -> Iterator[None]:
    """In the block the first SIGTERM or SIGINT asks the run to stop and the second raises Stopped at once.

    Signals reach a process's main thread alone: elsewhere the block changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = threading.Event()

    def ask(number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        if asked.is_set():
            for each in SIGNALS:
                signal.signal(each, signal.SIG_DFL)  # a third one needs no help of ours
            raise Stopped(
                f"{name}: stopped at once, what was saved is kept; run the same command again to go on", number
            )
        asked.set()
        write_json(run / STOP, {"signal": number})
        say(f"{name}: saving at the next step, then leaving (once more: at once)")

    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stopped(run: Path, step: int) -> Stopped:
    """The end of a run that was asked to stop, with ``step`` steps saved. Takes the request back."""
    request = StopRequest(run)
    number = request.facts().get("signal")
    request.take_back()
    by = signal.Signals(number).name if number else f"the file {request.path}"
    where = f"with {step} steps saved" if step else "before anything was saved"
    return Stopped(f"stopped by {by} {where}; run the same command again to go on", number or signal.SIGINT)
