"""Which timesteps training draws: the process's law, or by importance, which all ranks learn from all losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kineograph.diffusion.gaussian import GaussianConfig
from kineograph.diffusion.importance import Drawn, ImportanceSampler
from kineograph.diffusion.process import Process
from kineograph.diffusion.processes import DiffusionConfig
from pipelines.train.ranks import sum_over_ranks


class Timesteps:
    """Draws timesteps for a step's predictions, and is told what they lost."""

    def __init__(self, config: DiffusionConfig, process: Process) -> None:
        self._process = process
        self._sampler: ImportanceSampler | None = None
        if isinstance(config, GaussianConfig) and config.timesteps == "importance":
            self._sampler = ImportanceSampler(config.steps)
        self._told: list[tuple[Tensor, Tensor]] = []

    def draw(self, normal: Tensor, pixels: int, frames: int) -> Drawn:
        """Standard normal numbers (B) to timesteps (B) and the weights (B) of their losses."""
        if self._sampler is not None:
            return self._sampler.draw(normal)
        return Drawn(self._process.draw_timesteps(normal, pixels, frames), torch.ones_like(normal))

    def tell(self, timesteps: Tensor, losses: Tensor) -> None:
        """The losses (B), not weighted, of drawn timesteps (B)."""
        if self._sampler is not None:
            self._told.append((timesteps, losses.detach()))

    def learn(self, places: Sequence[int], slots: int) -> None:
        """Go by what was told since last time, on every rank the same. Every rank must call it after a step's losses.

        ``places`` are those of this rank's clips among all ``slots`` of the step: the history is in their order, so it
        does not depend on the number of ranks.
        """
        for timesteps, losses in self._told:
            assert self._sampler is not None
            rows = torch.zeros(slots, 2, device=losses.device)
            rows[list(places)] = torch.stack([timesteps.float(), losses.float()], dim=1)
            (rows,) = sum_over_ranks([rows])
            self._sampler.update(rows[:, 0], rows[:, 1])
        self._told.clear()

    def state(self) -> dict[str, Tensor]:
        """The history, of importance sampling; else nothing."""
        return {} if self._sampler is None else self._sampler.state_dict()

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from what :meth:`state` gave."""
        if self._sampler is not None:
            self._sampler.load_state_dict(state)
