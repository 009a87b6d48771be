"""What a denoiser keeps of clips for its backward pass, found by running one or two of its blocks on a CPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import nn

from kineograph.models.denoisers import build_denoiser
from kineograph.models.dit import DiTConfig
from kineograph.models.execution import ExecutionConfig, prepare
from kineograph.models.flops import count_flops
from kineograph.models.measure import saved_for_backward
from kineograph.models.stdit import STDiTConfig

FRAMES = (1, 3)
"""Of the clips that are tried. What a token takes does not depend on how many there are."""
PATCHES = 4
"""Their rows, and their columns."""


@dataclass(frozen=True)
class KeptBytes:
    """Bytes as they grow with clips, their tokens and the model's depth, the last in steps of ``every`` blocks."""

    every: int
    clip: tuple[float, float]
    """Of a clip: outside the blocks, and in ``every`` blocks."""
    token: tuple[float, float]
    """The same of each of its tokens."""
    weights: tuple[float, float]
    """The same of copies of the weights, as autocast makes them."""
    again: KeptBytes | None = None
    """Of blocks that keep all, where some are computed again in the backward pass: they do so one at a time."""

    def of(self, clips: int, tokens: int, depth: int) -> float:
        """Of ``clips`` clips of ``tokens`` tokens each, at once, when most is kept."""
        block = self.again.inside(clips, tokens) if self.again else 0.0
        return self.outside(clips, tokens) + self.inside(clips, tokens) * depth / self.every + block

    def outside(self, clips: int, tokens: int) -> float:
        """The part that no block keeps."""
        return clips * (self.clip[0] + tokens * self.token[0]) + self.weights[0]

    def inside(self, clips: int, tokens: int) -> float:
        """The part of ``every`` blocks."""
        return clips * (self.clip[1] + tokens * self.token[1]) + self.weights[1]


def kept_bytes(
    shape: STDiTConfig | DiTConfig, execution: ExecutionConfig, precision: Literal["fp32", "bf16"], text_tokens: int
) -> KeptBytes:
    """What a denoiser of ``shape`` keeps, run as ``execution`` says, if every caption has ``text_tokens`` tokens."""
    if execution.recompute == "none":
        return _count(shape, ExecutionConfig(), precision, text_tokens)
    again = _count(shape, ExecutionConfig(), precision, text_tokens)
    return replace(_count(shape, execution.model_copy(update={"compile": False}), precision, text_tokens), again=again)


def _count(
    shape: STDiTConfig | DiTConfig, execution: ExecutionConfig, precision: Literal["fp32", "bf16"], text_tokens: int
) -> KeptBytes:
    every, found = execution.recompute_every, []
    tokens = [count_flops(shape, _size(shape, frames), 0).tokens for frames in FRAMES]
    for depth in (every, 2 * every):
        with torch.random.fork_rng(devices=()):
            model = build_denoiser(shape.model_copy(update={"depth": depth}))
        prepare(model, execution)
        run = partial(_run, model, shape, precision, text_tokens)
        (few, one), (many, _) = ((run(frames, 2) - run(frames, 1), run(frames, 1)) for frames in FRAMES)
        of_token = (many - few) / (tokens[1] - tokens[0])
        found.append((few - of_token * tokens[0], of_token, float(one - few)))
    clip, token, weights = ((2 * once - twice, twice - once) for once, twice in zip(*found, strict=True))
    return KeptBytes(every, clip, token, weights)


def _size(shape: STDiTConfig | DiTConfig, frames: int) -> tuple[int, int, int]:
    frame, row, column = (1, shape.patch, shape.patch) if isinstance(shape.patch, int) else shape.patch
    return frames * frame, PATCHES * row, PATCHES * column


def _run(
    model: nn.Module,
    shape: STDiTConfig | DiTConfig,
    precision: Literal["fp32", "bf16"],
    text_tokens: int,
    frames: int,
    clips: int,
) -> int:
    size = _size(shape, frames)
    with saved_for_backward() as saved, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        output = model(
            torch.zeros(clips, shape.in_channels, *size),
            torch.full((clips, size[0]), 0.5),
            torch.zeros(clips, text_tokens, shape.text_width),
            torch.ones(clips, text_tokens, dtype=torch.bool),
            torch.full((clips,), 8.0),
            torch.full((clips, 2), 256.0),
        )
        kept = saved.bytes
    del output
    return kept
