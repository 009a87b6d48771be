"""`kineo eval`: grade a checkpoint and attach the scores to its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kineograph.cli.output import emit, json_option, set_option


@click.command(
    "eval",
    epilog="""\b
Examples:
  kineo eval demo --checkpoint runs/train --data runs/data
  kineo eval demo --checkpoint runs/train/checkpoints/step-00001000 --set videos=256
  kineo eval demo --checkpoint runs/train --set 'prompts=[a red circle moving left]' --set videos=8 --json
Exits with 1 when the gate of the recipe is missed; the report is there all the same.
""",
)
@click.argument("recipe")
@click.option(
    "--checkpoint",
    required=True,
    type=click.Path(path_type=Path),
    help="A training run, of which the newest checkpoint is taken, or a checkpoint folder.",
)
@click.option("--data", type=click.Path(path_type=Path), help="The curation run, for the validation loss.")
@click.option("--out", type=click.Path(path_type=Path), help="Directory of the report; RUN/eval/step-… if not given.")
@set_option
@json_option
def evaluate(
    recipe: str,
    checkpoint: Path,
    data: Path | None,
    out: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Grade a checkpoint by RECIPE: a YAML file, or the name of one that ships (demo)."""
    from kineograph.cli.recipes import read_recipe
    from pipelines.eval.config import EvalConfig

    config = read_recipe("eval", recipe, EvalConfig, overrides)

    # torch and what it brings: imported when the recipe is right
    from pipelines.eval.pipeline import grade_checkpoint, hold_to_gate

    facts = grade_checkpoint(config, checkpoint, data, out)
    emit(facts, as_json, scores_text(facts))
    hold_to_gate(facts)


def scores_text(facts: dict[str, Any]) -> str:
    """The scores as a table, and where the report is."""
    lines = [f"{'score':<27}{'value':>8}{'interval':>17}{'chance':>8}{'N':>7}"]
    for score in facts["metrics"]:
        interval = f"[{score['ci_low']:.3f}, {score['ci_high']:.3f}]"
        chance = "" if score["chance"] is None else f"{score['chance']:.3f}"
        lines.append(f"{score['name']:<27}{score['value']:>8.3f}{interval:>17}{chance:>8}{score['n']:>7}")
    lines += [f"note: {note}" for note in facts["notes"]]
    if facts["gate"]["conditions"]:
        lines.append("gate: passed" if facts["gate"]["passed"] else "gate: missed")
    return "\n".join([*lines, f"report: {facts['out']}/report.html"])
