"""`kineo train`."""

from __future__ import annotations

from pathlib import Path

import click

from kineograph.cli.output import emit, json_option, set_option

EPILOG = """\b
Examples:
  kineo train demo --data runs/data --out runs/train
  kineo train demo --data runs/data --out runs/train --set steps=2000     go on for longer
  kineo train recipe.yaml --dry-run                                       what would be trained
  kineo train vae --data runs/data --out runs/vae                         an autoencoder, for encode.latents and diffusion
  kineo train classifier-shape --data runs/data --out runs/shape          a classifier, for filters and evaluation
"""


@click.command(epilog=EPILOG)
@click.argument("recipe")
@click.option("--data", type=click.Path(path_type=Path), help="Curation run to train on; else data.run of the recipe.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/train"),
    show_default=True,
    help="Run directory.",
)
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@set_option
@json_option
def train(recipe: str, data: Path | None, out: Path, dry_run: bool, overrides: tuple[str, ...], as_json: bool) -> None:
    """Train a model from RECIPE, a YAML file or the name of a shipped recipe, whose kind is diffusion, vae or
    classifier.

    The same command goes on from the last checkpoint of --out.
    """
    from kineograph.cli.recipes import recipe_path
    from pipelines.train.registry import load_train_recipe

    config = load_train_recipe(recipe_path("train", recipe), overrides)
    if dry_run:
        from pipelines.train.pipeline import plan
        from pipelines.train.preflight import preflight_text

        facts = plan(config, data, out)
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
