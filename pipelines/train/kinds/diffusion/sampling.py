"""How a run's samples are made: a sampler that suits the process, tried before anything starts."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from kineograph.diffusion.few_steps import sampling_path
from kineograph.diffusion.gaussian import GaussianConfig
from kineograph.diffusion.process import Denoised
from kineograph.diffusion.processes import DiffusionConfig, build_process
from kineograph.diffusion.samplers import SamplerConfig, sample

GAUSSIAN_SAMPLER = "ddim"
"""What a Gaussian process is sampled with unless a recipe says more."""


def with_sampler_of(raw: Any) -> Any:
    """A raw recipe, whose sampler is that of its process where it names none."""
    if not isinstance(raw, dict) or not _is_gaussian(raw.get("diffusion")) or is_open(raw.get("start"), raw):
        return raw
    samples = raw.get("samples", {})
    sampler = samples.get("sampler", {}) if isinstance(samples, dict) else None
    if not isinstance(sampler, dict):  # a config already, or a mistake that is named later
        return raw
    return {**raw, "samples": {**samples, "sampler": {"name": GAUSSIAN_SAMPLER, **sampler}}}


def is_open(start: Any, given: Collection[str]) -> bool:
    """Whether a recipe with the keys ``given`` has a checkpoint to ``start`` from that was not asked yet."""
    return start is not None and "model" not in given


def _is_gaussian(diffusion: Any) -> bool:
    kind = diffusion.get("kind") if isinstance(diffusion, dict) else getattr(diffusion, "kind", None)
    return bool(kind == GaussianConfig().kind)


def check_sampling(diffusion: DiffusionConfig, sampler: SamplerConfig, steps: int) -> None:
    """Walk the whole way with a model that knows nothing. Raises UserError when there is no such path, or the sampler
    cannot walk it."""
    process = build_process(diffusion)
    path = sampling_path(sampler, lambda n: process.path(n, 256 * 256, 1), steps, process.finest)
    noise = torch.ones(1, 1, 1, 1, 1)
    sample(sampler, lambda x, _node: Denoised(x, x, None), noise, path, step_noise=lambda _step: noise)
