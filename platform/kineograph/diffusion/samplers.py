"""From noise to data: ancestral, DDIM, DPM-Solver++(2M), and Euler and Heun for flows.

A sampler walks the nodes of a Path and asks a denoiser at each; of the process it knows α and σ alone. x_t is α_t·x_0 +
σ_t·ε at the node where it is (``now``), x_s is where it goes (``then``). λ = log(α / σ). The last node is clean, and every
sampler's last step returns the last estimate of x_0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from kineograph.config import Config
from kineograph.diffusion.process import Denoised, Path
from kineograph.errors import UserError

SamplerName = Literal["euler", "heun", "dpm_solver++", "ddim", "ancestral"]
FixedVariance = Literal["fixed_small", "fixed_large"]

Denoise = Callable[[Tensor, int], Denoised]
"""(x, index of the node) to the estimate of what x is made of there."""


class SamplerConfig(Config):
    """How a sampler walks from noise to data."""

    name: SamplerName = "euler"
    """euler: flows, the plain choice. heun: flows, two calls of the model a step, better where steps are few and the
    path bends. dpm_solver++: any process, the choice for 10 to 30 steps. ddim: any process, deterministic at eta 0 and on
    a flow equal to euler. ancestral: Gaussian processes with hundreds of steps; the one that uses a learned variance."""
    eta: float = Field(0.0, ge=0, le=1)
    """Share of fresh noise in a step of ddim, 0 (none) .. 1 (as much as ancestral sampling with fixed_small)."""
    variance: FixedVariance = "fixed_small"
    """Of an ancestral step where the process gives none: the posterior's (fixed_small), or β (fixed_large), which suits
    long chains alone (DDPM, §3.2)."""
    spacing: Literal["process", "log_snr", "karras"] = "process"
    """Where the steps are: as the process has them, even in log(α/σ) (Lu et al. 2022), or even in (σ/α)^(1/rho) (Karras
    et al. 2022, eq. 5), which spends a few steps where the picture is decided."""
    rho: float = Field(7.0, gt=0)
    """Of karras: larger puts more of the steps near the data."""
    timesteps: tuple[float, ...] | None = Field(None, min_length=1)
    """The steps themselves, falling, in the process's unit (0..1 of a flow, 0..N-1 of a Gaussian process); they replace
    ``spacing`` and the number of steps."""

    @model_validator(mode="after")
    def _check(self) -> SamplerConfig:
        if self.eta and self.name != "ddim":
            raise ValueError(f"eta is of the sampler ddim and does nothing in {self.name}: leave it at 0")
        if self.timesteps is not None and self.spacing != "process":
            raise ValueError("timesteps and spacing both say where the steps are: give one of them")
        return self

    @property
    def needs_noise(self) -> bool:
        """Whether steps add noise, so that ``sample`` must be given ``step_noise``."""
        return self.name == "ancestral" or self.eta > 0


class Node(NamedTuple):
    """x = alpha·x_0 + sigma·ε."""

    alpha: float
    sigma: float

    @property
    def log_snr(self) -> float:
        """λ = log(alpha / sigma): half the log of the SNR; -inf without data."""
        return math.log(self.alpha / self.sigma) if self.alpha > 0 else -math.inf


@torch.inference_mode()
def sample(
    sampler: SamplerConfig | SamplerName,
    denoise: Denoise,
    noise: Tensor,
    path: Path,
    step_noise: Callable[[int], Tensor] | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Latents (B C T H W) of the shape and dtype of ``noise``, which is x at the first node.

    A name stands for its defaults. ``denoise(x, node)`` is asked at every node but the last. ``step_noise(step)`` gives
    standard normal numbers of x's shape to each step but the last of a sampler that needs noise. ``on_step(step, clean)``
    hears the estimate of x_0 that a step starts from. Raises UserError for a sampler that cannot walk this path,
    ValueError for a path that ends before the data and for missing ``step_noise``.
    """
    config = SamplerConfig(name=sampler) if isinstance(sampler, str) else sampler
    nodes = _nodes(path, config)
    if config.needs_noise and step_noise is None and len(nodes) > 2:
        raise ValueError(f"the sampler {config.name} adds noise in its steps: give step_noise")
    x = noise
    before: tuple[Tensor, Node] | None = None  # what dpm_solver++ remembers
    for step, (now, then) in enumerate(pairwise(nodes)):
        estimate = denoise(x, step)
        if on_step is not None:
            on_step(step, estimate.clean)
        fresh = step_noise(step).to(x) if step_noise and config.needs_noise and then.sigma > 0 else None
        if config.name == "ancestral":
            x = ancestral_step(x, estimate, now, then, fresh, config.variance)
        elif config.name == "ddim":
            x = ddim_step(estimate, now, then, fresh, config.eta)
        elif config.name == "dpm_solver++":
            x = dpm_solver_step(x, estimate.clean, now, then, before)
            before = estimate.clean, now
        elif config.name == "heun":
            x = heun_step(x, estimate, now, then, denoise, step + 1)
        else:
            x = euler_step(x, _slope(estimate), now, then)
    return x


def ancestral_step(
    x: Tensor, estimate: Denoised, now: Node, then: Node, noise: Tensor | None, variance: FixedVariance = "fixed_small"
) -> Tensor:
    """A draw from q(x_s | x_t, x_0) at the estimate of x_0: DDPM's step between any two nodes (VDM, eqs. 25-29).

    ``noise`` is standard normal; None gives the mean. A learned variance of the estimate replaces ``variance``.
    """
    ratio, beta = _transition(now, then)
    left = then.sigma**2 / now.sigma**2
    mean = ratio * left * x + then.alpha * beta / now.sigma**2 * estimate.clean
    if noise is None or then.sigma == 0:
        return mean
    if estimate.variance is None:
        return mean + math.sqrt(beta if variance == "fixed_large" else left * beta) * noise
    least, most = math.log(left * beta), math.log(beta)
    return mean + torch.exp(0.5 * (least + (most - least) * estimate.variance)) * noise


def ddim_step(estimate: Denoised, now: Node, then: Node, noise: Tensor | None = None, eta: float = 0.0) -> Tensor:
    """x_s = α_s·x_0 + √(σ_s² - d²)·ε + d·noise, where d is ``eta`` times the posterior's deviation (DDIM, eqs. 12, 16)."""
    _, beta = _transition(now, then)
    deviation = eta * then.sigma / now.sigma * math.sqrt(beta)
    x = then.alpha * estimate.clean + math.sqrt(max(then.sigma**2 - deviation**2, 0.0)) * estimate.noise
    return x if noise is None else x + deviation * noise


def dpm_solver_step(
    x: Tensor, clean: Tensor, now: Node, then: Node, before: tuple[Tensor, Node] | None = None
) -> Tensor:
    """x_s = σ_s/σ_t·x_t + α_s·(1 - e^-h)·D, h = λ_s - λ_t: DPM-Solver++(2M), midpoint (Lu et al. 2022b, algorithm 2).

    D goes on from ``clean``, the estimate here, along its change since the one ``before``, which comes with its node.
    Without that, and in the step to clean data, where h is infinite, D is ``clean``: first order.
    """
    direction = clean
    if before is not None and then.sigma > 0:
        previous, node = before
        h, h_before = then.log_snr - now.log_snr, now.log_snr - node.log_snr
        # The first node may be noise alone: then h_before is infinite and this is first order again.
        direction = clean + 0.5 * h / h_before * (clean - previous)
    decay = now.alpha * then.sigma / (then.alpha * now.sigma)  # e^-h, also where an end of the step is infinite
    return then.sigma / now.sigma * x + then.alpha * (1 - decay) * direction


def euler_step(x: Tensor, slope: Tensor, now: Node, then: Node) -> Tensor:
    """A step of a flow along its velocity dx/dσ = ε - x_0."""
    return x + (then.sigma - now.sigma) * slope


def heun_step(x: Tensor, estimate: Denoised, now: Node, then: Node, denoise: Denoise, index: int) -> Tensor:
    """A step of a flow along the mean of the velocities here and at the end of Euler's step (Karras et al. 2022, alg. 1).

    ``denoise`` is asked at ``then``, whose index is ``index``. The step to clean data is Euler's: there the model has
    nothing to say.
    """
    slope = _slope(estimate)
    predicted = euler_step(x, slope, now, then)
    if then.sigma == 0:
        return predicted
    return euler_step(x, (slope + _slope(denoise(predicted, index))) / 2, now, then)


def _slope(estimate: Denoised) -> Tensor:
    return estimate.noise - estimate.clean


def _transition(now: Node, then: Node) -> tuple[float, float]:
    """Factor and variance of the noise that leads from x_s back to x_t: α_t/α_s and σ_t² - (α_t/α_s)²·σ_s² (VDM, eq. 23).

    On a Gaussian process the variance is 1 - ᾱ_t/ᾱ_s, which is β of adjacent timesteps.
    """
    ratio = now.alpha / then.alpha
    return ratio, now.sigma**2 - ratio**2 * then.sigma**2


def _nodes(path: Path, config: SamplerConfig) -> list[Node]:
    nodes = [Node(*pair) for pair in zip(path.alphas.tolist(), path.sigmas.tolist(), strict=True)]
    if len(nodes) < 2 or nodes[-1] != (1, 0):
        raise ValueError("a path has at least one step, and its last node is clean: alpha 1, sigma 0")
    if config.name in ("euler", "heun") and any(abs(n.alpha + n.sigma - 1) > 1e-6 for n in nodes):
        raise UserError(
            f"the sampler {config.name} is for flow models: use dpm_solver++, ddim or ancestral for this one"
        )
    return nodes
