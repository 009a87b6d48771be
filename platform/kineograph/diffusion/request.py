"""What is asked of a generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from pydantic import Field

from kineograph.config import Config
from kineograph.diffusion.guidance import GuidanceConfig
from kineograph.diffusion.samplers import SamplerConfig
from kineograph.errors import UserError
from kineograph.media.geometry import Bucket

MAX_FRAMES = 24 * 3600 * 24
"""Of a video: a day at 24 frames per second. Its windows are planned before the first is made."""

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


def frames_in(seconds: float, fps: float) -> int:
    """Frames of a video of so many seconds, one at least. Raises UserError for more than MAX_FRAMES."""
    frames = seconds * fps
    if not frames <= MAX_FRAMES:
        raise UserError(f"{seconds:g} s at {fps:g} frames per second: a video has at most {MAX_FRAMES} frames")
    return max(1, round(frames))


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
    """Latent frames that a window shares with the one before; None: half of it, rounded down, and 2 at least."""
