"""Guidance: classifier-free (Ho & Salimans 2022), rescaled (Lin et al. 2024), in an interval of noise levels
(Kynkäänniemi et al. 2024), and with scales of their own for text and image (Brooks et al. 2023, InstructPix2Pix).

The image of an image-conditional pass is the given frames. A pass without text has no tokens, or those of a negative
prompt: that is the caller's choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from kineograph.config import Config

Interval = tuple[float, float]


class GuidanceConfig(Config):
    """How far a sampler goes beyond what the model says of the prompt."""

    scale: float = Field(4.0, ge=0)
    """Of the text: 0 ignores it, 1 is the model as it is, in one pass; above 1 obeys the prompt more and varies less."""
    image_scale: float | None = Field(None, ge=0)
    """Of the given frames, as ``scale`` is of the text (InstructPix2Pix uses 1.2 to 1.5); none: they are there in every
    pass. It costs a third pass, and needs a model that was also trained on videos with nothing given."""
    rescale: float = Field(0.0, ge=0, le=1)
    """φ, 0 (off) .. 1: how much of the deviation that guidance adds is taken back (Lin et al. 2024 use 0.7)."""
    channels: int | None = Field(None, ge=1)
    """How many of the latent channels are guided, the first ones; the others are as the model says with all conditions.
    None: all. DiT's code guides 3 of 4."""
    interval: Interval = (0.0, 1000.0)
    """Guidance is on from the first to the second of these model times, 0 (data) .. 1000 (noise), both included; outside
    the model is as it is, in one pass."""

    @model_validator(mode="after")
    def _check(self) -> GuidanceConfig:
        low, high = self.interval
        if not 0 <= low <= high <= 1000:
            raise ValueError("interval is a lower and an upper model time, 0 (data) to 1000 (noise), e.g. [100, 800]")
        return self


class Pass(NamedTuple):
    """Which conditions the model sees in a pass."""

    text: bool
    image: bool


CONDITIONAL = Pass(text=True, image=True)

PassCall = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x (P·B C T H W), model time (P·B T), text_on (P·B) bool, image_on (P·B) bool) to the model's output, for P passes of B
videos, pass by pass. Where ``image_on`` is False the given frames are to be noise like the others, at their timestep."""


def passes(config: GuidanceConfig, has_image: bool) -> list[Pass]:
    """The passes of a guided step, the conditional last: one, two or three, as in :func:`combine`.

    Outputs of which the formula takes none are not computed: e_∅ at an image scale of 1, e_I at equal scales.
    """
    image_scale = config.image_scale if has_image and config.image_scale is not None else 1.0
    if config.scale == image_scale == 1:
        return [CONDITIONAL]
    if image_scale == 1:
        return [Pass(text=False, image=True), CONDITIONAL]
    if image_scale == config.scale:
        return [Pass(text=False, image=False), CONDITIONAL]
    return [Pass(text=False, image=False), Pass(text=False, image=True), CONDITIONAL]


def combine(
    config: GuidanceConfig,
    unconditional: Tensor,
    conditional: Tensor,
    image_only: Tensor | None = None,
    channels: int | None = None,
    counted: Tensor | None = None,
) -> Tensor:
    """The guided output (B C T H W) of the outputs of two or three passes.

    Two: e_∅ + s·(e - e_∅). Three: e_∅ + s_I·(e_I - e_∅) + s·(e - e_I) (InstructPix2Pix, eq. 3), s_I the image scale.
    Then φ of it is rescaled to the deviation of the conditional output (Lin et al. 2024, eqs. 15 and 16), which is taken
    over all of a video, or over its ``counted`` frames (B T, bool). Only the first ``channels`` are guided; a variance
    behind them is the conditional output's.
    """
    without, full = unconditional[:, :channels], conditional[:, :channels]
    if image_only is None:
        output = without + config.scale * (full - without)
    elif config.image_scale is None:
        raise ValueError("the outputs of three passes are combined with an image_scale")
    else:
        middle = image_only[:, :channels]
        output = without + config.image_scale * (middle - without) + config.scale * (full - middle)
    if config.rescale:
        ratio = deviation(full, counted) / deviation(output, counted).clamp_min(torch.finfo(torch.float32).eps)
        output = output * (config.rescale * ratio + (1 - config.rescale)).to(output.dtype)
    if channels is None or channels == conditional.shape[1]:
        return output
    return torch.cat([output, conditional[:, channels:]], dim=1)


def deviation(output: Tensor, counted: Tensor | None = None) -> Tensor:
    """Standard deviation of each video (B C T H W) over its ``counted`` frames (B T, bool), else all: (B 1 1 1 1).

    In fp32 at least.
    """
    output = output.to(torch.promote_types(output.dtype, torch.float32))
    axes = (1, 2, 3, 4)
    if counted is None:
        return output.std(axes, correction=0, keepdim=True)
    weight = counted[:, None, :, None, None].to(output).expand_as(output)
    total = weight.sum(axes, keepdim=True).clamp_min(1)
    mean = (output * weight).sum(axes, keepdim=True) / total
    return ((output - mean).square() * weight).sum(axes, keepdim=True).div(total).sqrt()


def guided_call(
    config: GuidanceConfig, call: PassCall, given: Tensor | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """The model as a sampler asks it, (x (B C T H W), model time (B T)) to output, guided in one batch of its passes.

    Outside of the interval, and where every scale is 1, ``call`` runs once and its output is returned as it is. A batch
    is at the time of its noisiest frame. ``given`` (B T, bool) are the frames of the image condition; their output means
    nothing, so the rescale does not count them.
    """
    plan = passes(config, given is not None)
    most = math.inf if config.channels is None else config.channels
    counted = None if given is None else ~given | given.all(1, keepdim=True)

    def predict(x: Tensor, time: Tensor) -> Tensor:
        now = plan if _within(config.interval, time) else [CONDITIONAL]
        flags = torch.tensor(now, device=x.device).repeat_interleave(x.shape[0], 0)  # P·B, text and image
        if len(now) == 1:
            return call(x, time, flags[:, 0], flags[:, 1])
        output = call(x.repeat(len(now), 1, 1, 1, 1), time.repeat(len(now), 1), flags[:, 0], flags[:, 1])
        outputs = output.chunk(len(now))
        image_only = outputs[1] if len(now) == 3 else None
        return combine(config, outputs[0], outputs[-1], image_only, int(min(most, x.shape[1])), counted)

    return predict


def _within(interval: Interval, time: Tensor) -> bool:
    low, high = interval
    whole = low == 0 and high == 1000  # the usual case does not wait for the device
    return whole or low <= float(time.max()) <= high
