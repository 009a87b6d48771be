"""Classifier-free guidance (Ho & Salimans 2022)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def guided(
    model: Callable[..., Tensor], text: Tensor, text_mask: Tensor, fps: Tensor, size: Tensor, scale: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """A predictor of v = v_∅ + scale·(v_text - v_∅) for a sampler.

    ``text`` (B L D) with ``text_mask`` (B L); the unconditional half has no tokens. A scale of 1 runs the model once.
    """

    def predict(x: Tensor, timestep: Tensor) -> Tensor:
        if scale == 1.0:
            return model(x, timestep, text, text_mask, fps, size)
        both = model(
            torch.cat([x, x]),
            torch.cat([timestep, timestep]),
            torch.cat([text, text]),
            torch.cat([text_mask, torch.zeros_like(text_mask)]),
            torch.cat([fps, fps]),
            torch.cat([size, size]),
        )
        with_text, without = both.chunk(2)
        return without + scale * (with_text - without)

    return predict
