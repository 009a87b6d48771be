"""`kineo generate`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from kineograph.cli.output import emit, json_option

F = TypeVar("F", bound=Callable[..., Any])
FILE = click.Path(path_type=Path)

EPILOG = """\b
Examples:
  kineo generate --checkpoint runs/train --prompt "a red circle moving left" --out red.mp4
  kineo generate --checkpoint runs/train --prompt "a blue square" --size 32x40 --seconds 4 --seed 7 --out blue.mp4
  kineo generate --checkpoint runs/train --prompts prompts.txt --videos 4 --out many/
  kineo generate --checkpoint runs/train --prompt "it moves on" --video start.mp4 --seconds 60 --out long.mp4
  kineo generate --like red.mp4 --seed 8 --out red-8.mp4          the same settings, another seed
"""


class Numbers(click.ParamType):
    """Numbers with commas between them."""

    name = "numbers"

    def __init__(self, kind: type[int] | type[float], count: int | None = None) -> None:
        self.kind, self.count = kind, count

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int | float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(self.kind(part) for part in str(value).split(","))
        except ValueError:
            numbers = ()
        if not numbers or self.count not in (None, len(numbers)):
            what = "whole numbers" if self.kind is int else "numbers"
            self.fail(f"{value!r}: write {self.count or 'one or more'} {what} with commas between them", param, ctx)
        return numbers


def _grouped(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Options as one decorator, in their order."""

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


what_to_show = _grouped(
    click.option("--checkpoint", type=FILE, help="Training run, or one checkpoint of it."),
    click.option("--prompt", multiple=True, help="What to show; repeatable."),
    click.option(
        "--prompts",
        type=FILE,
        help="File of prompts: .txt, one per line; or .jsonl or .csv, with prompt, seed, negative_prompt, out.",
    ),
    click.option("--negative-prompt", help="What not to show: guidance leads away from it."),
    click.option("--seed", type=int, help="Same seed, same video.  [default: 0]"),
    click.option("--seeds", type=Numbers(int), metavar="A,B,…", help="Seeds of each prompt's videos."),
    click.option("--videos", type=click.IntRange(1), help="Videos of each prompt, seeds counting up.  [default: 1]"),
    click.option(
        "--like", type=FILE, help="An mp4 made by this command: all its settings, where nothing else is said."
    ),
    click.option(
        "--out",
        type=FILE,
        required=True,
        help="The mp4, and a contact sheet beside it; for several prompts or "
        "seeds a folder, in which finished videos are kept.",
    ),
)

size_and_length = _grouped(
    click.option("--size", metavar="HxW", help="Height and width in pixels.  [default: as trained]"),
    click.option("--seconds", type=float, help="Length of the whole file.  [default: as trained, beside given videos]"),
    click.option("--frames", type=click.IntRange(1), help="Length in frames instead."),
    click.option("--fps", type=float, help="Frames per second.  [default: as trained]"),
    click.option("--window", type=click.IntRange(1), metavar="FRAMES", help="Made at once.  [default: as trained]"),
    click.option(
        "--overlap",
        type=click.IntRange(1),
        metavar="FRAMES",
        help="Shared by one window and the next.  [default: half a window, two latents at least]",
    ),
)

given_frames = _grouped(
    click.option("--image", type=FILE, help="First frame."),
    click.option("--last-image", type=FILE, help="Last frame."),
    click.option("--video", type=FILE, help="Video to continue."),
    click.option("--video-end", type=FILE, help="Video to lead into."),
    click.option("--fill", type=(FILE, str), metavar="FILE A:B", help="Video of which seconds A to B are made again."),
    click.option("--loop", is_flag=True, help="End where it began."),
)

sampling = _grouped(
    click.option(
        "--steps", type=click.IntRange(1), help="Sampling steps.  [default: of the checkpoint, like the rest]"
    ),
    click.option("--sampler", type=click.Choice(["euler", "heun", "dpm_solver++", "ddim", "ancestral"])),
    click.option("--spacing", type=click.Choice(["process", "log_snr", "karras"]), help="Where few steps are."),
    click.option("--rho", type=float, help="Of karras."),
    click.option("--timesteps", type=Numbers(float), metavar="A,B,…", help="The steps themselves, falling."),
    click.option("--eta", type=float, help="Fresh noise of ddim, 0..1."),
    click.option("--variance", type=click.Choice(["fixed_small", "fixed_large"]), help="Of ancestral."),
    click.option("--cfg", type=float, help="Guidance scale: 1 follows the prompt loosely, more does so strictly."),
    click.option("--image-cfg", type=float, help="The same of given frames."),
    click.option("--cfg-rescale", type=float, help="Share of guidance's contrast taken back, 0..1."),
    click.option(
        "--cfg-interval", type=Numbers(float, 2), metavar="A,B", help="Model times with guidance, in 0..1000."
    ),
)

machine = _grouped(
    click.option("--weights", type=click.Choice(["ema", "model"]), help="Averaged or last ones.  [default: ema]"),
    click.option("--device", default="cpu", show_default=True, help="A torch device."),
    click.option("--dtype", type=click.Choice(["fp32", "bf16"]), help="Of the model's products.  [default: fp32]"),
    click.option("--vae-tiling", metavar="SIZE[:OVERLAP]",
                 help="Encode and decode frames in tiles of so many pixels, to save memory.  [default: as saved]"),
    click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Videos made at once."),
    click.option("--preview", type=click.IntRange(1), is_flag=False, flag_value=5, metavar="[STEPS]",
                 help="Write OUT.preview.png every so many steps.  [5 without a number]"),
)  # fmt: skip


@click.command(epilog=EPILOG)
@what_to_show
@size_and_length
@given_frames
@sampling
@machine
@json_option
def generate(as_json: bool, **options: Any) -> None:
    """Make videos from prompts, and from frames that are given: H.264 in mp4, which tell in their metadata how they were
    made."""
    from kineograph.generation.asked import Asked
    from kineograph.generation.run import generate_videos

    facts = generate_videos(Asked.model_validate(options))  # which knows every option, and refuses others
    if "video" in facts:
        what = f"{facts['frames']} frames of {facts['height']}x{facts['width']} at {facts['fps']:g} fps"
        emit(facts, as_json, f"{facts['video']}: {what}, and {facts['contact_sheet']}")
    else:
        there = f", {facts['skipped']} were there" if facts["skipped"] else ""
        emit(facts, as_json, f"{facts['out']}: {facts['made']} videos made{there}; see {facts['contact_sheet']}")
