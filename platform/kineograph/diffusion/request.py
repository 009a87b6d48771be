"""What is asked of a generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from pydantic import Field

from kineograph.config import Config
from kineograph.diffusion.guidance import GuidanceConfig
from kineograph.diffusion.samplers import SamplerConfig
from kineograph.media.geometry import Bucket

Known = Mapping[int, np.ndarray]
"""Frames that are known before sampling, by their number in the video: uint8 (H W 3), or (B H W 3) where every video of
a batch has its own."""


class Sampling(Config):
    """How a checkpoint is sampled."""

    steps: int = Field(30, ge=1)
    """Steps of the sampler."""
    sampler: SamplerConfig = SamplerConfig()
    guidance: GuidanceConfig = GuidanceConfig()
    first_frame_first: bool = False
    """Sample the first frame alone, then the others with it given, as the model was trained."""


@dataclass(frozen=True)
class Request:
    """What to make: one video per prompt, all of one size and length."""

    prompts: Sequence[str]
    seeds: Sequence[int]
    """One for each prompt: the same seed gives the same video."""
    bucket: Bucket
    fps: float
    sampling: Sampling
    negative_prompt: str = ""
    """What guidance leads away from; empty: from no prompt at all."""
    known: Known = field(default_factory=dict)
    """Frames that are given, of the bucket's size."""
    window: int | None = None
    """Frames made at once; None: as many as the model was trained on."""
    overlap: int | None = None
    """Latent frames that a window shares with the one before; None: half of it, rounded down."""
