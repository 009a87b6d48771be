"""What a model is made of and what it costs, without building it: parameters, FLOPs, memory."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from kineograph.errors import UserError
from kineograph.media.geometry import Bucket
from kineograph.models.classifier import KIND, read_classifier
from kineograph.models.denoisers import build_denoiser, parse_denoiser
from kineograph.models.flops import Flops, count_flops
from kineograph.models.memory import STATE_BYTES
from kineograph.models.presets import Preset
from kineograph.models.vae import load_autoencoder
from kineograph.models.vit import ViT, ViTConfig
from kineograph.models.vivit import ViViT, ViViTConfig
from kineograph.store.checkpoints import CONFIG, read_config, resolve_checkpoint

# blocks.3.attention.space.query.weight is of the part blocks.attention.space
_BLOCK_PART = re.compile(r"(.*?blocks)\.\d+\.(attention\.(?:space|time|full)|\w+)")


@dataclass(frozen=True)
class Summary:
    """Size and cost of a model."""

    parameters: Mapping[str, int]
    """By part, in the order of the model; frozen ones count, buffers do not."""
    trained: int
    """Parameters that get gradients."""
    flops: Flops
    """Work on one clip."""

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(self.parameters.values())

    def weight_bytes(self, dtype: torch.dtype) -> int:
        """Memory of the weights alone."""
        return self.total * dtype.itemsize

    @property
    def training_bytes(self) -> int:
        """Memory of weights, gradients, optimizer and moving average, activations not among them."""
        return self.trained * STATE_BYTES + 4 * (self.total - self.trained)


def summarise(preset: Preset) -> Summary:
    """The summary of a model and what it is given."""
    with torch.device("meta"):  # shapes without memory
        model = _build(preset)
    size = preset.size[1:] if isinstance(preset.config, ViTConfig) else preset.latent_size
    flops = count_flops(preset.config, size, preset.text_tokens, preset.classes)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Summary(parameters_by_part(model), trained, flops)


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """Number of parameters of each part of a model; the same part of all blocks is one."""
    parts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        match = _BLOCK_PART.match(name)
        parts[f"{match[1]}.{match[2]}" if match else name.split(".")[0]] += parameter.numel()
    return dict(parts)


def preset_of_checkpoint(checkpoint: str | Path) -> Preset:
    """The model of a checkpoint folder, or of the newest of a training run, and what it was trained on.

    Raises UserError when there is none or it is damaged.
    """
    path = resolve_checkpoint(checkpoint)
    config = read_config(path)
    if config.get("kind") == KIND:
        classifier = read_classifier(path)
        model = classifier.model
        frames = model.frames if isinstance(model, ViViTConfig) else 1
        about = f"classifier of {classifier.label}, checkpoint {path}"
        return Preset(about, model, (frames, *model.size), classes=len(classifier.labels))
    try:
        denoiser = parse_denoiser(config["model"])
        bucket = Bucket.parse(config["buckets"][0])
        text_tokens = int(config["text_encoder"]["max_tokens"])
        if "autoencoder" in config:
            frames, rows, columns = config["autoencoder"]["strides"]
        else:  # an imported one does not repeat what is beside it
            frames, rows, columns = load_autoencoder(path / "vae").strides
    except (KeyError, ValueError, TypeError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"checkpoint {path} cannot be read: {CONFIG} is not of a generator: {reason}") from error
    return Preset(
        f"generator, checkpoint {path}",
        denoiser,
        (bucket.frames, bucket.height, bucket.width),
        (frames, rows, columns),
        text_tokens,
    )


def _build(preset: Preset) -> nn.Module:
    if isinstance(preset.config, ViTConfig):
        return ViT(preset.config, preset.classes)
    if isinstance(preset.config, ViViTConfig):
        return ViViT(preset.config, preset.classes)
    return build_denoiser(preset.config)
