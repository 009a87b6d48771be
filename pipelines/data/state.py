"""The run directory between stages: whose it is, what was found, what has been measured."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kineograph.config import dump_yaml, load_recipe
from kineograph.errors import RecipeError, UserError
from kineograph.store.commit import remove_leftovers, write_json, write_text
from kineograph.store.manifest import SUCCESS_NAME
from pipelines.data.config import CurateConfig

RECIPE_NAME = "recipe.yaml"
SOURCES_NAME = "work/sources.json"
LOCK_NAME = ".lock"


def check_run_directory(run: Path) -> None:
    """Raise UserError when ``run`` holds something that is no curation run."""
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} exists and is no directory: give another --out")
    # A kill while the recipe was written first leaves a lock and a temporary file, and nothing of anybody's.
    if run.is_dir() and any(not path.name.startswith((LOCK_NAME, f"{RECIPE_NAME}.")) for path in run.iterdir()):
        try:
            load_config(run)
        except UserError as error:
            raise UserError(f"{run} exists and is no curation run: give another --out") from error


def load_config(run: Path) -> CurateConfig:
    """The resolved recipe of ``run``. Raises UserError when it has none."""
    if not (run / RECIPE_NAME).is_file():
        raise UserError(f"{run} is no curation run: make one with 'kineo data run RECIPE --input DIR --out {run}'")
    try:
        return load_recipe(run / RECIPE_NAME, CurateConfig)
    except RecipeError as error:
        raise UserError(f"{run} is no curation run of this version: {error}") from error


def open_run(run: Path, config: CurateConfig) -> None:
    """Begin to change ``run``: from here to the end of the work it is not a finished dataset."""
    (run / SUCCESS_NAME).unlink(missing_ok=True)
    if run.is_dir():
        remove_leftovers(run)
    write_text(run / RECIPE_NAME, dump_yaml(config))


def save_sources(run: Path, results: list[dict[str, Any]]) -> None:
    """Commit what the analysis found, a line for each source, sorted by uri."""
    write_json(run / SOURCES_NAME, sorted(results, key=lambda result: result["source"]["uri"]))


def require_analysed(run: Path) -> None:
    """Raise UserError when the sources of ``run`` have not all been analysed."""
    if not (run / SOURCES_NAME).is_file():
        raise UserError(f"{run} has not been analysed to its end: run the same 'kineo data run' again")


def load_sources(run: Path) -> list[dict[str, Any]]:
    """The lines of :func:`save_sources`: source, source_id, bytes, reason, detail, analysis_s and facts, or None where
    nothing could be measured."""
    require_analysed(run)
    lines: list[dict[str, Any]] = json.loads((run / SOURCES_NAME).read_text(encoding="utf-8"))
    return lines


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold ``run`` for one process. Raises UserError when another is at work on it."""
    run.mkdir(parents=True, exist_ok=True)
    with open(run / LOCK_NAME, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another command is at work on {run}: wait for it, or give another --out") from error
        yield
