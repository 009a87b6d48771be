"""Which timesteps training draws: the process's law, or by importance, which all ranks learn from all losses."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kineograph.diffusion.gaussian import GaussianConfig
from kineograph.diffusion.importance import Drawn, ImportanceSampler
from kineograph.diffusion.process import Process
from kineograph.diffusion.processes import DiffusionConfig
from pipelines.train.ranks import sum_over_ranks

BINS = 10
"""Of timesteps, in the losses that are logged."""
Prediction = Literal["whole", "first", "rest"]
"""Which prediction of a clip: of an image, of a video's first frame alone, of the rest (or, not factorised, all) of it."""


class Told(NamedTuple):
    """What predictions lost."""

    prediction: Prediction
    places: tuple[int, ...]
    """Of the clips in the step."""
    timesteps: Tensor
    """(B) as drawn."""
    losses: Tensor
    """(B), not weighted, without gradient."""


class Timesteps:
    """Draws timesteps for a step's predictions, and is told what they lost."""

    def __init__(self, config: DiffusionConfig, process: Process) -> None:
        self._process = process
        self._sampler: ImportanceSampler | None = None
        if isinstance(config, GaussianConfig) and config.timesteps == "importance":
            self._sampler = ImportanceSampler(config.steps)
        self._told: list[Told] = []
        self._means: dict[str, tuple[Tensor, Tensor]] = {}

    def draw(self, normal: Tensor, pixels: int, frames: int) -> Drawn:
        """Standard normal numbers (B) to timesteps (B) and the weights (B) of their losses."""
        if self._sampler is not None:
            return self._sampler.draw(normal)
        return Drawn(self._process.draw_timesteps(normal, pixels, frames), torch.ones_like(normal))

    def tell(self, told: Told) -> None:
        """What drawn timesteps lost."""
        if self._sampler is not None:
            self._told.append(told)
        times = (self._process.model_time(told.timesteps) / 1000).clamp(0, 1)
        places = (times * BINS).long().clamp_max(BINS - 1)
        sums = torch.zeros(BINS, device=places.device).index_add_(0, places, told.losses.float())
        counts = torch.bincount(places, minlength=BINS)
        for name, total, count in zip(self.names(), sums, counts, strict=True):
            before = self._means.get(name)
            self._means[name] = (total + before[0], count + before[1]) if before else (total, count)

    @staticmethod
    def names() -> list[str]:
        """Of the means that :meth:`take_means` gives: the loss by tenths of the way from data (0) to noise (1)."""
        return [f"loss_t{bin / BINS:g}-{(bin + 1) / BINS:g}" for bin in range(BINS)]

    def take_means(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Sum and number of the losses told since last time, by name."""
        means, self._means = self._means, {}
        return means

    def learn(self, clips: int) -> None:
        """Go by what was told since last time, on every rank the same. Every rank must call it after a step of ``clips``
        clips. The history is in the order of the step, so it does not depend on the number of ranks."""
        told, self._told = self._told, []
        if self._sampler is None:
            return
        for predictions in (("whole", "rest"), ("first",)):
            rows = torch.zeros(clips, 3)  # timestep, loss, how often it is here
            for one in told:
                if one.prediction in predictions:
                    rows[list(one.places), 0] = one.timesteps.float().cpu()
                    rows[list(one.places), 1] = one.losses.float().cpu()
                    rows[list(one.places), 2] = 1.0
            (rows,) = sum_over_ranks([rows])
            rows = rows[rows[:, 2] > 0]
            rows = rows / rows[:, 2:]  # ranks that share a clip tell the same of it
            self._sampler.update(rows[:, 0].round(), rows[:, 1])

    def state(self) -> dict[str, Tensor]:
        """The history, of importance sampling; else nothing."""
        return {} if self._sampler is None else self._sampler.state_dict()

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from what :meth:`state` gave."""
        if self._sampler is not None:
            self._sampler.load_state_dict(state)
