"""Importance-sampled timesteps: those whose loss is larger are drawn more often, and weigh less (IDDPM, §3.3).

p_t ∝ √E[L_t²]        weight 1 / (N·p_t)        so the weighted loss has the mean of uniform timesteps, with less variance
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kineograph.errors import UserError


class Drawn(NamedTuple):
    """Timesteps (B) int64 and the weights (B) of their losses."""

    timesteps: Tensor
    weights: Tensor


class ImportanceSampler:
    """Draws the training timesteps of a Gaussian process of ``steps`` by the last ``history`` losses of each timestep.

    Until every timestep has that many, it draws uniformly. ``uniform`` is the share of draws that stays so, which
    keeps every timestep alive. The defaults are IDDPM's. Every rank holds the same state when every rank is told the
    losses of all ranks in the order of the global batch.
    """

    def __init__(self, steps: int, history: int = 10, uniform: float = 0.001) -> None:
        if steps < 1 or history < 1 or not 0 < uniform <= 1:
            raise UserError("importance sampling needs steps and history of 1 or more, and uniform above 0, at most 1")
        self.uniform = uniform
        self._losses = torch.zeros(steps, history, dtype=torch.float64)  # each row a ring
        self._seen = torch.zeros(steps, dtype=torch.int64)  # losses of each timestep ever told

    def probabilities(self) -> Tensor:
        """p (N) float64 of each timestep."""
        steps, history = self._losses.shape
        if int(self._seen.min()) < history:
            return torch.full((steps,), 1 / steps, dtype=torch.float64)
        size = self._losses.square().mean(1).sqrt() + 1e-30  # uniform, not undefined, when every loss is 0
        return (1 - self.uniform) * size / size.sum() + self.uniform / steps

    def draw(self, normal: Tensor) -> Drawn:
        """Standard normal numbers (B) to timesteps, by the inverse of their distribution, and to weights of that dtype.

        Depends on the state and on ``normal`` alone; the weights of all timesteps average to 1 under p.
        """
        p = self.probabilities()
        uniform = torch.special.ndtr(normal.double().cpu())
        timesteps = torch.searchsorted(p.cumsum(0), uniform, right=True).clamp_max(len(p) - 1)
        weights = 1 / (len(p) * p[timesteps])
        return Drawn(timesteps.to(normal.device), weights.to(normal))

    def update(self, timesteps: Tensor, losses: Tensor) -> None:
        """Remember the losses (n), not weighted, of ``timesteps`` (n); what is not finite is left out."""
        timesteps = timesteps.detach().cpu().long()
        losses = losses.detach().cpu().double()
        finite = losses.isfinite()
        timesteps, order = timesteps[finite].sort(stable=True)
        losses = losses[finite][order]
        steps, history = self._losses.shape
        count = timesteps.bincount(minlength=steps)
        nth = torch.arange(len(timesteps)) - torch.searchsorted(timesteps, timesteps)  # among those of its timestep
        last = nth >= count[timesteps] - history
        slot = (self._seen[timesteps] + nth) % history
        self._losses[timesteps[last], slot[last]] = losses[last]
        self._seen += count

    def state_dict(self) -> dict[str, Tensor]:
        """The history: ``losses`` (N history) float64 and ``seen`` (N) int64."""
        return {"losses": self._losses.clone(), "seen": self._seen.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up a history. Raises UserError when it is of another number of timesteps or another length."""
        if state["losses"].shape != self._losses.shape:
            raise UserError(
                f"the history of losses is {tuple(state['losses'].shape)} and the run's {tuple(self._losses.shape)}: "
                "resume with the steps it was trained with"
            )
        self._losses.copy_(state["losses"])
        self._seen.copy_(state["seen"])
