"""Plan a job: the command it runs, what travels with it, and an id that the same request always gets."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kineograph.config import digest
from kineograph.errors import RecipeError, UserError
from kineograph.jobs.cluster import ClusterConfig, is_absolute

RECIPE = "{recipe}"
"""Stands in a plan's command for the path of the staged recipe, which differs from place to place."""


@dataclass(frozen=True)
class JobKind:
    """How `kineo` runs one kind of job, and the path options it takes."""

    subcommand: tuple[str, ...]
    options: tuple[str, ...]


KINDS: dict[str, JobKind] = {
    "data": JobKind(("data", "run"), ("input", "out")),
    "train": JobKind(("train",), ("data", "out")),
    "eval": JobKind(("eval",), ("checkpoint", "data", "out")),
}


@dataclass(frozen=True)
class JobPlan:
    """Everything about a job that is known before it starts. Two equal requests give equal plans."""

    job_id: str
    kind: str
    command: tuple[str, ...]
    """The argument list, with RECIPE where the recipe's path goes."""
    recipe_name: str
    recipe_text: str
    cluster: ClusterConfig
    env: dict[str, str] = field(default_factory=dict)

    def argv(self, recipe: str | Path) -> list[str]:
        """The argument list with the staged ``recipe`` in place."""
        return [str(recipe) if part == RECIPE else part for part in self.command]

    def facts(self) -> dict[str, Any]:
        """The plan as plain values, for --dry-run."""
        return {
            "id": self.job_id,
            "kind": self.kind,
            "on": self.cluster.kind,
            "where": self.cluster.where,
            "command": self.argv(self.recipe_name),
            "env": self.env,
            "uploads": [str(p) for p in packages_to_ship()]
            if self.cluster.kind == "ray" and self.cluster.ship_code
            else [],
        }


def plan_job(
    kind: str,
    recipe: Path,
    cluster: ClusterConfig,
    paths: Mapping[str, str],
    overrides: Sequence[str] = (),
    cwd: Path | None = None,
) -> JobPlan:
    """Plan ``kineo <kind> recipe`` on ``cluster``.

    ``paths`` are those of --input, --data, --checkpoint, --out that were given; here they become
    absolute, elsewhere they must be so already. Raises UserError when an option does not fit the kind.
    """
    cwd = Path.cwd() if cwd is None else cwd
    job_kind = KINDS[kind]
    try:
        recipe_text = recipe.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read recipe {recipe}: {error}") from error
    options: list[str] = []
    for name, value in _with_out(kind, cluster, paths, cwd).items():
        if name not in job_kind.options:
            takes = ", ".join(f"--{option}" for option in job_kind.options)
            raise UserError(f"a {kind} job takes no --{name}, only {takes} and --set")
        options += [f"--{name}", _resolve(name, value, cluster, cwd)]
    for override in overrides:
        options += ["--set", override]
    key = digest([kind, recipe_text, options, cluster.model_dump(mode="json")])
    stem = re.sub(r"[^a-zA-Z0-9]+", "-", recipe.stem).strip("-").lower() or "recipe"
    python = cluster.python or (sys.executable if cluster.is_here else "python")
    return JobPlan(
        job_id=f"{kind}-{stem}-{key[:10]}",
        kind=kind,
        command=(python, "-m", "kineograph.cli.main", *job_kind.subcommand, RECIPE, *options),
        recipe_name=recipe.name,
        recipe_text=recipe_text,
        cluster=cluster,
        env=dict(cluster.env),
    )


def packages_to_ship() -> list[Path]:
    """The folders of the packages with the submitter's code, found without importing the pipelines."""
    folders = []
    for name in ("kineograph", "pipelines"):
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"the package {name} is not installed here: set ship_code: false in the cluster file")
        folders.append(Path(next(iter(spec.submodule_search_locations))).resolve())
    return folders


def _with_out(kind: str, cluster: ClusterConfig, paths: Mapping[str, str], cwd: Path) -> dict[str, str]:
    """``paths`` with an --out: a Ray job starts in a folder of its own that vanishes, so it must be told."""
    given = {name: value for name, value in paths.items() if value}
    if "out" in given or (cluster.kind == "local" and cluster.runs_dir is None):
        return given
    if not cluster.is_here and cluster.runs_dir is None:
        raise UserError(f"where should {cluster.address} write? Give --out, or set runs_dir in the cluster file")
    runs_dir = cluster.runs_dir or str(cwd / "runs")
    return {**given, "out": f"{runs_dir.rstrip('/')}/{kind}"}


def _resolve(name: str, value: str, cluster: ClusterConfig, cwd: Path) -> str:
    if is_absolute(value):
        return value
    if cluster.is_here:
        return str((cwd / Path(value).expanduser()).resolve())
    raise UserError(f"--{name} {value}: {cluster.address} is another machine, give an absolute path or a URL")
