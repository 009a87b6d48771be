"""`kineo generate`."""

from __future__ import annotations

from pathlib import Path

import click

from kineograph.cli.output import emit, json_option

EPILOG = """\b
Examples:
  kineo generate --checkpoint runs/train --prompt "a red circle moving left" --out red.mp4
  kineo generate --checkpoint runs/train/checkpoints/step-00001000 --prompt "a blue square" \\
      --size 32x40 --seconds 4 --seed 7 --out blue.mp4
"""


@click.command(epilog=EPILOG)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    required=True,
    help="Training run, or one checkpoint of it.",
)
@click.option("--prompt", required=True, help="What to show.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="The mp4; a contact sheet is put beside it as PNG.",
)
@click.option("--size", metavar="HxW", help="Height and width in pixels.  [default: as trained]")
@click.option("--seconds", type=float, help="Length, rounded to what the model can make.  [default: as trained]")
@click.option("--fps", type=float, help="Frames per second.  [default: as trained]")
@click.option("--steps", type=click.IntRange(1), help="Sampling steps.  [default: of the checkpoint]")
@click.option("--cfg", type=float, help="Guidance scale: 1 follows the prompt loosely, more does so strictly.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="A torch device.")
@json_option
def generate(
    checkpoint: Path,
    prompt: str,
    out: Path,
    size: str | None,
    seconds: float | None,
    fps: float | None,
    steps: int | None,
    cfg: float | None,
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    """Make a video from a prompt: an H.264 mp4 and a contact sheet of its frames."""
    from kineograph.errors import UserError

    if out.suffix.lower() != ".mp4":
        raise UserError(f"--out {out}: give a name that ends in .mp4")
    from kineograph.diffusion.text_to_video import TextToVideo
    from kineograph.media.encode import contact_sheet, write_mp4, write_png

    _check_device(device)
    model = TextToVideo.load(checkpoint, device)
    fps = float(model.config["fps"] if fps is None else fps)
    bucket = model.bucket_for(size, seconds, fps)
    frames = model.generate([prompt], [seed], bucket, fps, steps, cfg)[0]
    sheet = out.with_suffix(".png")
    settings = {
        "prompt": prompt,
        "seed": seed,
        "checkpoint": str(model.path),
        "bucket": bucket.name,
        "fps": fps,
    }
    write_mp4(out, frames, fps, metadata={"comment": str(settings)})
    write_png(sheet, contact_sheet([frames], [prompt]))
    facts = {
        "video": str(out),
        "contact_sheet": str(sheet),
        "frames": bucket.frames,
        "seconds": bucket.frames / fps,
        **settings,
    }
    emit(
        facts,
        as_json,
        f"{out}: {bucket.frames} frames of {bucket.height}x{bucket.width} at {fps:g} fps, and {sheet}",
    )


def _check_device(device: str) -> None:
    import torch

    from kineograph.errors import UserError

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an AssertionError where torch was built without CUDA
        raise UserError(f"--device {device}: {str(error).splitlines()[0][:200]}") from error
