"""`kineo train`."""

from __future__ import annotations

from pathlib import Path

import click

from kineograph.cli.output import emit, json_option, set_option

EPILOG = """\b
Examples:
  kineo train demo --data runs/data --out runs/train
  kineo train demo --data runs/data --out runs/train --set steps=2000     go on for longer
  kineo train demo --data runs/data --dry-run                             what would be trained: clips, memory, time, cost
  kineo train demo --data runs/data --plan --ranks 8 --ranks 64           how evenly its steps would be dealt to ranks
  kineo train vae --data runs/data --out runs/vae                         an autoencoder, for encode.latents and diffusion
  kineo train classifier-shape --data runs/data --out runs/shape          a classifier, for filters and evaluation
"""


@click.command(epilog=EPILOG)
@click.argument("recipe")
@click.option("--data", help="Curation run to train on, a directory or s3://BUCKET/RUN; else data.run of the recipe.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/train"),
    show_default=True,
    help="Run directory.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be trained and stop.")
@click.option("--plan", "show_plan", is_flag=True, help="As --dry-run, and simulate how steps are dealt to ranks.")
@click.option(
    "--ranks", type=click.IntRange(1), multiple=True, help="Ranks to simulate, with --plan; else 8, 64 and 512."
)
@click.option(
    "--plan-steps", type=click.IntRange(1), default=1000, show_default=True, help="Steps to simulate, with --plan."
)
@set_option
@json_option
def train(
    recipe: str,
    data: str | None,
    out: Path,
    dry_run: bool,
    show_plan: bool,
    ranks: tuple[int, ...],
    plan_steps: int,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train a model from RECIPE, a YAML file or the name of a shipped recipe, whose kind is diffusion, vae or
    classifier.

    The same command goes on from the last checkpoint of --out. SIGTERM, Ctrl-C or a file --out/stop save a checkpoint and
    leave.
    """
    from kineograph.cli.recipes import recipe_path
    from pipelines.train.registry import load_train_recipe

    config = load_train_recipe(recipe_path("train", recipe), overrides)
    if dry_run or show_plan:
        from pipelines.train.pipeline import plan
        from pipelines.train.preflight import preflight_text

        facts = plan(config, data, out, (ranks or None) if show_plan else (), plan_steps)
        emit(facts, as_json, preflight_text(facts))
        return
    from pipelines.train.pipeline import train as run_training

    made = run_training(config, data, out)
    lines = (
        f"checkpoint {made['checkpoint']}",
        f"mlflow     run {made['mlflow']['run_id']} in {made['mlflow']['uri']}",
        *made["advice"],
    )
    emit(made, as_json, "\n".join(lines))
