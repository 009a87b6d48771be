"""Gaussian diffusion: DDPM (Ho et al. 2020) and IDDPM (Nichol & Dhariwal 2021), with ε, x_0 or v prediction.

x_t = √ᾱ_t·x_0 + √(1 - ᾱ_t)·ε = α·x_0 + σ·ε        v = α·ε - σ·x_0        SNR = α² / σ²        t = 0 .. N - 1

A timestep is an index, and 0 is the least noisy, not the data: frames that are given stay clean because nobody adds
noise to them, and the model is told 0 of both.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from kineograph.config import Config
from kineograph.diffusion.likelihood import discretised_log_likelihood, normal_kl
from kineograph.diffusion.process import Denoised, Path
from kineograph.diffusion.schedules import (
    Schedule,
    Spacing,
    noise_schedule,
    sectioned_timesteps,
    spaced_timesteps,
    zero_terminal_snr,
)
from kineograph.errors import UserError


class GaussianConfig(Config):
    """A Gaussian diffusion process: its noise, what the model predicts, the loss, and the sampling path."""

    kind: Literal["gaussian"] = "gaussian"
    steps: int = Field(1000, ge=2)
    """Timesteps N of the chain; the model is told 1000·t/N, which is t for the usual 1000."""
    schedule: Schedule = "linear"
    """linear (DDPM), scaled_linear (Stable Diffusion) or cosine (IDDPM)."""
    betas: tuple[float, float] | None = None
    """First and last β of 1000 steps; by default 1e-4 and 0.02 (linear), 0.00085 and 0.012 (scaled_linear)."""
    zero_terminal_snr: bool = False
    """Rescale the schedule so that the last timestep is noise alone (Lin et al. 2024); not with epsilon prediction."""
    prediction: Literal["epsilon", "clean", "velocity"] = "epsilon"
    """What the model's output is: the noise ε, the data x_0, or v = α·ε - σ·x_0 (Salimans & Ho 2022)."""
    variance: Literal["fixed_small", "fixed_large", "learned_range"] = "fixed_small"
    """Of the reverse step: the posterior's (fixed_small), β (fixed_large), or learned between them (IDDPM, eq. 15)."""
    vlb_weight: float = Field(0.001, ge=0)
    """λ of the variational bound, in bits and summed over the N timesteps, beside the squared error (IDDPM, eq. 16);
    only with learned_range."""
    min_snr_gamma: float | None = Field(None, gt=0)
    """Cap on the SNR as the weight of the error of x_0, e.g. 5 (Hang et al. 2023); a timestep without signal weighs 0."""
    clip: float | None = Field(None, gt=0)
    """Clip the estimate of x_0 to [-clip, clip] when sampling, e.g. 1 for pixels; latents have no such bounds."""
    timesteps: Literal["uniform", "importance"] = "uniform"
    """How training draws timesteps; importance: by the root mean square of their recent losses (IDDPM, §3.3)."""
    spacing: Spacing = "trailing"
    """Which timesteps a sampler keeps: trailing (Lin et al. 2024), leading, linspace, or ddim (whole strides, IDDPM)."""
    sections: tuple[int, ...] | None = None
    """Shares of the steps of equal sections of the chain, nearest to data first (IDDPM, §4), instead of ``spacing``."""

    @model_validator(mode="after")
    def _check(self) -> GaussianConfig:
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise ValueError("noise alone says nothing of the data: with zero_terminal_snr use prediction velocity")
        if self.sections is not None and (not self.sections or min(self.sections) < 1):
            raise ValueError("sections are counts of at least one step each, e.g. [10, 15, 25]")
        try:
            noise_schedule(self.schedule, self.steps, self.betas)
        except UserError as error:
            raise ValueError(str(error)) from error
        return self


class Moments(NamedTuple):
    """Of a normal law with independent elements; ``variance`` and ``log_variance`` have the shape of ``mean``."""

    mean: Tensor
    variance: Tensor
    log_variance: Tensor


class _Tables(NamedTuple):
    """Coefficients by timestep."""

    alpha: Tensor
    sigma: Tensor
    clean_of_noisy: Tensor  # x_0 = clean_of_noisy·x_t - clean_of_noise·ε
    clean_of_noise: Tensor
    mean_of_clean: Tensor  # mean of q(x_{t-1} | x_t, x_0) = mean_of_clean·x_0 + mean_of_noisy·x_t
    mean_of_noisy: Tensor
    posterior_variance: Tensor
    posterior_log_variance: Tensor
    log_beta: Tensor
    loss_weight: Tensor


class Gaussian:
    """A :class:`~kineograph.diffusion.process.Process` whose timesteps are the integers 0 .. N - 1, of any dtype."""

    def __init__(self, config: GaussianConfig) -> None:
        self.config = config
        betas = noise_schedule(config.schedule, config.steps, config.betas)
        self.betas = zero_terminal_snr(betas) if config.zero_terminal_snr else betas
        """β (N) float64."""
        self.alphas_cumprod = (1 - self.betas).cumprod(0)
        """ᾱ (N) float64."""
        self._tables = torch.stack(_tables(config, self.betas, self.alphas_cumprod))  # coefficients N
        self._on_device = {self._tables.device: self._tables}

    @property
    def finest(self) -> int:
        return self.config.steps

    @property
    def output_factor(self) -> int:
        return 2 if self.config.variance == "learned_range" else 1

    def draw_timesteps(self, normal: Tensor, pixels: int, frames: int) -> Tensor:
        """Standard normal numbers (B) to uniform timesteps (B) int64, the same law for videos of any size.

        For ``timesteps: importance`` training draws from an ImportanceSampler instead, which has a state.
        """
        uniform = torch.special.ndtr(normal.double())
        return (uniform * self.config.steps).long().clamp_max(self.config.steps - 1)

    def timestep_at(self, time: float) -> Tensor:
        """The index nearest to ``time``·(N - 1)."""
        return torch.tensor(round(time * (self.config.steps - 1)))

    def model_time(self, timestep: Tensor) -> Tensor:
        """1000·t/N in the dtype of ``timestep``, or in fp32 for integers: t itself for N = 1000."""
        time = timestep if timestep.is_floating_point() else timestep.float()
        return time * (1000 / self.config.steps)

    def add_noise(self, data: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        c = self._at(timestep, data)
        return c.alpha * data + c.sigma * noise

    def denoised(self, output: Tensor, noisy: Tensor, timestep: Tensor) -> Denoised:
        """Estimates of x_0, clipped if the config says so, and of the noise that leads from it to ``noisy``.

        The variance is what the model says, None for fixed_small, and for fixed_large 1, but 0 at t = 0 (DDPM's code).
        With a fixed one channels of the output behind the first C are left aside.
        """
        estimate = self._denoised(output, noisy, timestep)
        if self.config.clip is None:
            return estimate
        c = self._at(timestep, noisy)
        clean = estimate.clean.clamp(-self.config.clip, self.config.clip)
        return Denoised(clean, (noisy - c.alpha * clean) / c.sigma, estimate.variance)

    def _denoised(self, output: Tensor, noisy: Tensor, timestep: Tensor) -> Denoised:
        c = self._at(timestep, noisy)
        predicted, variance = output[:, : noisy.shape[1]], None
        if self.config.variance == "learned_range":
            variance = (output[:, noisy.shape[1] :] + 1) / 2
        elif self.config.variance == "fixed_large":
            variance = (timestep > 0).to(output)[:, None, :, None, None].expand_as(predicted)
        if self.config.prediction == "epsilon":
            return Denoised(c.clean_of_noisy * noisy - c.clean_of_noise * predicted, predicted, variance)
        if self.config.prediction == "clean":
            return Denoised(predicted, (noisy - c.alpha * predicted) / c.sigma, variance)
        return Denoised(c.alpha * noisy - c.sigma * predicted, c.sigma * noisy + c.alpha * predicted, variance)

    def losses(self, output: Tensor, data: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """Weighted squared error of the prediction, and with a learned variance the bound beside it (IDDPM, eq. 16).

        (B T), in fp32 at least. The bound teaches the variance alone: it sees the prediction as a constant.
        """
        output, data, noise = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (output, data, noise))
        c = self._at(timestep, data)
        predicted = output[:, : data.shape[1]]
        if self.config.prediction == "epsilon":
            target = noise
        elif self.config.prediction == "clean":
            target = data
        else:
            target = c.alpha * noise - c.sigma * data
        loss = (predicted - target).square().mean((1, 3, 4)) * c.loss_weight.squeeze((1, 3, 4))  # B T
        if self.config.variance != "learned_range" or self.config.vlb_weight == 0:
            return loss
        frozen = torch.cat([predicted.detach(), output[:, data.shape[1] :]], dim=1)
        bits = self.vlb_terms(frozen, data, self.add_noise(data, noise, timestep), timestep)
        return loss + self.config.vlb_weight * self.config.steps * bits

    def q_posterior(self, clean: Tensor, noisy: Tensor, timestep: Tensor) -> Moments:
        """q(x_{t-1} | x_t, x_0) (DDPM, eqs. 6 and 7). At t = 0 the variance is 0 and its log that of t = 1."""
        c = self._at(timestep, noisy)
        mean = c.mean_of_clean * clean + c.mean_of_noisy * noisy
        return Moments(mean, c.posterior_variance.expand_as(mean), c.posterior_log_variance.expand_as(mean))

    def p_mean_variance(self, output: Tensor, noisy: Tensor, timestep: Tensor) -> Moments:
        """p(x_{t-1} | x_t): the posterior of the estimate of x_0, which is clipped if the config says so."""
        return self._reverse(self.denoised(output, noisy, timestep), noisy, timestep)

    def _reverse(self, estimate: Denoised, noisy: Tensor, timestep: Tensor) -> Moments:
        c = self._at(timestep, noisy)
        posterior = self.q_posterior(estimate.clean, noisy, timestep)
        if estimate.variance is None:
            return posterior
        log_variance = estimate.variance * c.log_beta + (1 - estimate.variance) * c.posterior_log_variance
        return Moments(posterior.mean, log_variance.exp(), log_variance)

    def vlb_terms(self, output: Tensor, data: Tensor, noisy: Tensor, timestep: Tensor) -> Tensor:
        """The variational bound's term of each frame's timestep (B T), in bits per element; the bound sums them over N.

        KL(q(x_{t-1} | x_t, x_0) ‖ p(x_{t-1} | x_t)), and at t = 0 the negative log likelihood of 8-bit data in [-1, 1].
        """
        truth = self.q_posterior(data, noisy, timestep)
        model = self._reverse(self._denoised(output, noisy, timestep), noisy, timestep)
        kl = normal_kl(truth.mean, truth.log_variance, model.mean, model.log_variance)
        nll = -discretised_log_likelihood(data, model.mean, model.log_variance)
        first = timestep.to(data.device)[:, None, :, None, None] == 0
        return torch.where(first, nll, kl).mean((1, 3, 4)) / math.log(2)  # B T

    def path(self, steps: int, pixels: int, frames: int) -> Path:
        """The kept timesteps from noise to data, then the data; the same for videos of any size."""
        kept = self._kept(steps).flip(0)
        if kept[0] == 0:
            raise UserError(
                "one step on this path would start at the data: ask for more steps, or use spacing trailing"
            )
        tables = _Tables(*self._tables)
        one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        return Path(
            torch.cat([kept.double(), zero]),
            torch.cat([tables.alpha[kept], one]),
            torch.cat([tables.sigma[kept], zero]),
        )

    def _kept(self, steps: int) -> Tensor:
        """The timesteps of a path of ``steps`` steps, ascending."""
        sections = self.config.sections
        if sections is None:
            return spaced_timesteps(self.config.spacing, self.config.steps, steps)
        times, rest = divmod(steps, sum(sections))
        if rest or not times:
            raise UserError(
                f"sections {list(sections)} share out {sum(sections)} steps: ask for a multiple, not {steps}"
            )
        return sectioned_timesteps(self.config.steps, [times * count for count in sections])

    def _at(self, timestep: Tensor, like: Tensor) -> _Tables:
        """Every coefficient at ``timestep`` (B T), as (B 1 T 1 1) of the dtype and on the device of ``like``."""
        if like.device not in self._on_device:
            self._on_device[like.device] = self._tables.to(like.device)
        index = timestep.to(like.device).round().long()[:, None, :, None, None]
        return _Tables(*self._on_device[like.device][:, index].to(like.dtype))


def _tables(config: GaussianConfig, betas: Tensor, kept: Tensor) -> _Tables:
    """The coefficients (N) float64 of a chain with β ``betas`` and ᾱ ``kept``, both (N) float64."""
    before = torch.cat([kept.new_ones(1), kept[:-1]])  # ᾱ_{t-1}
    posterior = betas * (1 - before) / (1 - kept)
    # The posterior's variance is 0 at t = 0, so its log is taken from t = 1 (IDDPM's code).
    clipped = torch.cat([posterior[1:2], posterior[1:]])
    snr = kept / (1 - kept)
    if config.min_snr_gamma is None:
        weight = torch.ones_like(snr)
    else:  # min(SNR, γ) on the error of x_0, which is that of ε over √SNR and that of v over √(SNR + 1)
        per_clean = {"clean": torch.ones_like(snr), "epsilon": snr, "velocity": snr + 1}[config.prediction]
        weight = snr.clamp_max(config.min_snr_gamma) / per_clean
    return _Tables(
        alpha=kept.sqrt(),
        sigma=(1 - kept).sqrt(),
        clean_of_noisy=kept.rsqrt(),
        clean_of_noise=(1 / kept - 1).sqrt(),
        mean_of_clean=betas * before.sqrt() / (1 - kept),
        mean_of_noisy=(1 - before) * (1 - betas).sqrt() / (1 - kept),
        posterior_variance=posterior,
        posterior_log_variance=clipped.log(),
        log_beta=betas.log(),
        loss_weight=weight,
    )
