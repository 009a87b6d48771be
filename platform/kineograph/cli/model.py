"""`kineo model`: what models there are and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kineograph.cli.output import emit, json_option, set_option

if TYPE_CHECKING:
    from kineograph.models.presets import Preset
    from kineograph.models.summary import Summary

GIB, MIB = 2**30, 2**20


@click.group(
    epilog="""\b
Examples:
  kineo model list                                          the presets
  kineo model info stdit-xl/2                               parameters, FLOPs, memory
  kineo model info runs/train                               the same of a checkpoint
  kineo model import OpenSora-v1-HQ-16x256x256.pth --format opensora-v1 --out runs/opensora
""",
)
def model() -> None:
    """Sizes and costs of models."""


@model.command(
    "list",
    short_help="The presets.",
    epilog="""\b
Examples:
  kineo model list
  kineo model list --json | jq '.models[] | select(.parameters < 2e8) | .name'
""",
)
@json_option
def list_models(as_json: bool) -> None:
    """List the presets: their size, and the work on the clip that each is usually given."""
    from kineograph.models.presets import PRESETS
    from kineograph.models.summary import summarise

    rows = []
    lines = [f"{'name':<18}{'parameters':>12}{'clip':>12}{'forward':>14}"]
    for name, preset in PRESETS.items():
        summary = summarise(preset)
        forward = summary.flops.forward
        rows.append(
            {
                "name": name,
                "about": preset.about,
                "parameters": summary.total,
                "size": preset.size,
                "forward_flops": forward,
            }
        )
        size = f"{summary.total / 1e6:>11.1f}M{_by(preset.size):>12}"
        lines.append(f"{name:<18}{size}{forward / 1e9:>8.1f} GFLOP  {preset.about}")
    emit({"models": rows}, as_json, "\n".join(lines))


@model.command(
    short_help="Parameters, FLOPs and memory of a model.",
    epilog="""\b
Examples:
  kineo model info stdit-xl/2
  kineo model info opensora-v1-xl/2 --size 64x512x512 --json
  kineo model info stdit-b/2 --size 33x480x832 --vae-strides 4x8x8 --text-tokens 40 --set depth=16
  kineo model info runs/train/checkpoints/step-00001000
""",
)
@click.argument("name", metavar="PRESET|CHECKPOINT")
@click.option("--size", metavar="FxHxW", help="Frames, height and width in pixels of a clip; HxW is an image.")
@click.option("--vae-strides", metavar="FxHxW", help="Frames, rows and columns of pixels per latent.")
@click.option("--text-tokens", type=click.IntRange(0), help="Tokens of a caption.")
@set_option
@json_option
def info(
    name: str,
    size: str | None,
    vae_strides: str | None,
    text_tokens: int | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Tell what a preset, or the model of a checkpoint, is made of and what it costs: parameters by part, FLOPs of a clip
    and of a visual token, forward and in training, memory. Nothing is built or loaded."""
    given = {
        "size": None if size is None else _parse_size("--size", size),
        "strides": None if vae_strides is None else _parse_size("--vae-strides", vae_strides),
        "text_tokens": text_tokens,
    }
    preset = _find(name, given, overrides)

    from kineograph.models.summary import summarise

    summary = summarise(preset)
    emit(_facts(name, preset, summary), as_json, _text(name, preset, summary))


@model.command(
    "import",
    short_help="Published weights as a checkpoint.",
    epilog="""\b
Examples:
  kineo model import OpenSora-v1-HQ-16x256x256.pth --format opensora-v1 --out runs/opensora
  kineo model import model.safetensors --format opensora-v3 --out runs/opensora12 --vae models/vae
  kineo model import DiT-XL-2-256x256.pt --format dit --vae models/sd-vae --out runs/dit
  kineo generate --checkpoint runs/dit --prompt 207 --out golden-retriever.mp4
""",
)
@click.argument("weights", type=click.Path(path_type=Path))
@click.option("--format", "format_name", required=True, help="opensora-v1, opensora-v3 or dit.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Run directory to make.")
@click.option("--vae", help="Folder or hub name of the autoencoder.  [default: the authors']")
@click.option("--text-encoder", help="As a curation recipe names one: t5:FOLDER, …  [default: the authors']")
@click.option("--heads", type=click.IntRange(1), help="Attention heads, where the weights cannot tell.")
@click.option(
    "--size", metavar="FxHxW", help="Frames, height and width in pixels that are made unless others are asked."
)
@click.option(
    "--input-sq-size",
    type=click.IntRange(1),
    help="opensora-v3: the config's input_sq_size, a side in pixels.  [default: 512]",
)
@json_option
def import_model(
    weights: Path,
    format_name: str,
    out: Path,
    vae: str | None,
    text_encoder: str | None,
    heads: int | None,
    size: str | None,
    input_sq_size: int | None,
    as_json: bool,
) -> None:
    """Make published WEIGHTS (.safetensors, or .pth whose code is not run) a checkpoint: for kineo generate, for kineo
    eval, for training to start from."""
    from kineograph.diffusion.published import import_checkpoint
    from kineograph.media.geometry import Bucket

    bucket = None
    if size is not None:
        frames, height, width = _parse_size("--size", size)
        bucket = Bucket(height, width, frames)
    made = import_checkpoint(weights, format_name, out, vae, text_encoder, heads, bucket, input_sq_size)
    lines = (
        f"checkpoint {made['checkpoint']}: {made['parameters']:,} parameters, text encoder {made['text_encoder']['name']}",
        f'generate   kineo generate --checkpoint {out} --prompt "…" --out x.mp4',
    )
    emit(made, as_json, "\n".join(lines))


def _find(name: str, given: Mapping[str, Any], overrides: tuple[str, ...]) -> Preset:
    """The preset or checkpoint called ``name``, with what is ``given`` in place of its own."""
    from dataclasses import replace

    from kineograph.config import parse_config
    from kineograph.models.presets import find_preset

    if Path(name).exists():
        from kineograph.models.summary import preset_of_checkpoint

        preset = preset_of_checkpoint(name)
    else:
        preset = find_preset(name)
    preset = replace(preset, **{key: value for key, value in given.items() if value is not None})
    if overrides:
        raw = preset.config.model_dump(mode="json")
        preset = replace(preset, config=parse_config(raw, type(preset.config), overrides, name=name))
    return preset


def _parse_size(option: str, text: str) -> tuple[int, int, int]:
    """Read FxHxW, or HxW for one frame."""
    from kineograph.errors import UserError

    parts = text.lower().split("x")
    if len(parts) not in (2, 3) or not all(part.isdecimal() and int(part) for part in parts):
        raise UserError(f"{option} {text!r}: write frames, height and width, e.g. 17x256x256, or an image's 256x256")
    *frames, height, width = (int(part) for part in parts)
    return frames[0] if frames else 1, height, width


def _facts(name: str, preset: Preset, summary: Summary) -> dict[str, Any]:
    import torch

    flops = summary.flops
    return {
        "name": name,
        "about": preset.about,
        "config": preset.config.model_dump(mode="json"),
        "size": preset.size,
        "vae_strides": preset.strides,
        "latent_size": preset.latent_size,
        "text_tokens": preset.text_tokens,
        "visual_tokens": flops.tokens,
        "parameters": {"total": summary.total, "trained": summary.trained, "parts": dict(summary.parameters)},
        "flops": {
            "forward": flops.forward,
            "training": flops.training,
            "forward_per_token": flops.forward_per_token,
            "training_per_token": flops.training_per_token,
            "parts": dict(flops.parts),
        },
        "memory_bytes": {
            "weights_bf16": summary.weight_bytes(torch.bfloat16),
            "weights_fp32": summary.weight_bytes(torch.float32),
            "training": summary.training_bytes,
        },
    }


def _text(name: str, preset: Preset, summary: Summary) -> str:
    config, flops = preset.config, summary.flops
    facts = _facts(name, preset, summary)
    memory = {key: _memory(value) for key, value in facts["memory_bytes"].items()}
    what = f"an image: {_by(preset.size[1:])}" if preset.size[0] == 1 else f"a clip: {_by(preset.size)}"
    latents = "" if preset.latent_size == preset.size else f" = {_by(preset.latent_size)} latents"
    caption = f", text tokens: {preset.text_tokens}" if preset.text_tokens else ""
    patch = config.patch if isinstance(config.patch, tuple) else (config.patch, config.patch)
    return "\n".join(
        [
            f"{name}: {preset.about}",
            f"width {config.width}, depth {config.depth}, heads {config.heads}, patch {_by(patch)}",
            f"{what}{latents} = {flops.tokens:,} visual tokens{caption}",
            "",
            *_table("parameters", summary.parameters, _count),
            "",
            *_table("GFLOP of a forward pass", flops.parts, _giga),
            f"a visual token: {flops.forward_per_token / 1e6:,.1f} MFLOP",
            f"a training step: {_giga(flops.training)} GFLOP, {flops.training_per_token / 1e6:,.1f} MFLOP a visual token",
            "",
            f"memory of weights: {memory['weights_bf16']} in bf16, {memory['weights_fp32']} in fp32",
            f"in training: {memory['training']} with gradients, AdamW's moments and moving average; activations on top",
        ]
    )


def _table(title: str, parts: Mapping[str, int], number: Callable[[float], str]) -> list[str]:
    """A row per part, the largest first."""
    total = sum(parts.values())
    rows = sorted(parts.items(), key=lambda item: -item[1])
    lines = [f"  {part:<32}{number(count):>16}{count / total:>8.1%}" for part, count in rows]
    return [title, *lines, f"  {'in all':<32}{number(total):>16}"]


def _count(number: float) -> str:
    return f"{number:,}"


def _giga(flops: float) -> str:
    return f"{flops / 1e9:,.3f}"


def _memory(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.1f} MiB"


def _by(size: tuple[int, ...]) -> str:
    return "x".join(str(n) for n in size)
