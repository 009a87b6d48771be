"""Everything a generated video depends on, as its file tells it: JSON in the comment tag of the mp4."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError

from kineograph.config import Config
from kineograph.diffusion.request import MAX_FRAMES, Sampling
from kineograph.errors import UserError
from kineograph.media.faults import MediaFault
from kineograph.media.footage import read_comment
from kineograph.models.vae import Tiling
from kineograph.store.checkpoints import DIGESTS

MAX_FPS = 1000.0

Weights = Literal["ema", "model"]
Dtype = Literal["fp32", "bf16"]
Line = Annotated[str, AfterValidator(lambda text: "".join(c if c.isprintable() else "?" for c in text))]
"""Text that is shown to a user: what stands in a file must not steer a terminal."""


class CheckpointRef(Config):
    """Which checkpoint made a video."""

    path: Line
    """Its folder, as it was named."""
    step: int | None
    """Of the optimizer; none of a checkpoint that was imported."""
    digest: str
    """SHA-256 of its model.safetensors."""


class GivenFile(Config):
    """A picture or video that was given."""

    name: Line
    """Without its folder."""
    sha256: str


class GivenFiles(Config):
    """What was given beside the prompt, and where in the video it stands."""

    image: GivenFile | None = None
    """The first frame."""
    last_image: GivenFile | None = None
    """The last frame."""
    video: GivenFile | None = None
    """What the video begins with."""
    video_end: GivenFile | None = None
    """What the video ends with."""
    fill: GivenFile | None = None
    """All of the video but the stretch ``fill_seconds``."""
    fill_seconds: tuple[float, float] | None = None
    loop: bool = False
    """Whether the end leads back to the first frame."""


class Settings(Config):
    """Everything a generated video depends on, beside the machine: the same settings make the same file there."""

    kineograph: Line
    """Version that made it."""
    checkpoint: CheckpointRef
    weights: Weights
    """Averaged (ema) or the last ones (model)."""
    dtype: Dtype
    """Arithmetic of the model."""
    vae_tiling: Tiling | None = None
    """Tiles that the autoencoder coded frames in; none: as it was saved."""
    prompt: str
    negative_prompt: str = ""
    seed: int
    height: int = Field(ge=2)
    width: int = Field(ge=2)
    frames: int = Field(ge=1, le=MAX_FRAMES)
    """Of the whole video, given ones included."""
    fps: float = Field(gt=0, le=MAX_FPS)
    sampling: Sampling
    window: int | None = Field(None, ge=1)
    """Frames made at once; none: as many as the model was trained on."""
    overlap: int | None = Field(None, ge=1)
    """Frames shared by windows that follow each other; none: half a window, and two latents at least."""
    given: GivenFiles = GivenFiles()

    @property
    def comment(self) -> str:
        """These settings as the file has them."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)

    @property
    def shared(self) -> Settings:
        """What videos that are made at once have in common: all but prompt and seed."""
        return self.model_copy(update={"prompt": "", "seed": 0})


def read_settings(path: str | Path) -> Settings:
    """The settings in a file that ``kineo generate`` made. Raises UserError when there are none."""
    try:
        return Settings.model_validate_json(read_comment(path))
    except MediaFault as fault:
        raise UserError(f"{path} cannot be read ({fault}): give an mp4 that 'kineo generate' made") from fault
    except ValidationError as error:
        raise UserError(f"{path} does not say how it was made: give an mp4 that 'kineo generate' made") from error


def read_digest(folder: Path) -> str:
    """SHA-256 of a checkpoint's model.safetensors, as recorded when it was saved. Raises UserError."""
    try:
        digests = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
        return str(digests["model.safetensors"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{DIGESTS} of checkpoint {folder} names no model.safetensors: use another one") from error
