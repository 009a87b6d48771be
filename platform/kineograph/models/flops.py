"""How many floating-point operations a model takes: counted from its config, exact for its matrix products. And how many
a device could do in that time.

A multiply-add is 2. What is counted is what the model computes of the shapes that it sees: whole patches, the tokens that
a caption has, no recomputation in the backward pass (model FLOPs; Chowdhery et al. 2022, PaLM, appendix B). Norms,
activations and sums are left out: they are bound by memory, and below 1% in all of these models.

Letters: T frames, S patches per frame, N = T·S tokens, L text tokens, D width.
"""

from __future__ import annotations

import functools
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

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


def mfu(flops: float, seconds: float, peak: float) -> float:
    """Model FLOPs utilisation, 0..1: operations that the model needs over those that the device could do in that time
    (Chowdhery et al. 2022, PaLM, appendix B)."""
    return flops / (seconds * peak)


def hfu(flops: float, seconds: float, peak: float, recomputed: float) -> float:
    """Hardware FLOPs utilisation, 0..1: as :func:`mfu`, counting what is computed again too, ``recomputed`` times ``flops``
    in all (execution.recompute_factor). What attention kernels compute again inside is not counted."""
    return recomputed * mfu(flops, seconds, peak)


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


# What devices could do.

# Dense rates in TFLOP/s of bf16, fp16 (both with fp32 sums), tf32 and fp32 outside of matrix units. For Hopper, Ada and
# Blackwell NVIDIA's sheets give the first three with sparsity, which is twice as much. Special names come before general.
_TERA: Mapping[str, tuple[float, float, float, float]] = {
    # NVIDIA Blackwell: data sheets of GB200 NVL72 (for each of its 72 GPUs) and of HGX B200.
    "GB200": (2500, 2500, 1250, 80),
    "B200": (2250, 2250, 1100, 75),
    # NVIDIA H200 and H100 data sheets; an H800 differs from an H100 in fp64 and NVLink.
    "H200 NVL": (835, 835, 417, 60),
    "H200": (989, 989, 494, 67),
    "GH200": (989, 989, 494, 67),
    "H100 NVL": (835, 835, 417, 60),
    "H100 PCIe": (756, 756, 378, 51),
    "H100": (989, 989, 494, 67),
    "H800": (989, 989, 494, 67),
    # NVIDIA Ampere: data sheets of A100, A800, A30, A40, A10 and RTX A6000.
    "A100": (312, 312, 156, 19.5),
    "A800": (312, 312, 156, 19.5),
    "A30": (165, 165, 82, 10.3),
    "A40": (149.7, 149.7, 74.8, 37.4),
    "A10": (125, 125, 62.5, 31.2),
    "RTX A6000": (154.8, 154.8, 77.4, 38.7),
    # NVIDIA Ada: data sheets of L40S, L40, L4. RTX: architecture white papers of Ada, Ampere GA102 and Blackwell.
    "L40S": (362, 362, 183, 91.6),
    "L40": (181, 181, 90.5, 90.5),
    "L4": (121, 121, 60, 30.3),
    "RTX 5090": (209.5, 209.5, 104.8, 104.8),
    "RTX 4090": (165.2, 165.2, 82.6, 82.6),
    "RTX 3090": (71, 71, 35.6, 35.6),
    # NVIDIA V100 and T4 data sheets: matrix units for fp16 alone; the rest is done in fp32.
    "V100 SXM2": (15.7, 125, 15.7, 15.7),
    "V100 SXM3": (15.7, 125, 15.7, 15.7),
    "V100 PCIE": (14, 112, 14, 14),
    "T4": (8.1, 65, 8.1, 8.1),
    # AMD Instinct data sheets. fp32 by matrix units, where they have it.
    "MI300X": (1307.4, 1307.4, 653.7, 163.4),
    "MI325X": (1307.4, 1307.4, 653.7, 163.4),
}
_COLUMNS = ("bf16", "fp16", "tf32", "fp32")
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}
_SECONDS = 0.3


def peak_flops(device: torch.device | str, precision: str = "bf16") -> float:
    """FLOP/s that ``device`` could do in ``precision``: bf16, fp16, tf32 or fp32, which is tf32 where torch may use it.

    Of a GPU by the name that its driver gives it. Of a CPU, and of a GPU that is not listed, what large matrix products
    reach, measured once in a process: no more than a stand-in for a peak.
    """
    device = torch.device(device)
    if device.type == "cuda":
        if precision == "fp32" and torch.get_float32_matmul_precision() != "highest":
            precision = "tf32"
        known = peak_of_gpu(torch.cuda.get_device_name(device), precision)
        if known is not None:
            return known
    return _measured(str(device), precision, torch.get_num_threads())


def peak_of_gpu(name: str, precision: str) -> float | None:
    """By data sheet, of a GPU as its driver calls it ("NVIDIA H100 80GB HBM3"); None when it is not listed."""
    words = name.replace("-", " ").replace("_", " ").upper().split()
    for listed, tera in _TERA.items():
        if all(word in words for word in listed.upper().split()):
            return 1e12 * dict(zip(_COLUMNS, tera, strict=True))[precision]
    return None


@functools.cache
def _measured(device: str, precision: str, threads: int) -> float:
    """The best of what products of square matrices reach within _SECONDS; ``threads`` is here for the cache alone."""
    side = 8192 if device.startswith("cuda") else 1024
    a = torch.randn(side, side, device=device).to(_DTYPES[precision])
    least, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < _SECONDS or least == float("inf"):
        begin = time.perf_counter()
        b = a @ a
        b[0, 0].item()  # waits for a GPU
        least = min(least, time.perf_counter() - begin)
    return 2 * side**3 / least
