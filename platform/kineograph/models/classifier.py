"""Classifiers of images and videos: what a checkpoint of one holds, and how pictures of any size and length go through it.

A checkpoint folder of a classifier has, besides ``ema.safetensors`` and ``model.safetensors`` (the state dict of the ViT or
ViViT), a config.json with the fields of :class:`ClassifierConfig`, and whatever else its training wants to remember:

    {"kind": "classifier", "label": "shape", "labels": ["circle", "square", "triangle"],
     "model": {"kind": "vit", "size": [32, 32], "patch": [8, 8], "width": 128, …}, "step": 1200, …}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
import torch
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from kineograph.config import Config
from kineograph.errors import UserError
from kineograph.models.vit import ViT, ViTConfig
from kineograph.models.vivit import ViViT, ViViTConfig
from kineograph.store.checkpoints import CONFIG, read_config, resolve_checkpoint

KIND: Final = "classifier"
FRAMES = 8
"""Frames of a video that an image model looks at, unless said otherwise."""


class ClassifierConfig(Config):
    """A classifier: its model and what its outputs mean."""

    kind: Literal["classifier"] = KIND
    label: str
    """What the labels tell apart, such as "shape"."""
    labels: tuple[str, ...] = Field(min_length=2)
    """Names of the classes in the order of the logits."""
    model: Annotated[ViTConfig | ViViTConfig, Field(discriminator="kind")]
    """Shape of the model, with the size of images or videos that it is trained on."""

    @model_validator(mode="after")
    def _check(self) -> ClassifierConfig:
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("labels are not all different")
        return self

    def build(self) -> ViT | ViViT:
        """The model with fresh weights."""
        if isinstance(self.model, ViTConfig):
            return ViT(self.model, len(self.labels))
        return ViViT(self.model, len(self.labels))


def prepare(video: np.ndarray, model: ViTConfig | ViViTConfig, frames: int = FRAMES) -> Tensor:
    """The model's inputs, in [-1, 1], from video uint8 (T H W 3) of any size and length.

    For a ViT (F 3 H W): all frames, or ``frames`` of them where there are more. For a ViViT (1 3 T H W): as many as it is
    trained on, repeated where there are fewer. Frames are chosen evenly, each from the middle of its equal share, and
    squeezed to the trained size (bilinear, antialiased).
    """
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3 or 0 in video.shape:
        raise ValueError(f"a video is uint8 of shape (T, H, W, 3), not {video.dtype} of shape {video.shape}")
    if isinstance(model, ViTConfig):
        return _to_model(choose_frames(video, min(frames, len(video))), model.size)
    return _to_model(choose_frames(video, model.frames), model.size).transpose(0, 1)[None]


def choose_frames(video: np.ndarray, count: int) -> np.ndarray:
    """``count`` frames of video (T H W 3), each the middle of its equal share of the time."""
    return video[(2 * np.arange(count) + 1) * len(video) // (2 * count)]


def _to_model(frames: np.ndarray, size: tuple[int, int]) -> Tensor:
    """uint8 (T H W 3) to float32 (T 3 *size) in [-1, 1]."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()
    if pixels.shape[2:] != size:
        pixels = F.interpolate(pixels, size=size, mode="bilinear", antialias=True)
    return pixels / 127.5 - 1


class Classifier:
    """A trained classifier ready to look at videos; an image is a video of one frame.

    >>> Classifier.load("runs/shape").predict([video])  # video uint8 (T H W 3), of any size and length
    ['circle']
    """

    def __init__(self, config: ClassifierConfig, model: ViT | ViViT, device: str = "cpu") -> None:
        self.config = config
        self.model = model.eval().to(device)
        self.device = device

    @classmethod
    def load(cls, checkpoint: str | Path, device: str = "cpu", weights: Literal["ema", "model"] = "ema") -> Classifier:
        """Load a checkpoint folder, or the newest of a training run. Raises UserError when there is none, it is of
        another kind or damaged."""
        path = resolve_checkpoint(checkpoint)
        config = read_classifier(path)
        model = config.build()
        try:
            model.load_state_dict(load_file(path / f"{weights}.safetensors"))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise UserError(f"checkpoint {path} cannot be loaded: {' '.join(str(error).split())[:200]}") from error
        return cls(config, model, device)

    def probabilities(self, videos: Sequence[np.ndarray], frames: int = FRAMES, batch_size: int = 32) -> np.ndarray:
        """Probability, 0..1, of each label: float32 (N labels) for N videos uint8 (T H W 3), sizes and lengths their own.

        A ViT looks at ``frames`` frames of a video, evenly chosen, and the result is their mean. ``batch_size`` frames of
        a ViT, videos of a ViViT, go through at a time.
        """
        return self._mean_of(lambda x: self.model(x).softmax(dim=1), videos, frames, batch_size)

    def features(self, videos: Sequence[np.ndarray], frames: int = FRAMES, batch_size: int = 32) -> np.ndarray:
        """What the head sees: float32 (N D), taken as in :meth:`probabilities`."""
        return self._mean_of(self.model.features, videos, frames, batch_size)

    def predict(self, videos: Sequence[np.ndarray], frames: int = FRAMES, batch_size: int = 32) -> list[str]:
        """The likeliest label of each video."""
        chances = self.probabilities(videos, frames, batch_size)
        return [self.config.labels[index] for index in chances.argmax(axis=1)]

    @torch.inference_mode()
    def _mean_of(
        self, function: Callable[[Tensor], Tensor], videos: Sequence[np.ndarray], frames: int, batch_size: int
    ) -> np.ndarray:
        """``function`` of every input of every video, and the mean per video."""
        means = []
        for start in range(0, len(videos), batch_size):
            inputs = [prepare(video, self.config.model, frames) for video in videos[start : start + batch_size]]
            parts = torch.cat(inputs).split(batch_size)
            outputs = torch.cat([function(part.to(self.device)) for part in parts]).float()
            means += [part.mean(dim=0) for part in outputs.split([len(x) for x in inputs])]
        return torch.stack(means).cpu().numpy()


def read_classifier(checkpoint: Path) -> ClassifierConfig:
    """What config.json of a checkpoint folder says of its classifier. Raises UserError when it holds another kind of model
    or does not describe one."""
    raw = read_config(checkpoint)
    if raw.get("kind") != KIND:
        raise UserError(
            f"checkpoint {checkpoint} holds no classifier: give one that a recipe of kind classifier trained"
        )
    try:
        return ClassifierConfig.model_validate({k: v for k, v in raw.items() if k in ClassifierConfig.model_fields})
    except ValidationError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"checkpoint {checkpoint} cannot be loaded: {CONFIG} does not describe a model: {reason}"
        ) from error
