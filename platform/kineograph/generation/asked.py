"""What a user asks for: every option of `kineo generate`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pydantic import Field

from kineograph.config import Config, parse_config
from kineograph.diffusion.guidance import Interval
from kineograph.diffusion.request import MAX_FRAMES, Sampling
from kineograph.diffusion.samplers import FixedVariance, SamplerName
from kineograph.errors import UserError
from kineograph.generation.settings import MAX_FPS, Dtype, Weights
from kineograph.models.vae import Tiling

MAX_SIDE = 16384


class Asked(Config):
    """The options of ``kineo generate``. None: not said, so as in the video ``like``, else as trained."""

    out: Path
    """The mp4, or the folder for several."""
    checkpoint: Path | None = None
    """Training run, or one checkpoint of it."""
    like: Path | None = None
    """A video of which the settings are taken."""
    prompt: tuple[str, ...] = ()
    prompts: Path | None = None
    """A file of prompts."""
    negative_prompt: str | None = None
    seed: int | None = None
    """Of the first video of each prompt."""
    seeds: tuple[int, ...] | None = None
    videos: int | None = Field(None, ge=1)
    """For each prompt, with seeds that follow each other."""
    size: str | None = None
    """HxW."""
    seconds: float | None = None
    frames: int | None = Field(None, ge=1)
    fps: float | None = None
    steps: int | None = Field(None, ge=1)
    sampler: SamplerName | None = None
    eta: float | None = None
    variance: FixedVariance | None = None
    spacing: str | None = None
    rho: float | None = None
    timesteps: tuple[float, ...] | None = None
    cfg: float | None = None
    image_cfg: float | None = None
    cfg_rescale: float | None = None
    cfg_interval: Interval | None = None
    window: int | None = Field(None, ge=1)
    """Frames."""
    overlap: int | None = Field(None, ge=1)
    """Frames."""
    image: Path | None = None
    last_image: Path | None = None
    video: Path | None = None
    video_end: Path | None = None
    fill: tuple[Path, str] | None = None
    """A file and a stretch "A:B" of it in seconds."""
    loop: bool = False
    weights: Weights | None = None
    dtype: Dtype | None = None
    vae_tiling: str | None = None
    """SIZE or SIZE:OVERLAP, pixels."""
    device: str = "cpu"
    batch: int = Field(1, ge=1)
    """Videos made at once."""
    preview: int | None = Field(None, ge=1)
    """Steps between previews."""

    def check(self) -> None:
        """Raise UserError for options that exclude each other, and for numbers that nothing can be made with."""
        pairs = [
            ("seconds", "frames"),
            ("seeds", "seed"),
            ("seeds", "videos"),
            ("steps", "timesteps"),
            ("spacing", "timesteps"),
            ("image", "video"),
            ("last_image", "video_end"),
            ("loop", "last_image"),
            ("loop", "video_end"),
            *(("fill", other) for other in ("image", "last_image", "video", "video_end", "loop", "seconds", "frames")),
        ]
        for one, other in pairs:
            if self.says(one) and self.says(other):
                raise UserError(f"{_option(one)} and {_option(other)} exclude each other: give one of them")
        if self.fps is not None and not 0 < self.fps <= MAX_FPS:
            raise UserError(f"--fps {self.fps:g}: give a number above zero, up to {MAX_FPS:g}")
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise UserError(f"--seconds {self.seconds:g}: give a number above zero")
        if self.frames is not None and self.frames > MAX_FRAMES:
            raise UserError(f"--frames {self.frames}: a video has at most {MAX_FRAMES} frames")
        if self.size is not None:
            parse_size(self.size)
        if self.vae_tiling is not None:
            parse_tiling(self.vae_tiling)

    def says(self, name: str) -> bool:
        """Whether the option ``name`` was given."""
        value = getattr(self, name)
        return value is not None and value is not False and value != ()

    @property
    def gives_frames(self) -> bool:
        """Whether any frame is given, or led back to."""
        return self.loop or any((self.image, self.last_image, self.video, self.video_end, self.fill))

    def sampling(self, base: Sampling) -> Sampling:
        """``base`` with what was said of it. Raises UserError for what does not go together."""
        raw = base.model_dump(mode="json")
        if self.sampler not in (None, base.sampler.name):
            raw["sampler"] = {}  # what was said of another sampler does not hold for this one
        if self.spacing is not None or self.timesteps is not None:
            raw["sampler"] |= {"spacing": "process", "timesteps": None}
        if self.steps is not None:
            raw["sampler"]["timesteps"] = None
        said: dict[str, dict[str, Any]] = {
            "sampler": {
                "name": self.sampler,
                "eta": self.eta,
                "variance": self.variance,
                "spacing": self.spacing,
                "rho": self.rho,
                "timesteps": self.timesteps,
            },
            "guidance": {
                "scale": self.cfg,
                "image_scale": self.image_cfg,
                "rescale": self.cfg_rescale,
                "interval": self.cfg_interval,
            },
        }
        for part, values in said.items():
            raw[part] |= {name: value for name, value in values.items() if value is not None}
        if self.steps is not None:
            raw["steps"] = self.steps
        return parse_config(raw, Sampling, name="sampling")


def parse_size(size: str) -> tuple[int, int]:
    """Height and width of "HxW" in pixels. Raises UserError."""
    try:
        height, width = (int(n) for n in size.lower().split("x"))
    except ValueError:
        raise UserError(f"--size {size!r}: write height and width, e.g. 32x48") from None
    if not (2 <= height <= MAX_SIDE and 2 <= width <= MAX_SIDE):
        raise UserError(f"--size {size!r}: height and width must be 2 to {MAX_SIDE}")
    return height, width


def parse_tiling(text: str) -> Tiling:
    """Tiles of "SIZE:OVERLAP" or "SIZE" pixels, which share a quarter of their size. Raises UserError."""
    size, _, overlap = text.partition(":")
    try:
        return Tiling(size=int(size), overlap=int(overlap) if overlap else max(1, int(size) // 4))
    except ValueError:
        raise UserError(
            f"--vae-tiling {text!r}: write the pixels of a tile's side and, fewer, those that tiles share, e.g. 256:64"
        ) from None


def parse_stretch(text: str) -> tuple[float, float]:
    """The seconds of "A:B". Raises UserError."""
    try:
        start, stop = (float(n) for n in text.split(":"))
    except ValueError:
        raise UserError(f"--fill … {text!r}: write where the stretch begins and ends in seconds, e.g. 1.5:3") from None
    if not 0 <= start < stop < math.inf:
        raise UserError(f"--fill … {text!r}: the stretch must end after it begins")
    return start, stop


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
