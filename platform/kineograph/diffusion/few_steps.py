"""Where a sampler of few steps stops: some of the nodes of a fine path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from kineograph.diffusion.process import Path
from kineograph.diffusion.samplers import SamplerConfig
from kineograph.errors import UserError


def sampling_path(config: SamplerConfig, path_of: Callable[[int], Path], steps: int, finest: int = 1000) -> Path:
    """The path of a sampler of ``steps`` steps, of which ``config`` says where they are.

    ``path_of(steps)`` is the process's path of that many steps. Spacings of the sampler's own, and timesteps in so many
    words, pick from its path of ``finest`` steps: for a Gaussian process that is its chain, so that every node is one it
    was trained on. Raises UserError for more steps than that, and for timesteps that do not fall.
    """
    if config.timesteps is not None:
        path = path_of(finest)
        return _pick(path, _nearest_timesteps(path, config.timesteps))
    if config.spacing == "process":
        return path_of(steps)
    if not 1 <= steps <= finest:
        raise UserError(f"cannot sample in {steps} steps with spacing {config.spacing}: ask for 1 to {finest}")
    path = path_of(finest)
    return _pick(path, _even_nodes(path, steps, None if config.spacing == "log_snr" else config.rho))


def _pick(path: Path, nodes: Sequence[int]) -> Path:
    index = torch.tensor([*nodes, len(path.timesteps) - 1])
    return Path(path.timesteps[index], path.alphas[index], path.sigmas[index])


def _even_nodes(path: Path, steps: int, rho: float | None) -> list[int]:
    """The first node, and those nearest to even steps in λ = log(α/σ), or in (σ/α)^(1/rho)."""
    log_snr = (path.alphas / path.sigmas)[:-1].log()  # of the noisy nodes; -inf where there is no data
    finite = log_snr[log_snr.isfinite()]
    first, last = finite[0], finite[-1]
    if rho is None:
        targets = _even(first, last, steps)
    else:
        targets = -rho * _even((-first / rho).exp(), (-last / rho).exp(), steps).log()
    nearest = (log_snr - targets[:, None]).abs().argmin(1).tolist()
    nodes = [0]
    for step in range(1, steps):  # nodes that would coincide move on, and leave one for every step to come
        nodes.append(min(max(nearest[step], nodes[-1] + 1), len(log_snr) - steps + step))
    return nodes


def _even(first: Tensor, last: Tensor, count: int) -> Tensor:
    return first + (last - first) * torch.linspace(0, 1, count, dtype=torch.float64)


def _nearest_timesteps(path: Path, timesteps: Sequence[float]) -> list[int]:
    noisy = path.timesteps[:-1]
    low, high = float(noisy[-1]), float(noisy[0])
    if min(timesteps) < 0 or max(timesteps) > high:
        raise UserError(f"timesteps {list(timesteps)} leave the path, which goes from {high:g} down to {low:g}")
    nodes = [int((noisy - timestep).abs().argmin()) for timestep in timesteps]
    if any(later <= node for node, later in pairwise(nodes)):
        raise UserError(f"timesteps {list(timesteps)} must fall from noise to data, each to a node of its own")
    return nodes
