"""How many floating-point operations a model takes: counted from its config, exact for its matrix products.

A multiply-add is 2. What is counted is what the model computes of the shapes that it sees: whole patches, the tokens that
a caption has, no recomputation in the backward pass (model FLOPs; Chowdhery et al. 2022, PaLM, appendix B). Norms,
activations and sums are left out: they are bound by memory, and below 1% in all of these models.

Letters: T frames, S patches per frame, N = T·S tokens, L text tokens, D width.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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

PEAK_BF16: Mapping[str, float] = {
    "GB200": 2.5e15,
    "B200": 2.25e15,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "GH200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H800": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "A800": 312e12,
    "A6000": 154.8e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 5090": 209.5e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
    "MI300X": 1307e12,
    "MI325X": 1307e12,
    "MI250X": 191.5e12,
}
"""Peak FLOP/s in bf16 with fp32 accumulation and without sparsity, from the makers' data sheets and, for the RTX cards,
NVIDIA's architecture white papers. NVIDIA's sheets give twice as much: with sparsity. MI250X: of one of its two dies, which
are a device each."""


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


def total_flops(clips: Iterable[Flops]) -> Flops:
    """Work on a batch of clips, which may differ in size."""
    parts: Counter[str] = Counter()
    tokens = 0
    for clip in clips:
        parts.update(clip.parts)
        tokens += clip.tokens
    return Flops(dict(parts), tokens)


def peak_flops(device: str) -> float | None:
    """Peak bf16 FLOP/s of a GPU by the name that the driver gives it ("NVIDIA H100 80GB HBM3"); None when unknown."""
    words = device.replace("-", " ").replace("_", " ").upper().split()
    for name, peak in PEAK_BF16.items():  # the special ones stand before the general ones
        if all(word.upper() in words for word in name.split()):
            return peak
    return None


def mfu(tokens_per_s: float, flops_per_token: float, peak: float) -> float:
    """Model FLOPs utilisation, 0..1, of one GPU that does ``tokens_per_s`` and could do ``peak`` FLOP/s."""
    return tokens_per_s * flops_per_token / peak


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
