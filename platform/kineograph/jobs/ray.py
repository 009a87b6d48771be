"""Jobs on a running Ray cluster, through Ray's Jobs API."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shlex
import socket
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kineograph.errors import Failure, UserError
from kineograph.jobs.cluster import ClusterConfig
from kineograph.jobs.plan import JobPlan, packages_to_ship
from kineograph.jobs.record import JobRecord, JobState, choose_id

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

# Both override the address that is given to JobSubmissionClient, without a word.
_OVERRIDES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
_UPLOAD_EXCLUDES = ["**/.git", "**/__pycache__", "*.pyc"]
_CHATTY = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
_KIND_KEY = "kineograph_kind"
_POLL_S = 0.5
_CONNECT_LIMIT_S = 5.0
# What Ray itself writes into a job's log: how it was started, and how its driver joined the cluster.
_NOISE = re.compile(
    r"^(Running entrypoint for job "
    r"|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+\s+INFO (worker|job_manager|packaging|node|usage_lib)\.py:\d+)"
)


class RayJobs:
    """The jobs of the Ray cluster whose dashboard is at ``cluster.address``."""

    def __init__(self, cluster: ClusterConfig) -> None:
        self.address = cluster.address.rstrip("/")
        self._client = _connect(self.address, cluster.is_here)

    def submit(self, plan: JobPlan, again: bool = False) -> tuple[JobRecord, bool]:
        """Start ``plan``, or find the job that does the same: its record, and whether it was there before."""
        while True:
            known = {record.id: record for record in self.records()}
            job_id, found = choose_id(plan.job_id, known.get, again)
            if found is not None:
                return found, True
            with tempfile.TemporaryDirectory(prefix="kineograph-job-") as staged:
                (Path(staged) / plan.recipe_name).write_text(plan.recipe_text, encoding="utf-8")
                try:
                    with _errors_of(self.address):
                        self._client.submit_job(
                            # Ray takes a string and gives it to a shell.
                            entrypoint=shlex.join(plan.argv(plan.recipe_name)),
                            submission_id=job_id,
                            runtime_env=runtime_env(plan, staged),
                            metadata={_KIND_KEY: plan.kind},
                            entrypoint_num_cpus=plan.cluster.entrypoint_num_cpus or None,
                        )
                except Failure:
                    if self.get(job_id) is None:
                        raise
                    continue  # another submitter of the same job was a moment faster: attach to its job
            return self._require(job_id), False

    def get(self, job_id: str) -> JobRecord | None:
        """The record of ``job_id``, or None."""
        return next((record for record in self.records() if record.id == job_id), None)

    def records(self) -> list[JobRecord]:
        """Every submitted job that the cluster remembers, newest first."""
        with _errors_of(self.address):
            found = [_to_record(d) for d in self._client.list_jobs() if d.submission_id]
        return sorted(found, key=lambda r: r.submitted or 0.0, reverse=True)

    def logs(self, job_id: str) -> str:
        """What the job has printed so far, without Ray's own lines."""
        self._require(job_id)
        with _errors_of(self.address):
            text: str = self._client.get_job_logs(job_id)
        return "".join(line for line in text.splitlines(keepends=True) if not _NOISE.match(line))

    def follow(self, job_id: str, write: Callable[[str], None]) -> JobRecord:
        """Pass the job's log to ``write`` from its beginning until the job ends; returns its last record."""
        import aiohttp

        log = _Log(write)
        failures = 0
        while True:
            try:
                asyncio.run(self._tail(job_id, log))
                failures = 0
            except (aiohttp.ClientError, RuntimeError, OSError, asyncio.TimeoutError) as error:
                failures += 1
                if failures > 10:
                    raise Failure(
                        f"the log of {job_id} at {self.address} broke off: {_one_line(error)}; "
                        f"the job may go on, look with 'kineo jobs list --on ray'"
                    ) from error
            record = self._require(job_id)
            if record.state.is_final:
                log.close()
                return record
            log.restart()
            time.sleep(_POLL_S)

    def stop(self, job_id: str) -> JobRecord:
        """Ask the cluster to stop the job, wait until it has ended, and return its last record."""
        record = self._require(job_id)
        if record.state.is_final:
            return record
        with _errors_of(self.address):
            self._client.stop_job(job_id)
        deadline = time.monotonic() + 60.0
        while time.monotonic() < deadline:
            record = self._require(job_id)
            if record.state.is_final:
                return record
            time.sleep(_POLL_S)
        raise Failure(f"job {job_id} at {self.address} does not stop: see the dashboard there")

    async def _tail(self, job_id: str, log: _Log) -> None:
        async for piece in self._client.tail_job_logs(job_id):
            log.feed(piece)

    def _require(self, job_id: str) -> JobRecord:
        record = self.get(job_id)
        if record is None:
            raise UserError(f"no job {job_id} at {self.address}: 'kineo jobs list --on ray' shows what is there")
        return record


class _Log:
    """Passes whole lines on, without Ray's own, and never twice when the connection had to be made anew."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._seen = self._skip = 0
        self._partial = ""

    def feed(self, piece: str) -> None:
        skipped = piece[: self._skip]
        piece = piece[self._skip :]
        self._skip -= len(skipped)
        self._seen += len(piece)
        *lines, self._partial = (self._partial + piece).split("\n")
        for line in lines:
            if not _NOISE.match(line):
                self._write(line + "\n")

    def restart(self) -> None:
        """The log comes from its beginning again."""
        self._skip = self._seen

    def close(self) -> None:
        if self._partial and not _NOISE.match(self._partial):
            self._write(self._partial + "\n")
        self._partial = ""


def runtime_env(plan: JobPlan, staged: str | Path) -> dict[str, Any]:
    """What Ray sets up for the job: the recipe's folder, the submitter's code, the environment."""
    env: dict[str, Any] = {
        "working_dir": str(staged),
        "excludes": _UPLOAD_EXCLUDES,
        "env_vars": {"PYTHONUNBUFFERED": "1", **plan.env},
    }
    if plan.cluster.ship_code:
        env["py_modules"] = [str(folder) for folder in packages_to_ship()]
    return env


def _connect(address: str, is_here: bool) -> JobSubmissionClient:
    url = urlsplit(address)
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        # Ray's client has no time limit of its own.
        socket.create_connection((url.hostname, port), timeout=_CONNECT_LIMIT_S).close()
    except OSError as error:
        raise Failure(
            f"no Ray cluster answers at {address}: start one with 'ray start --head', "
            f"or name another in a cluster file (--cluster FILE)"
        ) from error
    choose_auth_mode(address, is_here)
    from ray.job_submission import JobSubmissionClient

    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    with _without_overrides(), _errors_of(address):
        return JobSubmissionClient(address)


def choose_auth_mode(address: str, is_here: bool) -> None:
    """Turn Ray's tokens on where a cluster on this machine asks for one. Call before importing ray.

    `ray start` asks for tokens on its own as soon as an earlier ``ray.init`` has left one in the user's home,
    and ``ray.init`` answers with it; Ray's job client does not unless told. A token goes to another machine
    only when the user says so.
    """
    if "RAY_AUTH_MODE" in os.environ or not _asks_for_token(address):
        return
    if not is_here:
        raise Failure(f"the Ray cluster at {address} asks for a token: set RAY_AUTH_MODE=token, with its token")
    os.environ["RAY_AUTH_MODE"] = "token"


def _asks_for_token(address: str) -> bool:
    try:
        # The address was checked to be http or https when the cluster file was read.
        urllib.request.urlopen(f"{address}/api/version", timeout=_CONNECT_LIMIT_S).close()  # noqa: S310
    except urllib.error.HTTPError as error:
        error.close()
        return error.code == 401
    except OSError:
        return False  # the client's own words say it better
    return False


@contextlib.contextmanager
def _without_overrides() -> Iterator[None]:
    saved = {name: os.environ.pop(name) for name in _OVERRIDES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(saved)


@contextlib.contextmanager
def _errors_of(address: str) -> Iterator[None]:
    """Turn what Ray's client raises into one line."""
    from ray.exceptions import RayError

    try:
        yield
    except OSError as error:  # what requests raises is one
        raise Failure(f"the Ray cluster at {address} no longer answers: is its head node up?") from error
    except (RayError, RuntimeError, ValueError, KeyError) as error:
        raise Failure(f"the Ray cluster at {address} refused: {_one_line(error)}") from error


def _to_record(details: JobDetails) -> JobRecord:
    state = JobState(details.status.value.lower())
    return JobRecord(
        id=details.submission_id,
        kind=(details.metadata or {}).get(_KIND_KEY, ""),
        state=state,
        command=details.entrypoint,
        submitted=None if details.start_time is None else details.start_time / 1000,
        ended=None if details.end_time is None else details.end_time / 1000,
        exit_code=details.driver_exit_code,
        # Ray's message repeats the log's tail where the driver gave an exit code.
        detail=_one_line(details.message or "")
        if state is JobState.FAILED and details.driver_exit_code is None
        else "",
    )


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:300]
