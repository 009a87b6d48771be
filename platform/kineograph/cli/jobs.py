"""`kineo jobs`: what was submitted, what it says, and how to stop it."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from kineograph.cli.output import emit, json_option
from kineograph.cli.submit import cluster_options, record_facts, resolve_cluster

if TYPE_CHECKING:
    from kineograph.jobs.record import JobRecord

EPILOG = """\b
Examples:
  kineo jobs list
  kineo jobs list --on ray
  kineo jobs logs data-demo-3f2a9c01be --on ray --follow
  kineo jobs stop data-demo-3f2a9c01be --on ray --cluster clusters/ray-on-prem.yaml
"""


@click.group(epilog=EPILOG)
def jobs() -> None:
    """List, follow and stop submitted jobs. Without --on: those on this machine, under ./runs."""


@jobs.command("list", epilog=EPILOG)
@cluster_options
@json_option
def list_jobs(on: str | None, cluster_file: str | None, as_json: bool) -> None:
    """The jobs, newest first."""
    from kineograph.jobs.backends import jobs_of

    cluster = resolve_cluster(on, cluster_file)
    records = jobs_of(cluster).records()
    facts = {"where": cluster.where, "jobs": [record_facts(record) for record in records]}
    emit(facts, as_json, _table(records) if records else f"no jobs on {cluster.where}")


@jobs.command("logs", epilog=EPILOG)
@click.argument("job_id")
@cluster_options
@click.option("--follow", "-f", is_flag=True, help="Wait until the job ends; return its exit code.")
@json_option
def logs(job_id: str, on: str | None, cluster_file: str | None, follow: bool, as_json: bool) -> int:
    """What a job has printed."""
    from kineograph.jobs.backends import jobs_of

    place = jobs_of(resolve_cluster(on, cluster_file))
    if not follow or as_json:
        text = place.logs(job_id)
        emit({"id": job_id, "log": text}, as_json, text.rstrip("\n"))
        return 0

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    return place.follow(job_id, write).shell_exit_code


@jobs.command("stop", epilog=EPILOG)
@click.argument("job_id")
@cluster_options
@json_option
def stop(job_id: str, on: str | None, cluster_file: str | None, as_json: bool) -> None:
    """Stop a job and all it started. What it has committed is kept."""
    from kineograph.jobs.backends import jobs_of

    record = jobs_of(resolve_cluster(on, cluster_file)).stop(job_id)
    emit(record_facts(record), as_json, f"job {record.id} {record.state.value}")


def _table(records: list[JobRecord]) -> str:
    from kineograph.progress import duration

    now = time.time()
    rows = [("JOB", "KIND", "STATE", "EXIT", "SUBMITTED", "TOOK")]
    for record in records:
        started = record.submitted
        rows.append(
            (
                record.id,
                record.kind or "-",
                record.state.value,
                str(record.shell_exit_code) if record.state.is_final else "",
                time.strftime("%Y-%m-%d %H:%M", time.localtime(started)) if started else "",
                duration((record.ended or now) - started)
                if started and (record.ended or not record.state.is_final)
                else "",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
