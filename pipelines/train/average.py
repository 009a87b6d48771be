"""The moving average of the weights, of which every rank keeps its part."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pipelines.train.engine import Engine
from pipelines.train.parts import Part, fill


class Average:
    """Exponential moving average of an engine's trained parameters in fp32 (Polyak & Juditsky 1992). It lies on the ranks
    as the weights that Adam updates do, for every ZeRO stage and where they are offloaded too."""

    def __init__(self, engine: Engine, decay: float) -> None:
        self.decay = decay
        self._engine = engine
        weights = engine.parts()
        self._weights = [part.values for part in weights.values()]
        self._parts = {name: Part(start, values.clone()) for name, (start, values) in weights.items()}
        self._values = [part.values for part in self._parts.values()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights after ``step`` steps; faster in the beginning. Not to be called for a skipped step."""
        decay = min(self.decay, (1 + step) / (10 + step))
        if self._values:  # there may be more ranks than parameters
            torch._foreach_lerp_(self._values, self._weights, 1 - decay)

    def gather(self) -> dict[str, Tensor]:
        """The averaged parameters, and frozen ones and buffers as they are: a state dict in fp32 on the CPU of rank 0, {}
        on the others. Every rank must call it."""
        return {**self._engine.fixed(), **self._engine.gather(self._parts)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`gather` gave; every rank must be given the whole."""
        fill(self._parts, state)
