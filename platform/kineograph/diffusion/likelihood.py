"""Terms of the variational bound of a Gaussian diffusion, elementwise in nats (Ho et al. 2020, eqs. 5 and 13)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def normal_kl(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp log_variance) ‖ N(other_mean, exp other_log_variance)); the shapes broadcast."""
    return 0.5 * (
        other_log_variance
        - log_variance
        - 1
        + torch.exp(log_variance - other_log_variance)
        + (mean - other_mean).square() * torch.exp(-other_log_variance)
    )


def normal_cdf(x: Tensor) -> Tensor:
    """The standard normal's distribution function by Page's tanh (1977), within 2e-4 of the exact one.

    IDDPM's numbers are computed with this approximation; with the exact function they would not be reproduced.
    """
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def discretised_log_likelihood(data: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log probability, under the normal law, of the bin of ``data`` when [-1, 1] holds 256 values 2/255 apart.

    The first and last bin reach to infinity. Latents are not pixels: for them it is a smooth stand-in for a density.
    """
    precision = torch.exp(-0.5 * log_variance)
    centred = data - mean
    below = normal_cdf(precision * (centred - 1 / 255))
    above = normal_cdf(precision * (centred + 1 / 255))
    probability = torch.where(data < -0.999, above, torch.where(data > 0.999, 1 - below, above - below))
    return probability.clamp_min(1e-12).log()
