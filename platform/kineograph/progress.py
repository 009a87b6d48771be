"""Progress of long work on stderr: done, rate, time left. A line in place on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time


class Progress:
    """Count ``total`` units of work aloud. Use as a context manager; call :meth:`update` as units end."""

    def __init__(self, label: str, total: int, unit: str, done: int = 0) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = self._done_before = done
        self._start = time.monotonic()
        self._last_shown = float("-inf")
        self._shown_done = -1
        self._note = ""
        self._live = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown_done != self.done:
            self._show(self._note, force=True)
        if self._live:
            sys.stderr.write("\n")

    def update(self, units: int = 1, note: str = "") -> None:
        """Count ``units`` more; ``note`` is shown at the end of the line."""
        self.done += units
        self._show(note)

    def line(self, note: str = "") -> str:
        """The line as shown: ``label 12/40 sources  3.1 sources/s  9s left  note``."""
        elapsed = time.monotonic() - self._start
        rate = (self.done - self._done_before) / elapsed if elapsed > 0 else 0.0
        left = f"{duration((self.total - self.done) / rate)} left" if rate > 0 and self.done < self.total else ""
        if self.done >= self.total:
            left = f"in {duration(elapsed)}"
        parts = [
            f"{self.label} {self.done}/{self.total} {self.unit}",
            f"{rate:.1f} {self.unit}/s" if rate > 0 else "",
            left,
            note,
        ]
        return "  ".join(part for part in parts if part)

    def _show(self, note: str = "", force: bool = False) -> None:
        now = time.monotonic()
        self._note = note
        if not force and now - self._last_shown < (0.2 if self._live else 10.0):
            return
        self._last_shown, self._shown_done = now, self.done
        line = self.line(note)
        sys.stderr.write(f"\r\x1b[K{line}" if self._live else f"{line}\n")
        sys.stderr.flush()


def duration(seconds: float) -> str:
    """``seconds`` as people say it: 8s, 3m05s, 2h07m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def say(message: str) -> None:
    """One line for people on stderr, where logs go."""
    print(message, file=sys.stderr, flush=True)
