"""The places where jobs run, behind one set of verbs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from kineograph.jobs.cluster import ClusterConfig
from kineograph.jobs.local import LocalJobs
from kineograph.jobs.plan import JobPlan
from kineograph.jobs.ray import RayJobs
from kineograph.jobs.record import JobRecord


class Jobs(Protocol):
    """What every place can do."""

    def submit(self, plan: JobPlan, again: bool = False) -> tuple[JobRecord, bool]: ...

    def get(self, job_id: str) -> JobRecord | None: ...

    def records(self) -> list[JobRecord]: ...

    def logs(self, job_id: str) -> str: ...

    def follow(self, job_id: str, write: Callable[[str], None]) -> JobRecord: ...

    def stop(self, job_id: str) -> JobRecord: ...


def jobs_of(cluster: ClusterConfig) -> Jobs:
    """The jobs of ``cluster``. Raises Failure when it does not answer."""
    if cluster.kind == "local":
        return LocalJobs(cluster.runs_dir or "runs")
    return RayJobs(cluster)
