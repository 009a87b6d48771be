"""The supervisor of one local job: ``python -m kineograph.jobs.runner JOB_FOLDER``.

It starts the job in a process group of its own, waits, and writes how it ended. SIGTERM to it stops the job.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

import psutil

from kineograph.jobs.local import LOG_NAME, load_record, save_record
from kineograph.jobs.record import JobState

# Ctrl-C first, so that the job can say what it keeps; then plainer words.
STOP_SIGNALS = ((signal.SIGINT, 15.0), (signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0))
# The standard variables that would send a local job to a cluster.
_CLUSTER_VARIABLES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


def run(folder: Path) -> None:
    """Run the job of ``folder`` to its end, whatever that is, and record it."""
    stop_asked = False

    def ask_to_stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stop_asked
        stop_asked = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, ask_to_stop)
    record = load_record(folder).model_copy(
        update={
            "state": JobState.RUNNING,
            "pid": os.getpid(),
            "pid_started": psutil.Process().create_time(),
        }
    )
    inherited = {name: value for name, value in os.environ.items() if name not in _CLUSTER_VARIABLES}
    detail = ""
    exit_code: int | None = None
    try:
        with open(folder / LOG_NAME, "ab") as log:
            child = subprocess.Popen(
                record.argv,
                cwd=record.cwd,
                env={**inherited, "PYTHONUNBUFFERED": "1", **record.env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
    except OSError as error:
        detail = f"cannot start {record.argv[0]}: {error.strerror}"
    else:
        save_record(folder, record)
        while child.poll() is None and not stop_asked:
            time.sleep(0.05)
        if child.poll() is None:
            _stop(child)
        else:
            stop_asked = False  # it ended by itself before the signal could matter
        exit_code = child.wait()
    ended_as = JobState.SUCCEEDED if exit_code == 0 else JobState.FAILED
    state = JobState.STOPPED if stop_asked else ended_as
    save_record(
        folder,
        record.model_copy(update={"state": state, "exit_code": exit_code, "ended": time.time(), "detail": detail}),
    )


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End ``child`` and everything it started, also what left its process group."""
    family = [psutil.Process(child.pid)]
    with contextlib.suppress(psutil.Error):
        family += family[0].children(recursive=True)
    for number, patience_s in STOP_SIGNALS:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        if number != signal.SIGINT:
            for process in family:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(number)
        # The first word is for the job itself: what it leaves behind need not be waited for.
        awaited = family[:1] if number == signal.SIGINT else family
        deadline = time.monotonic() + patience_s
        while any(_runs(process) for process in awaited) and time.monotonic() < deadline:
            child.poll()
            time.sleep(0.05)
        if not any(_runs(process) for process in family):
            return


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


if __name__ == "__main__":
    run(Path(sys.argv[1]))
