"""The run directory between stages: whose it is, what was found, what has been measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kineograph.config import dump_yaml, load_recipe
from kineograph.errors import Failure, RecipeError, UserError
from kineograph.store.commit import remove_leftovers, write_json, write_text
from kineograph.store.manifest import SUCCESS_NAME
from pipelines.data import signals
from pipelines.data.config import CurateConfig
from pipelines.data.ledger import Outcome
from pipelines.data.sources import Source
from pipelines.data.work import analysis_path

RECIPE_NAME = "recipe.yaml"
SOURCES_NAME = "work/sources.json"


def check_run_directory(run: Path) -> None:
    """Raise UserError when ``run`` holds something that is no curation run."""
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} exists and is no directory: give another --out")
    if run.is_dir() and any(run.iterdir()):
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


def load_outcomes(run: Path, config: CurateConfig) -> list[Outcome]:
    """Every source with what was measured on it, sorted by uri. Raises Failure when a stored analysis is
    damaged."""
    require_analysed(run)
    outcomes = []
    for line in json.loads((run / SOURCES_NAME).read_text(encoding="utf-8")):
        source, source_id = Source.from_json(line["source"]), line["source_id"]
        if "detail" in line:  # its content was not read
            outcomes.append(Outcome(source, source_id, line["bytes"], 0.0, None, line["reason"], line["detail"]))
            continue
        path = analysis_path(run, source_id, config)
        try:
            stored = signals.load(path)
            analysis = signals.parse(stored["result"]) if stored["result"] else None
        except (OSError, EOFError, ValueError, KeyError) as error:
            raise Failure(f"{path} is damaged or gone: run the same 'kineo data run' again") from error
        outcomes.append(
            Outcome(
                source,
                source_id,
                line["bytes"],
                stored["analysis_s"],
                analysis,
                stored["reason"],
                stored["detail"],
            )
        )
    return outcomes
