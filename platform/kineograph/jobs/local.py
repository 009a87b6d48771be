"""Jobs on this machine: a child process per job, its log and its record under RUNS/jobs/<id>/.

    RUNS/jobs/<id>/
      job.json      the record: command, state, supervisor's pid and start time, exit code, times
      <recipe>      the recipe as it was submitted
      log.txt       what the job printed

A small supervisor (:mod:`kineograph.jobs.runner`) owns the child, so that a detached job records its end too.
"""

from __future__ import annotations

import codecs
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
from pydantic import ValidationError

from kineograph.errors import Failure, UserError
from kineograph.jobs.plan import JobPlan
from kineograph.jobs.record import JobRecord, JobState, choose_id
from kineograph.store.commit import write_text

RECORD_NAME = "job.json"
LOG_NAME = "log.txt"

_POLL_S = 0.1
_START_LIMIT_S = 60.0
_STOP_LIMIT_S = 40.0  # above the sum of the supervisor's own limits


class LocalRecord(JobRecord):
    """A job record with what its supervisor needs to start, stop and recognise it."""

    argv: list[str]
    cwd: str
    env: dict[str, str]
    pid: int
    pid_started: float
    """Start time of the process ``pid``, so that a reused pid is not taken for the job."""


class LocalJobs:
    """The jobs kept under one runs directory."""

    def __init__(self, runs_dir: str | Path) -> None:
        self.folder = Path(runs_dir).resolve() / "jobs"

    def submit(self, plan: JobPlan, again: bool = False) -> tuple[JobRecord, bool]:
        """Start ``plan``, or find the job that does the same: its record, and whether it was there before."""
        while True:
            job_id, found = choose_id(plan.job_id, self.get, again)
            if found is not None:
                return found, True
            if self._claim(job_id, plan):
                return self._start(job_id), False

    def get(self, job_id: str) -> LocalRecord | None:
        """The record of ``job_id``, or None. A job whose supervisor vanished counts as failed."""
        record = self._read(job_id)
        if record is None or record.state.is_final or is_alive(record.pid, record.pid_started):
            return record
        # The supervisor may have written its last word between the two looks.
        record = self._read(job_id) or record
        if record.state.is_final:
            return record
        return record.model_copy(
            update={
                "state": JobState.FAILED,
                "detail": "its process vanished: killed, or a reboot",
            }
        )

    def records(self) -> list[JobRecord]:
        """Every job, newest first."""
        found = [self.get(path.parent.name) for path in self.folder.glob(f"*/{RECORD_NAME}")]
        return sorted((r for r in found if r), key=lambda r: r.submitted or 0.0, reverse=True)

    def logs(self, job_id: str) -> str:
        """What the job has printed so far."""
        self._require(job_id)
        path = self.folder / job_id / LOG_NAME
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    def follow(self, job_id: str, write: Callable[[str], None]) -> JobRecord:
        """Pass the job's log to ``write`` from its beginning until the job ends; returns its last record."""
        self._require(job_id)
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        path = self.folder / job_id / LOG_NAME
        position = 0
        while True:
            record = self._require(job_id)  # before the read: what is printed before the end is never missed
            piece = _read_from(path, position)
            if piece:
                position += len(piece)
                write(decoder.decode(piece))
            elif record.state.is_final:
                return record
            else:
                time.sleep(_POLL_S)

    def stop(self, job_id: str) -> JobRecord:
        """Interrupt the job as Ctrl-C would, kill what does not end, and return its last record."""
        record = self._require(job_id)
        if record.state.is_final:
            return record
        os.kill(record.pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_LIMIT_S
        while time.monotonic() < deadline:
            record = self._require(job_id)
            if record.state.is_final:
                return record
            time.sleep(_POLL_S)
        raise Failure(f"job {job_id} does not stop: look at process {record.pid}")

    def _claim(self, job_id: str, plan: JobPlan) -> bool:
        """Make the job's folder with a pending record, whole or not at all; False when another was first."""
        folder = self.folder / job_id
        recipe = folder / plan.recipe_name
        argv = plan.argv(recipe)
        record = LocalRecord(
            id=job_id,
            kind=plan.kind,
            state=JobState.PENDING,
            command=shlex.join(argv),
            submitted=time.time(),
            argv=argv,
            cwd=str(Path.cwd()),
            env=plan.env,
            pid=os.getpid(),
            pid_started=psutil.Process().create_time(),
        )
        staged = self.folder / f".{job_id}-{uuid.uuid4().hex[:8]}"
        try:
            staged.mkdir(parents=True)
            write_text(staged / plan.recipe_name, plan.recipe_text)
            save_record(staged, record)
            os.rename(staged, folder)
        except OSError as error:
            if folder.is_dir():
                return False
            raise Failure(f"cannot write {folder}: {error.strerror}") from error
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        return True

    def _start(self, job_id: str) -> JobRecord:
        """Start the supervisor and wait for its first word: from then on the job needs no submitter."""
        folder = self.folder / job_id
        with open(folder / LOG_NAME, "ab") as log:
            supervisor = subprocess.Popen(
                [sys.executable, "-m", "kineograph.jobs.runner", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_LIMIT_S
        while time.monotonic() < deadline:
            record = self._require(job_id)
            if record.state is not JobState.PENDING:
                return record
            if supervisor.poll() is not None:
                break
            time.sleep(_POLL_S)
        raise Failure(f"job {job_id} did not start: see {folder / LOG_NAME}")

    def _read(self, job_id: str) -> LocalRecord | None:
        if not job_id or "/" in job_id or job_id.startswith("."):
            return None
        try:
            return load_record(self.folder / job_id)
        except FileNotFoundError:
            return None

    def _require(self, job_id: str) -> LocalRecord:
        record = self.get(job_id)
        if record is None:
            raise UserError(f"no job {job_id} under {self.folder}: 'kineo jobs list' shows what is there")
        return record


def load_record(folder: Path) -> LocalRecord:
    """Read the record in a job's folder. Raises FileNotFoundError, or Failure when it is damaged."""
    path = folder / RECORD_NAME
    try:
        return LocalRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise Failure(f"{path} is damaged: delete {folder} and submit again") from error


def save_record(folder: Path, record: LocalRecord) -> None:
    """Commit ``record`` as the one in ``folder``."""
    write_text(folder / RECORD_NAME, record.model_dump_json(indent=2) + "\n")


def is_alive(pid: int, started: float) -> bool:
    """Whether the process that had ``pid`` and began at ``started`` still runs."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _read_from(path: Path, position: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(position)
            return file.read(1 << 16)
    except FileNotFoundError:
        return b""
