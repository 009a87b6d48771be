"""What is left of a hang: RUN/hang-TIME/ with hang.txt, who hung and what all ranks did, and rank-N.txt, their stacks."""

from __future__ import annotations

import faulthandler
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

from kineograph.progress import say

REPORTS = "hang-"
VERDICT = "hang.txt"
STUCK = ".stacks"


def new_report(run: Path, verdict: str, table: str, culprits: Iterable[int]) -> Path:
    """Write down a verdict (one line) and what is known of all ranks; returns the folder.

    Stacks that a culprit wrote while it could do nothing else (:class:`Stacks`) are put there too.
    """
    folder = run / f"{REPORTS}{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    folder.mkdir(exist_ok=True)
    for rank in culprits:
        stuck = run / STUCK / _name(rank)
        if stuck.is_file() and stuck.stat().st_size:
            os.replace(stuck, folder / _name(rank))
    (folder / VERDICT).write_text(f"{verdict}\n\n{table}\n", encoding="utf-8")
    return folder


def newest_report(run: Path) -> Path | None:
    """The folder of a run's last hang."""
    return max((path.parent for path in run.glob(f"{REPORTS}*/{VERDICT}")), default=None)


def verdict_of(report: Path) -> str:
    """Its first line."""
    return (report / VERDICT).read_text(encoding="utf-8").partition("\n")[0]


def culprit_of(report: Path) -> int | None:
    """The rank that it names, the first of them; None where nobody is blamed."""
    named = re.match(r"rank (\d+) ", verdict_of(report))
    return int(named[1]) if named else None


class Stacks:
    """Writes the Python stacks of this process, a rank's, for people to read."""

    def __init__(self, run: Path, rank: int) -> None:
        self._name = _name(rank)
        self._path = run / STUCK / self._name
        self._path.parent.mkdir(exist_ok=True)
        self._file = open(self._path, "wb+")  # noqa: SIM115  it is open as long as the rank lives

    def write(self, report: Path) -> None:
        """Into the folder of a hang, now."""
        try:
            with open(report / self._name, "w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file)
        except OSError as error:
            say(f"{self._name} cannot be written: {error}")

    def write_unless_back_in(self, seconds: float) -> None:
        """Into a file of its own, unless this is called again in time: a call that never gives the interpreter's lock
        back stops every thread but the one that sees to this."""
        if os.fstat(self._file.fileno()).st_size:
            self._file.truncate(0)
            self._file.seek(0)
        faulthandler.dump_traceback_later(seconds, file=self._file)

    def close(self) -> None:
        """Nothing is written any more."""
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        self._path.unlink(missing_ok=True)


def _name(rank: int) -> str:
    return f"rank-{rank}.txt"
