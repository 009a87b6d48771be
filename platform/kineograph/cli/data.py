"""`kineo data`: make, curate and inspect datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kineograph.cli.output import emit, json_option, set_option

RUN = click.argument("run", type=click.Path(path_type=Path))


class InOrderOfUse(click.Group):
    """Lists its commands as they are written below, not by the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=InOrderOfUse,
    epilog="""\b
Examples:
  kineo data synth raw/ --videos 200 --seed 1              raw videos whose truth is known
  kineo data run demo --input raw/ --out runs/data         from raw files to shards
  kineo data decide runs/data --set filters.motion.min=0.2 other thresholds, nothing is decoded again
  kineo data plan runs/data                                what is in which bucket, what is lost and why
  kineo data retry runs/data --reason timeout              try rejected sources again
  kineo data grade runs/data --truth raw/truth.json        precision and recall of every filter
  kineo data verify runs/data                              are all shards as they were written?
""",
)
def data() -> None:
    """Make, curate and inspect datasets."""


@data.command(
    short_help="Render raw videos whose truth is known.",
    epilog="""\b
Examples:
  kineo data synth raw/ --videos 200 --seed 1
  kineo data synth raw/ --videos 20 --images 0 --set max_seconds=5 --json
""",
)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--videos", type=int, help="Files to write, of every kind.")
@click.option("--images", type=float, metavar="SHARE", help="Share of still images, 0..1.")
@click.option("--seed", type=int, help="The same seed gives the same bytes.")
@set_option
@json_option
def synth(
    folder: Path,
    videos: int | None,
    images: float | None,
    seed: int | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Render raw videos whose truth is known into DIR, with captions beside them and truth.json."""
    from kineograph.config import parse_config
    from kineograph.synth.corpus import SynthConfig, write_corpus

    given = {"videos": videos, "images": images, "seed": seed}
    raw = {key: value for key, value in given.items() if value is not None}
    config = parse_config(raw, SynthConfig, overrides, name="synth")
    facts = write_corpus(folder, config)
    made = f"{facts['files']} files, {facts['seconds']:.0f} s of video in {folder}"
    emit(facts, as_json, f"{made}; {facts['truth']} says what they are")


@data.command(
    short_help="Curate raw files into shards.",
    epilog="""\b
Examples:
  kineo data run demo --input raw/ --out runs/data
  kineo data run default --input s3://bucket/footage --out runs/data
  kineo data run default --input 'footage/**/*.mp4' --set captions.require=true
  kineo data run default --input clips.csv                 a manifest: uri, caption, start, end, any label
  kineo data run default --input footage/ --estimate       time, disk and GPU-hours of the whole, from a sample
  kineo data run recipe.yaml --set clips.max_seconds=4 --set workers=2
  kineo data run default --input raw/ --set scores.text_area={} --set filters.text.max=0.05
A run that was stopped goes on where it was: give the same command again.
""",
)
@click.argument("recipe")
@click.option(
    "--input", "source", help="Folder, file, 'glob', s3:// or gs:// URL, or manifest (.csv, .jsonl, .parquet)."
)
@click.option("--out", type=click.Path(path_type=Path), default="runs/data", show_default=True, help="Run directory.")
@click.option("--estimate", is_flag=True, help="Run a sample and predict the whole; --out is not touched.")
@set_option
@json_option
def run(recipe: str, source: str | None, out: Path, estimate: bool, overrides: tuple[str, ...], as_json: bool) -> None:
    """Curate sources into shards by RECIPE: a YAML file, or the name of one that ships.

    \b
    demo     small clips, for two cores
    default  256 pixels, no models
    full     every model, for GPUs
    exam     what 'kineo data grade' grades
    """
    from kineograph.cli.recipes import read_recipe
    from pipelines.data.config import CurateConfig
    from pipelines.data.pipeline import curate

    config = read_recipe("data", recipe, CurateConfig, overrides)
    if estimate:
        from pipelines.data.planning.estimate import estimate_text
        from pipelines.data.planning.forecast import forecast

        facts = forecast(config, source, out)
        emit(facts, as_json, estimate_text(facts))
        return
    _emit_summary(curate(config, source, out), as_json)


@data.command(
    short_help="Decide again, on stored signals.",
    epilog="""\b
Examples:
  kineo data decide runs/data --set filters.motion.min=0.2
  kineo data decide runs/data --set 'buckets.sizes=[256x256x16]' --set buckets.fps=8
  kineo data decide runs/data --set duplicates.perceptual.enabled=false
It makes again what was deleted of the shards, too.
""",
)
@RUN
@set_option
@json_option
def decide(run: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Decide again on the signals that RUN has stored.

    Only clips that are new are decoded, and models look only at those that they have not seen.
    """
    from pipelines.data.pipeline import decide as decide_again

    _emit_summary(decide_again(run, overrides), as_json)


@data.command(
    short_help="Write the report again.",
    epilog="""\b
Example:
  kineo data report runs/data
""",
)
@RUN
@json_option
def report(run: Path, as_json: bool) -> None:
    """Write RUN/report.html again from the ledger, and say where it is."""
    from pipelines.data.inspect import rewrite_report

    facts = rewrite_report(run)
    emit(facts, as_json, facts["report"])


@data.command(
    short_help="Compare every shard with the manifest.",
    epilog="""\b
Examples:
  kineo data verify runs/data
  kineo data verify runs/data --json
""",
)
@RUN
@json_option
def verify(run: Path, as_json: bool) -> int:
    """Compare every shard of RUN with the manifest; exit 1 and name those that differ."""
    from kineograph.store.manifest import Manifest
    from kineograph.store.manifest import verify as compare

    manifest = Manifest.load(run)
    damaged = [{"shard": shard.path, "problem": problem} for shard, problem in compare(run, manifest) if problem]
    facts = {"run": str(run), "digest": manifest.digest, "shards": len(manifest.shards), "damaged": damaged}
    lines = [f"damaged: {run / entry['shard']}: {entry['problem']}" for entry in damaged]
    if damaged:
        lines.append(
            f"{len(damaged)} of {len(manifest.shards)} shards are damaged: "
            f"delete them and run 'kineo data decide {run}'"
        )
    else:
        lines.append(f"all {len(manifest.shards)} shards are as they were written ({manifest.digest[:12]})")
    emit(facts, as_json, "\n".join(lines))
    return 1 if damaged else 0


@data.command(
    short_help="Show what a run holds, and what is lost and why.",
    epilog="""\b
Examples:
  kineo data plan runs/data
  kineo data plan runs/data --memory 80GiB
  kineo data plan runs/data --what-if 'sizes=[256x256x17]' --what-if fps=8
  kineo data plan runs/data --what-if areas=[65536] --what-if aspects=[1:1,16:9] --what-if frames=[1,17]
""",
)
@RUN
@click.option(
    "--what-if",
    "what_if",
    multiple=True,
    metavar="KEY=VALUE",
    help="Other buckets; nothing is changed.",
)
@click.option("--memory", metavar="SIZE", help="Memory of a GPU: shows the batch that fits a training step.")
@click.option("--model-width", type=click.IntRange(min=1), help="Width of the model trained; 1152 is STDiT-XL/2.")
@click.option("--depth", type=click.IntRange(min=1), help="Its blocks; 28 is STDiT-XL/2.")
@json_option
def plan(
    run: Path,
    what_if: tuple[str, ...],
    memory: str | None,
    model_width: int | None,
    depth: int | None,
    as_json: bool,
) -> None:
    """Show what RUN holds per bucket, and what is lost and why; or what it would hold with other buckets."""
    from pipelines.data.planning.plan import parse_bytes, plan_facts
    from pipelines.data.planning.plan_text import plan_text
    from pipelines.data.planning.trainer_memory import TrainerModel

    given = {"width": model_width, "depth": depth}
    trainer = TrainerModel(**{key: value for key, value in given.items() if value is not None})
    facts = plan_facts(run, what_if, parse_bytes(memory) if memory else None, trainer)
    emit(facts, as_json, plan_text(facts))


@data.command(
    short_help="Try rejected sources again.",
    epilog="""\b
Examples:
  kineo data retry runs/data --reason timeout --set guard.wall_s=7200 --set guard.cpu_s=7200
  kineo data retry runs/data --reason fetch_failed --reason crashed
""",
)
@RUN
@click.option(
    "--reason",
    "reasons",
    multiple=True,
    required=True,
    metavar="REASON",
    help="What they were rejected for; repeatable.",
)
@set_option
@json_option
def retry(run: Path, reasons: tuple[str, ...], overrides: tuple[str, ...], as_json: bool) -> None:
    """Try the sources of RUN again that were rejected for a reason, and finish the run with them.

    Reasons: not_media, corrupt, unreadable, too_large, timeout, crashed, fetch_failed, and encode_failed, of clips.
    """
    from pipelines.data.retry import retry as try_again

    _emit_summary(try_again(run, reasons, overrides), as_json)


@data.command(
    short_help="Hold a run against the truth of its corpus.",
    epilog="""\b
Examples:
  kineo data grade runs/data --truth raw/truth.json
  kineo data grade runs/data --truth raw/truth.json --json
""",
)
@RUN
@click.option("--truth", required=True, type=click.Path(path_type=Path), help="truth.json of 'kineo data synth'.")
@json_option
def grade(run: Path, truth: Path, as_json: bool) -> int:
    """Hold RUN against the truth of a synthetic corpus; exit 1 when a filter falls short of 0.95."""
    from pipelines.data.exam.grade import grade as examine
    from pipelines.data.exam.grade import grade_text

    facts = examine(run, truth)
    emit(facts, as_json, grade_text(facts))
    return 0 if facts["holds"] else 1


def _emit_summary(summary: dict[str, Any], as_json: bool) -> None:
    from pipelines.data.inspect import summary_text

    emit(summary, as_json, summary_text(summary))
