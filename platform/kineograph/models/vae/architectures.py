"""The autoencoders of the diffusers library that are taken in: which classes, built how, with which strides.

A class is on the list when it takes 1 + k·stride frames and a single frame, and the tests cover it. Not on it, for one:
CogVideoX, which decodes an even number of latents to frames of another count, and Allegro, which has no first frame.
"""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from pydantic import Field
from torch import Tensor, device, full, nn, ones, tensor

from kineograph.config import Config
from kineograph.errors import UserError
from kineograph.models.vae.init import initialise

IMAGE_CLASSES = ("AutoencoderKL",)
"""Autoencoders of single images."""
CACHED_CLASSES = ("AutoencoderKLWan", "AutoencoderKLQwenImage", "AutoencoderKLMagvit")
"""Video autoencoders whose convolutions remember the frames before: in chunks they are what they are on the whole."""
WINDOWED_CLASSES = (
    "AutoencoderKLHunyuanVideo",
    "AutoencoderKLHunyuanVideo15",
    "AutoencoderKLLTXVideo",
    "AutoencoderKLMochi",
    "AutoencoderKLCosmos",
)
"""Video autoencoders that take a video whole: long ones are coded in overlapping windows, nearly the same."""
CAUSAL_CLASSES = CACHED_CLASSES + WINDOWED_CLASSES


class Architecture(Config):
    """A class of diffusers and the arguments it is built with."""

    class_name: str
    """Such as AutoencoderKL or AutoencoderKLWan."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Arguments of that class, as in the config.json of published weights; what is left out is its default."""


def _wan(**settings: Any) -> Architecture:
    return Architecture(class_name="AutoencoderKLWan", settings=settings)


PRESETS = {
    # Small enough to be trained in minutes on two cores: 2 frames of 4x4 pixels per latent, 16 channels. Half resolution
    # from the first layer on, and shortcuts past every block, as in Wan 2.2.
    "causal-mini": _wan(
        base_dim=16,
        z_dim=16,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[True],
        is_residual=True,
        patch_size=2,
        in_channels=12,
        out_channels=12,
    ),
    # A third of the width of Wan 2.1: for one GPU.
    "causal-small": _wan(base_dim=32, z_dim=16),
    # Wan 2.1: 4 frames of 8x8 pixels per latent, 16 channels.
    "causal-base": _wan(base_dim=96, z_dim=16),
    # Stable Diffusion's, and one for two cores: 8x8 pixels, 4 channels; 4x4 pixels, 16 channels.
    "image-base": Architecture(
        class_name="AutoencoderKL",
        settings={
            "block_out_channels": [128, 256, 512, 512],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "layers_per_block": 2,
            "latent_channels": 4,
        },
    ),
    "image-mini": Architecture(
        class_name="AutoencoderKL",
        settings={
            "block_out_channels": [32, 64, 64],
            "down_block_types": ["DownEncoderBlock2D"] * 3,
            "up_block_types": ["UpDecoderBlock2D"] * 3,
            "latent_channels": 16,
            "norm_num_groups": 8,
        },
    ),
}
"""Architectures by name, without weights."""


def named_architecture(value: Any, classes: tuple[str, ...]) -> Any:
    """What a recipe gave as ``architecture``: a preset's name stands for the preset, of which only ``classes`` are known.

    Raises ValueError, which pydantic reports with its key.
    """
    if isinstance(value, str):
        known = [name for name, preset in PRESETS.items() if preset.class_name in classes]
        if value not in known:
            raise ValueError(f"no preset {value!r}; known: {', '.join(known)}")
        return PRESETS[value]
    name = value.get("class_name") if isinstance(value, dict) else None
    if isinstance(value, Architecture):
        name = value.class_name
    if name is not None and name not in classes:
        raise ValueError(f"class {name!r} is none of {', '.join(classes)}")
    return value


def diffusers_class(name: str) -> Any:
    """The class called ``name``, which must be on the lists above. diffusers takes seconds to import the first time."""
    from kineograph.models.torchvision_shim import ensure_torchvision_importable

    assert name in IMAGE_CLASSES + CAUSAL_CLASSES
    ensure_torchvision_importable()
    try:
        import diffusers
    except ImportError as error:
        raise UserError("this autoencoder needs the diffusers library: pip install diffusers") from error
    # Its file is imported only now, and may have constants, which shall be real where only shapes are asked for.
    with device("cpu"):
        return getattr(diffusers, name)


def build(architecture: Architecture) -> nn.Module:
    """The model with weights to begin training with. Raises UserError when the class does not take the settings."""
    cls = diffusers_class(architecture.class_name)
    known = settings_of(cls)
    for key in architecture.settings:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}"
            raise UserError(f"{architecture.class_name} has no setting {key!r}; {hint}")
    try:
        model = cls(**architecture.settings)
    except (TypeError, ValueError, IndexError, KeyError, AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{architecture.class_name} cannot be built from its settings: {reason}") from error
    initialise(model)
    return prepared(model)


def prepared(model: Any) -> nn.Module:
    """``model`` with its own chunking over time off, of which the streams here take care."""
    config = model.config
    if config.get("timestep_conditioning") or any(config.get("decoder_inject_noise") or ()):
        raise UserError("this autoencoder's decoder draws noise; take one that decodes the same video each time")
    for switch in ("use_framewise_encoding", "use_framewise_decoding"):
        if hasattr(model, switch):
            setattr(model, switch, False)
    if type(model).__name__ == "AutoencoderKLHunyuanVideo15":
        model.enable_slicing()  # its attention mask does not fit a batch of more than one
    return model


def settings_of(cls: Any) -> list[str]:
    """The arguments that a class is built with."""
    return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]


def model_strides(model: Any) -> tuple[int, int, int]:
    """Frames, rows and columns of pixels per latent; an image model counts one frame."""
    config, name = model.config, type(model).__name__
    if name in IMAGE_CLASSES:
        space = 2 ** (len(config["block_out_channels"]) - 1)
        return 1, space, space
    if name in ("AutoencoderKLWan", "AutoencoderKLQwenImage"):
        space = 2 ** (len(config["dim_mult"]) - 1) * (config.get("patch_size") or 1)
        return 2 ** sum(config["temperal_downsample"]), space, space
    if name == "AutoencoderKLCosmos":
        space = config["spatial_compression_ratio"]
        return config["temporal_compression_ratio"], space, space
    return model.temporal_compression_ratio, model.spatial_compression_ratio, model.spatial_compression_ratio


def model_channels(model: Any) -> int:
    """Channels of a latent."""
    return int(model.config["latent_channels"] if "latent_channels" in model.config else model.config["z_dim"])


def published_scaling(model: Any, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Shift and scale (channels) that published weights come with, z' = (z - shift) / scale, from the settings ``given``.

    Without any, as for a model that is yet to be trained, they are 0 and 1; means and deviations for another number of
    channels are a class's defaults that nobody set, and count as none.
    """
    channels = model_channels(model)
    buffers = dict(model.named_buffers(recurse=False))  # LTX keeps them with its weights
    mean = _per_channel(given.get("latents_mean"), channels)
    std = _per_channel(given.get("latents_std"), channels)
    shift = buffers.get("latents_mean", full((channels,), given.get("shift_factor") or 0.0) if mean is None else mean)
    scale = buffers.get("latents_std", ones(channels) if std is None else std)
    return shift, scale / (given.get("scaling_factor") or 1.0)


def _per_channel(values: Any, channels: int) -> Tensor | None:
    return tensor([float(v) for v in values]) if values is not None and len(values) == channels else None
