"""Which captions a run uses, and the model that writes those that are missing."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from kineograph.config import Config

Source = Literal["sidecar", "manifest", "model", "measured"]
PROMPT = (
    "Describe what this video shows in one sentence: what is in it, how it looks, what moves and how the camera moves."
)
STILL_PROMPT = "Describe what this picture shows in one sentence: what is in it and how it looks."


class CaptionModel(Config):
    """A vision-language model, loaded through transformers; it writes captions of the sampled frames."""

    model: str = Field(min_length=1)
    """Name on the Hugging Face hub, or a folder that save_pretrained wrote; weights are safetensors."""
    revision: str | None = None
    """Commit, tag or branch of the hub's repository; null takes what the hub or its local cache gives."""
    prompt: str = Field(PROMPT, min_length=1)
    """What the model is asked, after the frames."""
    still_prompt: str = Field(STILL_PROMPT, min_length=1)
    """What it is asked of an image, or where one frame is all that it sees: no motion can be told from that."""
    system: str | None = None
    """What it is told before; null leaves that to its chat template."""
    frames: int = Field(8, ge=1)
    """Sampled frames that it sees of a clip, evenly chosen; fewer where fewer were sampled."""
    content: Literal["images", "video"] = "images"
    """Whether the frames are given as pictures or as one video; the model's card says what it was trained on."""
    fps: float = Field(2.0, gt=0)
    """Frames per second that a ``video`` is said to have; only models that read times heed it."""
    max_new_tokens: int = Field(96, ge=1)
    """Longest answer in tokens."""
    batch_size: int = Field(4, ge=1)
    """Clips asked about at a time."""
    device: str = "cpu"
    """Where it runs, as torch names it."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of weights and activations; bfloat16 is usual on a GPU."""

    @field_validator("prompt", "still_prompt")
    @classmethod
    def _says_something(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("the prompt is empty")
        return prompt


class Captions(Config):
    """Where captions come from."""

    require: bool = True
    """Whether a clip without a caption is rejected with ``no_caption``."""
    order: tuple[Source, ...] | None = None
    """Sources in the order in which they are asked, the first that has a caption gives it; null is sidecar,
    manifest, then model and measured where they are on."""
    model: CaptionModel | None = None
    """The model that writes captions; null asks none."""
    measured: bool = False
    """Whether a caption is put into words from the clip's signals; it needs no weights and names no things."""

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources in order."""
        if self.order is not None:
            return self.order
        order: list[Source] = ["sidecar", "manifest"]
        if self.model is not None:
            order.append("model")
        if self.measured:
            order.append("measured")
        return tuple(order)

    @model_validator(mode="after")
    def _order_fits(self) -> Captions:
        if self.order is None:
            return self
        if len(set(self.order)) < len(self.order):
            raise ValueError("captions.order names a source twice")
        for name, on in (("model", self.model is not None), ("measured", self.measured)):
            if name in self.order and not on:
                raise ValueError(f"captions.order names {name!r}, and captions.{name} is off")
            if on and name not in self.order:
                raise ValueError(f"captions.{name} is on, and captions.order does not name it")
        return self
