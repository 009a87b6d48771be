"""A published checkpoint as one of ours: weights translated, and with them what its authors sample it with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from kineograph.config import Config
from kineograph.diffusion.flow import FlowConfig, SizeShift
from kineograph.diffusion.gaussian import GaussianConfig
from kineograph.diffusion.guidance import GuidanceConfig
from kineograph.diffusion.request import Sampling
from kineograph.diffusion.samplers import SamplerConfig
from kineograph.errors import UserError
from kineograph.media.geometry import Bucket
from kineograph.models.dit import DiTConfig
from kineograph.models.importing import load_opensora_v1, load_opensora_v3, read_state
from kineograph.models.importing_dit import load_dit
from kineograph.models.stdit import STDiTConfig
from kineograph.models.text import ClassLabels, absolute_spec, load_text_encoder, parse_spec
from kineograph.models.vae import Autoencoder, load_autoencoder, save_autoencoder
from kineograph.store.checkpoints import CHECKPOINTS, CONFIG, checkpoint_folder, seal
from kineograph.store.commit import committed, sha256_file, write_json
from kineograph.store.manifest import TextEncoderInfo

Load = Callable[..., nn.Module]


@dataclass(frozen=True)
class Format:
    """A family of published checkpoints."""

    about: str
    load: Load
    """(state dict, heads or None, input_sq_size where the format knows one) to the model."""
    diffusion: Config
    sampling: Sampling
    vae: str
    """The autoencoder that it was trained with: a name on the hub; "" when it is in no format that can be read."""
    text_encoder: str
    fps: float
    size: tuple[int, int, int]
    """Latent frames, height and width in pixels of a first video."""
    image_fps: float = 0.0
    """What the model is told of an image's frame rate."""
    knows_input_sq_size: bool = False
    """Whether the side that position codes were made for is told beside the weights."""


_IDDPM = GaussianConfig(variance="learned_range", sections=(1,))
"""Of one section, as IDDPM's respacing has it for a number of steps: from timestep 0 to the last."""


def _ancestral(steps: int, scale: float) -> Sampling:
    """As DiT's code samples, and Open-Sora v1's after it: of the 4 latent channels the first 3 are guided."""
    guidance = GuidanceConfig(scale=scale, channels=3)
    return Sampling(steps=steps, sampler=SamplerConfig(name="ancestral"), guidance=guidance)


_FORMATS = (
    (
        "opensora-v1",
        Format(
            about="Open-Sora 1.0: STDiT-XL/2, 16 frames, T5-XXL, Stable Diffusion's autoencoder",
            load=load_opensora_v1,
            diffusion=_IDDPM,
            sampling=_ancestral(steps=100, scale=7.0),
            vae="stabilityai/sd-vae-ft-ema",
            text_encoder="t5:PixArt-alpha/PixArt-XL-2-512x512/text_encoder",
            fps=8.0,
            size=(16, 256, 256),
        ),
    ),
    (
        "opensora-v3",
        Format(
            about="Open-Sora 1.2: STDiT3-XL/2, rectified flow, T5-XXL",
            load=load_opensora_v3,
            diffusion=FlowConfig(prediction="reverse_velocity", shift_by_size=SizeShift()),
            sampling=Sampling(steps=30, guidance=GuidanceConfig(scale=7.0)),
            vae="",
            text_encoder="t5:PixArt-alpha/PixArt-XL-2-512x512/text_encoder",
            fps=24.0,
            size=(15, 240, 426),
            image_fps=120.0,
            knows_input_sq_size=True,
        ),
    ),
    (
        "dit",
        Format(
            about="DiT (facebookresearch/DiT): images of ImageNet's classes",
            load=load_dit,
            diffusion=_IDDPM,
            sampling=_ancestral(steps=250, scale=4.0),
            vae="stabilityai/sd-vae-ft-ema",
            text_encoder="labels",
            fps=1.0,
            size=(1, 256, 256),
        ),
    ),
)
FORMATS = dict(_FORMATS)
"""By the name that --format takes."""


def import_checkpoint(
    weights: str | Path,
    format_name: str,
    out: str | Path,
    vae: str | None = None,
    text_encoder: str | None = None,
    heads: int | None = None,
    bucket: Bucket | None = None,
    input_sq_size: int | None = None,
) -> dict[str, Any]:
    """Write published ``weights`` (.safetensors, or .pth read without its code) as the first checkpoint of the run ``out``.

    ``vae`` and ``text_encoder`` default to what the authors used, by hub name; ``bucket`` is the size that is sampled
    unless another is asked for; ``input_sq_size`` is that of the published config, of opensora-v3 alone, where it is not
    the usual one. Returns what was written. Raises UserError when the weights are of something else, the autoencoder
    cannot be had or does not fit, the text encoder does not fit, or ``out`` is taken; then nothing is written.
    """
    if format_name not in FORMATS:
        raise UserError(f"no format {format_name!r}; there is: {', '.join(FORMATS)}")
    known = FORMATS[format_name]
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is taken: give a new or empty directory")
    if not (vae or known.vae):
        raise UserError(f"the autoencoder of {format_name} is in no format that can be read: give one with --vae")
    if input_sq_size is not None and not known.knows_input_sq_size:
        raise UserError(f"{format_name} has no input_sq_size: leave out --input-sq-size, which is of opensora-v3")
    encoder = absolute_spec(text_encoder or known.text_encoder)
    sq_size = {} if input_sq_size is None else {"input_sq_size": input_sq_size}
    model = known.load(read_state(weights), heads, **sq_size)
    config = model.config
    assert isinstance(config, STDiTConfig | DiTConfig)
    _check_text_encoder(encoder, config)
    autoencoder = load_autoencoder(vae or known.vae)
    if autoencoder.channels != config.in_channels:
        raise UserError(
            f"the autoencoder {vae or known.vae} has {autoencoder.channels} channels, the model {config.in_channels}: "
            "give another --vae"
        )
    bucket = bucket or _first_bucket(known, config, autoencoder)
    facts = {
        "kind": "diffusion",
        "model": config.model_dump(mode="json"),
        "diffusion": known.diffusion.model_dump(mode="json"),
        "text_encoder": TextEncoderInfo(
            name=encoder,
            width=config.text_width,
            max_tokens=config.null_tokens if isinstance(config, STDiTConfig) else 1,
            dtype="float32",  # as Open-Sora samples with its T5; labels have no weights
        ).model_dump(),
        "buckets": [bucket.name],
        "fps": known.fps,
        "image_fps": known.image_fps,
        "sampling": known.sampling.model_dump(mode="json"),
        "step": 0,
        "imported": {"format": format_name, "file": Path(weights).name, "sha256": _digest(Path(weights))},
    }
    with _made_or_absent(out):
        folder = checkpoint_folder(out, 0)
        _write(folder, model, autoencoder, facts)
    parameters = sum(p.numel() for p in model.parameters())
    return {"checkpoint": str(folder), "parameters": parameters, **facts}


def _check_text_encoder(spec: str, config: STDiTConfig | DiTConfig) -> None:
    """Raise UserError when the states of ``spec`` are not what the model takes. One on the hub is not asked, as that
    would download it."""
    takes_labels = isinstance(config, DiTConfig) and config.condition == "class"
    if (spec == ClassLabels.name) != takes_labels:
        takes = f"numbers of classes: its text encoder is {ClassLabels.name}" if takes_labels else "the states of words"
        raise UserError(f"--text-encoder {spec} does not fit: this model takes {takes}")
    if all(part.where == "" or Path(part.where).is_dir() for part in parse_spec(spec)):
        width = load_text_encoder(spec).width
        if width != config.text_width:
            raise UserError(
                f"--text-encoder {spec} has {width} channels, the model takes {config.text_width}: give the one that it "
                "was trained with"
            )


@contextmanager
def _made_or_absent(run: Path) -> Iterator[None]:
    """``run`` as a directory, which is again as empty, or as absent, as before when the block fails."""
    was_there = run.exists()
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {run} cannot be made: {error.strerror}") from error
    try:
        yield
    except BaseException:
        shutil.rmtree(run / CHECKPOINTS if was_there else run, ignore_errors=True)
        raise


def _write(folder: Path, model: nn.Module, autoencoder: Autoencoder, facts: Mapping[str, Any]) -> None:
    with committed(folder / "model.safetensors") as temp:
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, temp)
    with committed(folder / "ema.safetensors") as temp:  # published weights are averaged already
        try:
            os.link(folder / "model.safetensors", temp)
        except OSError:  # a file system without hard links
            shutil.copyfile(folder / "model.safetensors", temp)
    save_autoencoder(autoencoder, folder / "vae")
    write_json(folder / CONFIG, facts)
    seal(folder)


def _first_bucket(known: Format, config: STDiTConfig | DiTConfig, vae: Autoencoder) -> Bucket:
    """The size that the weights are for, where they tell, else the format's."""
    stride, down, right = vae.strides
    frames, height, width = known.size
    if isinstance(config, DiTConfig):
        height, width = config.grid[0] * config.patch * down, config.grid[1] * config.patch * right
    return Bucket(height // down * down, width // right * right, 1 + (frames - 1) * stride)


def _digest(path: Path) -> str:
    return sha256_file(path) if path.is_file() else ""
