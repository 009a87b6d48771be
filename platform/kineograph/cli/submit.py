"""`kineo submit`: the same run, somewhere else."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from kineograph.cli.output import emit, json_option, set_option

if TYPE_CHECKING:
    from kineograph.jobs.backends import Jobs
    from kineograph.jobs.cluster import ClusterConfig
    from kineograph.jobs.record import JobRecord

EPILOG = """\b
Examples:
  kineo submit data demo --input raw/ --out runs/data --on ray
  kineo submit train demo --data runs/data --out runs/train --on ray --cluster clusters/ray-on-prem.yaml
  kineo submit eval demo --checkpoint runs/train --data runs/data --on local --detach
  kineo submit data my.yaml --input raw/ --on ray --dry-run

\b
The same request gets the same id: submitting it twice follows the job that runs, or tells that it succeeded.
A job that failed or was stopped is submitted again, as <id>-2, <id>-3, and goes on from what it kept.
"""


def cluster_options(command: click.decorators.FC) -> click.decorators.FC:
    """Add ``--on`` and ``--cluster``."""
    command = click.option(
        "--cluster",
        "cluster_file",
        type=click.Path(),
        metavar="FILE",
        help="A file such as clusters/ray-on-prem.yaml.",
    )(command)
    return click.option(
        "--on", type=click.Choice(["local", "ray"]), help="Where to run; default: as FILE says, or local."
    )(command)


def resolve_cluster(on: str | None, cluster_file: str | None) -> ClusterConfig:
    """The cluster that ``--on`` and ``--cluster`` mean together."""
    from kineograph.errors import UserError
    from kineograph.jobs.cluster import ClusterConfig, load_cluster

    if cluster_file is None:
        return ClusterConfig.model_validate({"kind": on or "local"})
    cluster = load_cluster(cluster_file)
    if on is not None and on != cluster.kind:
        raise UserError(f"--on {on} does not fit {cluster_file}, which is of kind {cluster.kind}")
    return cluster


@click.command(epilog=EPILOG)
@click.argument("kind", type=click.Choice(["data", "train", "eval"]))
@click.argument("recipe")
@cluster_options
@click.option("--input", metavar="DIR", help="Raw videos (data).")
@click.option("--data", metavar="RUN", help="A curation run (train, eval).")
@click.option("--checkpoint", metavar="CKPT", help="What to grade (eval).")
@click.option("--out", metavar="RUN", help="The run's directory.")
@set_option
@click.option("--dry-run", is_flag=True, help="Show what would be submitted, and do nothing.")
@click.option("--detach", is_flag=True, help="Do not follow the log; return when the job is submitted.")
@click.option("--again", is_flag=True, help="Submit also when the same job has succeeded before.")
@json_option
def submit(
    kind: str,
    recipe: str,
    on: str | None,
    cluster_file: str | None,
    input: str | None,
    data: str | None,
    checkpoint: str | None,
    out: str | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    detach: bool,
    again: bool,
    as_json: bool,
) -> int:
    """Run RECIPE as a job, follow its log, and return its exit code."""
    from kineograph.cli.recipes import recipe_path
    from kineograph.jobs.backends import jobs_of
    from kineograph.jobs.plan import plan_job
    from kineograph.progress import say

    cluster = resolve_cluster(on, cluster_file)
    paths = {"input": input, "data": data, "checkpoint": checkpoint, "out": out}
    given = {name: path for name, path in paths.items() if path}
    plan = plan_job(kind, recipe_path(kind, recipe), cluster, given, overrides)
    if dry_run:
        facts = plan.facts()
        text = "\n".join(
            f"{name:<8} {shlex.join(value) if name == 'command' else value}" for name, value in facts.items()
        )
        emit(facts, as_json, text)
        return 0

    jobs = jobs_of(cluster)
    record, attached = jobs.submit(plan, again)
    if attached and record.state.is_final:
        say(f"job {record.id} has succeeded already on {cluster.where}; --again runs it once more")
    else:
        say(f"job {record.id} {'runs already' if attached else 'submitted'} on {cluster.where}")
        if not detach:
            record = follow_to_end(jobs, record.id, cluster, as_json)
    emit(
        {**record_facts(record), "attached": attached, "where": cluster.where},
        as_json,
        _closing(record, cluster),
    )
    return record.shell_exit_code if record.state.is_final else 0


def follow_to_end(jobs: Jobs, job_id: str, cluster: ClusterConfig, as_json: bool) -> JobRecord:
    """Show the job's log until it ends. Ctrl-C stops a local job; a job on a cluster goes on."""
    from kineograph.progress import say

    stream = sys.stderr if as_json else sys.stdout

    def write(text: str) -> None:
        stream.write(text)
        stream.flush()

    try:
        return jobs.follow(job_id, write)
    except KeyboardInterrupt:
        if cluster.kind != "local":
            say(f"the job goes on; stop it with: kineo jobs stop {job_id} --on {cluster.kind}")
            raise
        say(f"stopping job {job_id}")
        return jobs.stop(job_id)


def record_facts(record: JobRecord) -> dict[str, Any]:
    """A job as plain values, for --json."""
    fields = {"id", "kind", "state", "command", "submitted", "ended", "exit_code", "detail"}
    return record.model_dump(mode="json", include=fields)


def _closing(record: JobRecord, cluster: ClusterConfig) -> str:
    if not record.state.is_final:
        place = "" if cluster.kind == "local" else f" --on {cluster.kind}"
        return f"follow it with: kineo jobs logs {record.id}{place} --follow"
    reason = f": {record.detail}" if record.detail else ""
    exit_code = "" if record.exit_code in (None, 0) else f" with exit code {record.shell_exit_code}"
    return f"job {record.id} {record.state.value}{exit_code}{reason}"
