"""How many floating-point operations a model takes: counted from its config, exact for its matrix products.

A multiply-add is 2. What is counted is what the model computes of the shapes that it sees: whole patches, the tokens that
a caption has, no recomputation in the backward pass (model FLOPs; Chowdhery et al. 2022, PaLM, appendix B). Norms,
activations and sums are left out: they are bound by memory, and below 1% in all of these models.

Letters: T frames, S patches per frame, N = T·S tokens, L text tokens, D width.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kineograph.models.dit import DiTConfig
from kineograph.models.stdit import STDiTConfig, block_axes, modulations
from kineograph.models.vit import EncoderConfig, ViTConfig, count_patches
from kineograph.models.vivit import ViViTConfig

ModelConfig = STDiTConfig | DiTConfig | ViTConfig | ViViTConfig

TRAINING_FACTOR = 3
"""A training step over a forward pass: the backward pass computes gradients of inputs and of weights."""
SINUSOID = 256
"""Features of a number before its embedding's MLP (layers.ScalarEmbedding)."""


@dataclass(frozen=True)
class Flops:
    """Work of one forward pass."""

    parts: Mapping[str, int]
    """FLOPs by part of the model."""
    tokens: int
    """Visual tokens."""

    @property
    def forward(self) -> int:
        """FLOPs of the forward pass."""
        return sum(self.parts.values())

    @property
    def training(self) -> int:
        """FLOPs of a training step: forward and backward."""
        return TRAINING_FACTOR * self.forward

    @property
    def forward_per_token(self) -> float:
        """FLOPs of the forward pass for a visual token."""
        return self.forward / self.tokens

    @property
    def training_per_token(self) -> float:
        """FLOPs of a training step for a visual token."""
        return self.training / self.tokens


def count_flops(config: ModelConfig, size: Sequence[int], text_tokens: int = 0, classes: int = 0) -> Flops:
    """Work on one clip.

    ``size`` is what the model is given: latent (frames, height, width) for STDiT and DiT, pixels for ViT (height, width)
    and ViViT (frames, height, width). ``text_tokens`` of 0 means "no caption"; ``classes`` are those of a classifier.
    """
    if isinstance(config, STDiTConfig):
        return _stdit(config, size, text_tokens or config.null_tokens)
    if isinstance(config, DiTConfig):
        return _dit(config, size, text_tokens or 1)
    if isinstance(config, ViTConfig):
        return _vit(config, size, classes)
    return _vivit(config, size, classes)


def _linear(rows: int, inputs: int, outputs: int) -> int:
    return 2 * rows * inputs * outputs


def _attention(queries: int, keys: int, width: int) -> int:
    """Scores, and values weighted by them."""
    return 4 * queries * keys * width


def _embedding(count: int, width: int) -> int:
    """Numbers as vectors (layers.ScalarEmbedding)."""
    return _linear(count, SINUSOID, width) + _linear(count, width, width)


def _stdit(config: STDiTConfig, size: Sequence[int], text_tokens: int) -> Flops:
    frames, rows, columns = count_patches(size, config.patch)
    places, width, volume = rows * columns, config.width, config.in_channels * math.prod(config.patch)
    tokens, hidden = frames * places, round(config.width * config.mlp_ratio)
    keys = {"space": places, "time": frames, "full": tokens}
    axes = block_axes(config)
    parts = Counter(
        {
            "patches": _linear(tokens, volume, width),
            "text": _linear(text_tokens, config.text_width, width),
            "conditions": _embedding(frames + len(config.conditions), width)
            + _linear(frames, width, modulations(config, axes[0]) * width),
            "output": _linear(tokens, width, volume * (2 if config.learn_sigma else 1)),
        }
    )
    if config.text_mlp:
        parts["text"] += _linear(text_tokens, width, width)
    if config.pooled_text:  # whitened, then an MLP
        whitening = _linear(1, config.text_width, config.text_width)
        parts["text"] += whitening + _linear(1, config.text_width, width) + _linear(1, width, width)
    for block in axes:
        for axis in block:
            parts[f"attention.{axis}"] += _linear(tokens, width, 4 * width) + _attention(tokens, keys[axis], width)
        parts["attention.text"] += _cross(tokens, text_tokens, width)
        parts["mlp"] += 2 * _linear(tokens, width, hidden)
    return Flops(dict(parts), tokens)


def _dit(config: DiTConfig, size: Sequence[int], text_tokens: int) -> Flops:
    frames, rows, columns = count_patches(size, (1, config.patch, config.patch))
    places, width, volume = rows * columns, config.width, config.in_channels * config.patch**2
    tokens, hidden = frames * places, round(width * config.mlp_ratio)
    parts = {
        "patches": _linear(tokens, volume, width),
        "conditions": _embedding(frames, width) + _linear(frames, width, (6 * config.depth + 2) * width),
        "attention.space": config.depth * (_linear(tokens, width, 4 * width) + _attention(tokens, places, width)),
        "mlp": config.depth * 2 * _linear(tokens, width, hidden),
        "output": _linear(tokens, width, volume * (2 if config.learn_sigma else 1)),
    }
    if config.condition == "text":  # every frame has its own copy of the caption
        parts["text"] = _linear(frames * text_tokens, config.text_width, width)
        parts["attention.text"] = config.depth * frames * _cross(places, text_tokens, width)
    return Flops(parts, tokens)


def _cross(tokens: int, text_tokens: int, width: int) -> int:
    """Attention to the text: queries and output of the tokens, keys and values of the text."""
    projections = _linear(tokens, width, 2 * width) + _linear(text_tokens, width, 2 * width)
    return projections + _attention(tokens, text_tokens, width)


def _vit(config: ViTConfig, size: Sequence[int], classes: int) -> Flops:
    tokens = math.prod(count_patches(size, config.patch))
    parts = {
        "patches": _linear(tokens, 3 * math.prod(config.patch), config.width),
        **_encoder(config, config.depth, tokens + 1),
        "output": _linear(1, config.width, classes),
    }
    return Flops(parts, tokens)


def _vivit(config: ViViTConfig, size: Sequence[int], classes: int) -> Flops:
    times, rows, columns = count_patches(size, config.patch)
    tokens = times * rows * columns
    spatial = _encoder(config, config.depth, rows * columns + 1)
    temporal = _encoder(config, config.temporal_depth, times + 1)
    parts = {
        "patches": _linear(tokens, 3 * math.prod(config.patch), config.width),
        **{f"spatial.{name}": times * flops for name, flops in spatial.items()},
        **{f"temporal.{name}": flops for name, flops in temporal.items()},
        "output": _linear(1, config.width, classes),
    }
    return Flops(parts, tokens)


def _encoder(config: EncoderConfig, depth: int, tokens: int) -> dict[str, int]:
    """A stack of blocks over ``tokens``, the class token among them."""
    width, hidden = config.width, round(config.width * config.mlp_ratio)
    return {
        "attention": depth * (_linear(tokens, width, 4 * width) + _attention(tokens, tokens, width)),
        "mlp": depth * 2 * _linear(tokens, width, hidden),
    }
