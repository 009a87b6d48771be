"""What is known of a submitted job, the same for every place it can run."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from enum import Enum

from pydantic import BaseModel, ConfigDict

STOPPED_EXIT_CODE = 130
"""What a shell reports for a program that was interrupted."""


class JobState(str, Enum):
    """Where a job is in its life."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def is_final(self) -> bool:
        """Whether the job has ended."""
        return self not in (JobState.PENDING, JobState.RUNNING)


class JobRecord(BaseModel):
    """One job: what it runs, how far it is, how it ended."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    kind: str = ""
    """data | train | eval; empty for a job that someone else submitted to the same cluster."""
    state: JobState
    command: str
    submitted: float | None = None
    """Seconds since the epoch."""
    ended: float | None = None
    exit_code: int | None = None
    """As the process gave it; None while it runs, and where it never started or vanished."""
    detail: str = ""
    """One line on why it failed, where more than the exit code is known."""

    @property
    def shell_exit_code(self) -> int:
        """The code to leave a shell with: the job's, 128 + N for signal N, 130 when stopped, 1 if unknown."""
        if self.state is JobState.SUCCEEDED:
            return 0
        if self.state is JobState.STOPPED:
            return STOPPED_EXIT_CODE
        if self.exit_code is not None and self.exit_code < 0:
            return 128 - self.exit_code
        return self.exit_code or 1


def choose_id(
    base: str, lookup: Callable[[str], JobRecord | None], again: bool = False
) -> tuple[str, JobRecord | None]:
    """The id to submit under, or the id and record of the job that makes submitting needless.

    A job that runs or succeeded is found again. After a failed or stopped one comes ``base``-2, then -3, and
    so on; with ``again`` also after one that succeeded.
    """
    for attempt in itertools.count(1):
        job_id = base if attempt == 1 else f"{base}-{attempt}"
        record = lookup(job_id)
        if record is None:
            return job_id, None
        if not record.state.is_final or (record.state is JobState.SUCCEEDED and not again):
            return job_id, record
    raise AssertionError("unreachable")
