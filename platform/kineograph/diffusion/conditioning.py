"""Frame conditioning by per-frame timesteps: a given frame is at timestep 0, as it is, and has no loss.

One model then does text to video, image to video, extension forward and backward, first and last frame, interpolation
and loops; they differ in which latent frames are given. Training draws a task for each clip, and generation sets the same
masks. Text to video itself may be factorised (Girdhar et al. 2023, Emu Video): p(video | text) =
p(first | text) · p(rest | first, text), where the first frame is a video of one latent frame.
"""

from __future__ import annotations

from bisect import bisect, bisect_left
from collections.abc import Callable
from itertools import accumulate
from typing import Literal, NamedTuple, get_args

import torch
from pydantic import Field, model_validator
from torch import Tensor

from kineograph.config import Config
from kineograph.diffusion.guidance import GuidanceConfig, guided_call
from kineograph.diffusion.process import Denoised, Path, Process

Task = Literal["text", "image", "first_last", "extend", "extend_back", "interpolate"]
TASKS: tuple[Task, ...] = get_args(Task)


class TaskMix(Config):
    """How often a clip of several latent frames is trained on each task: weights, of which the shares are computed."""

    text: float = Field(0.0, ge=0)
    """Nothing is given."""
    image: float = Field(1.0, ge=0)
    """The first frame is given."""
    first_last: float = Field(0.0, ge=0)
    """The first and the last frame are given; loops are made with it."""
    extend: float = Field(0.0, ge=0)
    """The first frames are given, one or more."""
    extend_back: float = Field(0.0, ge=0)
    """The last frames are given, one or more."""
    interpolate: float = Field(0.0, ge=0)
    """Every second frame is given."""

    @model_validator(mode="after")
    def _check(self) -> TaskMix:
        if not sum(self.model_dump().values()):
            raise ValueError("one of the tasks must have a weight above zero")
        return self

    def draw(self, number: float) -> Task:
        """The task of a ``number`` in [0, 1)."""
        ends = list(accumulate(getattr(self, task) for task in TASKS))
        # A product that rounds up to the whole belongs to the last task that has a weight.
        return TASKS[min(bisect(ends, number * ends[-1]), bisect_left(ends, ends[-1]))]


def given_frames(task: Task, frames: int, number: float = 0.0) -> Tensor:
    """Which of ``frames`` latent frames ``task`` gives: (T) bool. ``number`` in [0, 1) says how many where that is open.

    At least one frame is left to make: a task that would give all gives nothing.
    """
    given = torch.zeros(frames, dtype=torch.bool)
    count = 1 + int(number * (frames - 1)) if frames > 1 else 0  # 1..T-1
    if task in ("image", "first_last"):
        given[0] = True
    if task == "first_last":
        given[-1] = True
    if task == "extend":
        given[:count] = True
    if task == "extend_back":
        given[frames - count :] = True
    if task == "interpolate":
        given[::2] = True
    return given if not given.all() else torch.zeros_like(given)


def hold_given(timestep: Tensor, given: Tensor) -> Tensor:
    """Timesteps (B T) with those of ``given`` (B T, bool) frames at 0, so that they are without noise."""
    return timestep.masked_fill(given, 0)


def mean_over_asked(losses: Tensor, given: Tensor) -> Tensor:
    """Mean over the frames that are not ``given`` of losses (B T): (B)."""
    asked = (~given).to(losses.dtype)
    return (losses * asked).sum(1) / asked.sum(1).clamp_min(1)


class Given(NamedTuple):
    """Latent frames that are known before sampling."""

    latents: Tensor
    """(B C T H W); what stands where nothing is given does not matter."""
    mask: Tensor
    """(B T) bool."""

    @property
    def keep(self) -> Tensor:
        """The mask, to choose between tensors (B C T H W)."""
        return self.mask[:, None, :, None, None]


Model = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x (P·B C T H W), model time (P·B T), text_on (P·B) bool) to the model's output, for P passes of B videos."""


def denoiser(
    process: Process, model: Model, path: Path, guidance: GuidanceConfig, noise: Tensor, given: Given | None = None
) -> Callable[[Tensor, int], Denoised]:
    """What samplers ask: (x (B C T H W), node of ``path``) to the guided model's estimate, given frames held as they are.

    ``noise`` is what sampling starts from: in a pass of guidance without the given frames they are noised with it.
    """

    def denoise(x: Tensor, node: int) -> Denoised:
        timestep = path.timesteps[node].to(x.device, x.dtype).expand(x.shape[0], x.shape[2])
        everywhere = process.model_time(timestep)

        def call(x: Tensor, time: Tensor, text_on: Tensor, image_on: Tensor) -> Tensor:
            if given is not None and not image_on.all():
                passes = len(x) // len(noise)
                hidden = float(path.alphas[node]) * given.latents + float(path.sigmas[node]) * noise
                hide = given.keep.repeat(passes, 1, 1, 1, 1) & ~image_on[:, None, None, None, None]
                x = torch.where(hide, hidden.repeat(passes, 1, 1, 1, 1), x)
                time = torch.where(image_on[:, None], time, everywhere.repeat(passes, 1))
            return model(x, time, text_on)

        if given is not None:
            x, timestep = torch.where(given.keep, given.latents, x), hold_given(timestep, given.mask)
        output = guided_call(guidance, call, None if given is None else given.mask)(x, process.model_time(timestep))
        found = process.denoised(output, x, timestep)
        if given is None:
            return found
        return found._replace(clean=torch.where(given.keep, given.latents, found.clean))

    return denoise
