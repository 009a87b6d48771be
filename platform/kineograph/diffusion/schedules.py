"""Noise schedules of Gaussian diffusion, and which of its timesteps a shorter sampling path keeps.

q(x_t | x_{t-1}) = N(√(1 - β_t)·x_{t-1}, β_t)        ᾱ_t = Π_{s≤t} (1 - β_s)        t = 0 .. N - 1
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kineograph.errors import UserError

Schedule = Literal["linear", "scaled_linear", "cosine"]
Spacing = Literal["trailing", "leading", "linspace", "ddim"]

BETA_ENDS: dict[str, tuple[float, float]] = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}
"""First and last β of a chain of 1000 steps: of DDPM, and of Stable Diffusion."""


def noise_schedule(schedule: Schedule, steps: int, ends: tuple[float, float] | None = None) -> Tensor:
    """β (N) float64 of a chain of ``steps`` = N.

    linear: β grows linearly (Ho et al. 2020). scaled_linear: √β does (Rombach et al. 2022). Both go from ``ends[0]`` to
    ``ends[1]`` (BETA_ENDS by default), times 1000 / N, so that chains of any length end in about as much noise.
    cosine: ᾱ_t = f(t + 1) / f(0) with f(t) = cos²((t/N + 0.008) / 1.008 · π/2), β at most 0.999 (Nichol & Dhariwal 2021,
    eq. 17); it takes no ends. Raises UserError when a β is not between 0 and 1.
    """
    if schedule == "cosine":
        if ends is not None:
            raise UserError("schedule cosine has no first and last β: leave betas out, or use schedule linear")
        f = [math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(steps + 1)]
        return torch.tensor([min(1 - f[t + 1] / f[t], 0.999) for t in range(steps)], dtype=torch.float64)
    first, last = BETA_ENDS[schedule] if ends is None else ends
    if first <= 0 or last <= 0 or max(first, last) * 1000 / steps >= 1:
        raise UserError(
            f"schedule {schedule} from {first} to {last} in {steps} steps has β outside 0..1: "
            f"use positive betas below {steps / 1000:g}, more steps, or schedule cosine"
        )
    if schedule == "linear":
        betas = torch.linspace(first, last, steps, dtype=torch.float64)
    else:
        betas = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2
    return betas * (1000 / steps)


def zero_terminal_snr(betas: Tensor) -> Tensor:
    """β (N) rescaled so that the last timestep is noise alone, ᾱ_{N-1} = 0, and the first stays (Lin et al. 2024, alg. 1).

    √ᾱ is shifted and scaled linearly; the last β becomes 1.
    """
    root = (1 - betas).cumprod(0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    kept = root**2
    return 1 - torch.cat([kept[:1], kept[1:] / kept[:-1]])


def spaced_timesteps(spacing: Spacing, steps: int, count: int) -> Tensor:
    """``count`` of the timesteps 0 .. ``steps`` - 1, ascending (int64).

    trailing: evenly from the last one down; the only one that starts at noise however few they are (Lin et al. 2024,
    table 2). leading: multiples of steps // count. linspace: from the first to the last. ddim: multiples of the
    smallest stride that gives ``count`` of them (IDDPM's "ddimN").
    Raises UserError when there are not as many, or no such stride.
    """
    if not 1 <= count <= steps:
        raise UserError(f"a process of {steps} timesteps cannot be sampled in {count} steps: ask for 1 to {steps}")
    chosen: np.ndarray
    if spacing == "leading":
        chosen = np.arange(count) * (steps // count)
    elif spacing == "linspace":
        chosen = np.linspace(0, steps - 1, count).round()
    elif spacing == "trailing":
        # Where steps / count is not exact in binary, arange may yield one more than asked.
        chosen = np.arange(steps, 0, -steps / count)[:count].round()[::-1] - 1
    else:
        stride = math.ceil(steps / count)
        chosen = np.arange(0, steps, stride)
        if len(chosen) != count:
            raise UserError(
                f"no whole stride takes {count} of {steps} timesteps: ask for {len(chosen)} steps, or use spacing trailing"
            )
    return torch.from_numpy(chosen.astype(np.int64))


def sectioned_timesteps(steps: int, counts: Sequence[int]) -> Tensor:
    """counts[i] evenly spaced timesteps of the i-th of len(counts) equal sections of 0 .. ``steps`` - 1 (IDDPM, §4).

    Ascending (int64), the section nearest to data first; sections differ by one timestep at most, longer ones first.
    Raises UserError when a section has fewer timesteps than its count.
    """
    if not counts or min(counts) < 1:
        raise UserError("sections are counts of at least one step each, e.g. [10, 15, 25]")
    chosen: list[int] = []
    start = 0
    for section, count in enumerate(counts):
        size = steps // len(counts) + (section < steps % len(counts))
        if size < count:
            raise UserError(
                f"section {section + 1} has {size} of {steps} timesteps: it cannot be sampled in {count} steps"
            )
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        place = 0.0
        for _ in range(count):
            chosen.append(start + round(place))
            place += stride  # a running sum: it decides on which side of a tie published samplers fall
        start += size
    return torch.tensor(chosen, dtype=torch.int64)
