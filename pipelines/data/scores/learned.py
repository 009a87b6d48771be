"""A learned filter: the probability that an image or video classifier of one's own gives to one label.

Image classifiers (ViT and the others that transformers knows) see a clip's frames one by one, video classifiers (ViViT,
VideoMAE, TimeSformer, V-JEPA 2) see them together. They come from 'kineo train' or are in transformers' format. Weights
are read from safetensors only; code that lies beside a checkpoint is never run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field

from kineograph.config import Config
from kineograph.errors import UserError
from kineograph.store.checkpoints import CHECKPOINTS, DIGESTS
from pipelines.data.scores.base import ClipFrames
from pipelines.data.scores.frames import choose_evenly, choose_most, one_line

_WANTED = "give the path of a folder with config.json and model.safetensors"


class Learned(Config):
    """A classifier, and the label whose probability is the signal."""

    model: str
    """A run of 'kineo train' with a recipe of kind classifier, or one of its checkpoints. Or, in transformers' format, a
    folder with config.json and safetensors weights, or a name on the Hugging Face hub; where that has no
    preprocessor_config.json, frames are squeezed to the config's image_size and scaled to -1..1."""
    label: str | int
    """Name of the label, or its index."""
    frames: int = Field(8, ge=1)
    """Sampled frames that an image model looks at per clip, evenly chosen; the signal is their mean. A video model takes
    as many as it was trained on, evenly chosen, repeated where fewer were sampled."""
    device: str = "cpu"
    """Where the model runs, as torch calls it: cpu, cuda, cuda:1."""
    batch_size: int = Field(16, ge=1)
    """Frames of an image model, clips of a video model, at a time."""


class LearnedScorer:
    """``learned`` of clips: the probability, 0..1, of the label."""

    def __init__(self, config: Learned) -> None:
        """Load the classifier. Raises UserError when it cannot be, or does not have the label."""
        self._scores: Callable[[Sequence[ClipFrames]], list[float]]
        try:
            self._scores = (_Trained if _is_ours(Path(config.model)) else _Published)(config)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"cannot load the classifier {config.model}: {one_line(error)}") from error

    def __call__(self, clips: Sequence[ClipFrames]) -> list[dict[str, Any]]:
        return [{"learned": score} for score in self._scores(clips)]


class _Trained:
    """A classifier that 'kineo train' made."""

    def __init__(self, config: Learned) -> None:
        from kineograph.models.classifier import Classifier

        self._config = config
        self._classifier = Classifier.load(config.model, config.device)
        self._label = find_label(config.label, dict(enumerate(self._classifier.config.labels)))

    def __call__(self, clips: Sequence[ClipFrames]) -> list[float]:
        videos = [np.stack(clip.frames) for clip in clips]
        chances = self._classifier.probabilities(videos, self._config.frames, self._config.batch_size)
        return chances[:, self._label].tolist()


class _Published:
    """A classifier in transformers' format."""

    def __init__(self, config: Learned) -> None:
        from kineograph.models.torchvision_shim import ensure_torchvision_importable

        ensure_torchvision_importable()
        self._config = config
        folder = _find_folder(config.model)
        self._model, self._is_video = _load_model(folder, config.device)
        self._processor = _load_processor(folder)
        self._label = find_label(config.label, self._model.config.id2label)

    def __call__(self, clips: Sequence[ClipFrames]) -> list[float]:
        if self._is_video:
            return self._probabilities(
                [choose_evenly(clip.frames, self._video_frames(len(clip.frames))) for clip in clips]
            )
        chosen = [choose_most(clip.frames, self._config.frames) for clip in clips]
        flat = iter(self._probabilities([[frame] for frames in chosen for frame in frames]))
        return [float(np.mean([next(flat) for _ in frames])) for frames in chosen]

    def _video_frames(self, sampled: int) -> int:
        known = self._model.config.to_dict()
        return int(known.get("num_frames") or known.get("frames_per_clip") or sampled)

    def _probabilities(self, inputs: Sequence[list[np.ndarray]]) -> list[float]:
        """The label's probability for each input, a list of frames (one for an image model)."""
        import torch

        size, result = self._config.batch_size, []
        for start in range(0, len(inputs), size):
            # Prepared one by one: frames of different sizes may stand in a batch.
            batch = torch.cat([self._prepare(frames) for frames in inputs[start : start + size]])
            with torch.inference_mode():
                logits = self._model(**{self._model.main_input_name: batch.to(self._config.device)}).logits
            result += self._chances(logits.float())[:, self._label].tolist()
        return result

    def _chances(self, logits: Any) -> Any:
        """Probabilities (B, labels): labels exclude each other unless the config says that they do not."""
        independent = self._model.config.problem_type == "multi_label_classification" or logits.shape[1] == 1
        return logits.sigmoid() if independent else logits.softmax(dim=1)

    def _prepare(self, frames: list[np.ndarray]) -> Any:
        """The model's input: float32 (1, 3, H, W) of an image, (1, T, 3, H, W) of a video."""
        import torch

        if self._processor is not None:
            images = [frames] if self._is_video else frames
            return self._processor(images, return_tensors="pt")[self._model.main_input_name]
        resized = np.stack([default_preprocess(frame, self._model.config) for frame in frames])
        tensor = torch.from_numpy(resized).permute(0, 3, 1, 2)
        return tensor[None] if self._is_video else tensor


def default_preprocess(frame: np.ndarray, config: Any) -> np.ndarray:
    """``frame``, uint8 RGB, squeezed to ``config.image_size`` (224 where it has none): float32 (H, W, 3), -1..1."""
    size = config.to_dict().get("image_size") or 224
    height, width = (size, size) if isinstance(size, int) else size
    resized = Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.float32) / 127.5 - 1


def find_label(label: str | int, names: dict[int, str]) -> int:
    """The index of ``label``, a name or an index. Raises UserError that lists the labels there are."""
    by_name = {name: index for index, name in names.items()}
    if label in by_name:
        return by_name[str(label)]
    if str(label).isdigit() and int(label) in names:
        return int(label)
    known = ", ".join(names[index] for index in sorted(names)[:20])
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    raise UserError(f"the classifier has no label {label!r}; it has: {known}{more}")


def _is_ours(folder: Path) -> bool:
    """Whether it is a training run or a checkpoint folder of 'kineo train'."""
    return (folder / CHECKPOINTS).is_dir() or (folder / DIGESTS).is_file()


def _find_folder(model: str) -> Path:
    """The folder of the checkpoint; from the hub (or its cache) only JSON and safetensors files are fetched."""
    folder = Path(model)
    if folder.is_dir():
        return folder
    if folder.is_absolute() or model.startswith("."):
        raise UserError(f"there is no folder {model}: {_WANTED}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:
        said = f"{model} is no folder, and the hub did not give it ({one_line(error)})"
        raise UserError(f"{said}: {_WANTED}") from error


def _load_model(folder: Path, device: str) -> tuple[Any, bool]:
    """The classifier, ready to run, and whether it takes videos."""
    from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForVideoClassification
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES,
    )
    from transformers.utils import logging

    logging.disable_progress_bar()
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json: it is no checkpoint in transformers' format")
    safe = {"local_files_only": True, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(folder, **safe)
    is_video = config.model_type in MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES
    if not is_video and config.model_type not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        raise UserError(f"{folder} holds a {config.model_type}, which classifies neither images nor videos")
    family = AutoModelForVideoClassification if is_video else AutoModelForImageClassification
    model, info = family.from_pretrained(folder, config=config, use_safetensors=True, output_loading_info=True, **safe)
    if info["missing_keys"]:
        first = sorted(info["missing_keys"])[0]
        raise UserError(f"{folder} is no trained classifier: its weights lack {first}")
    return model.float().eval().to(device), is_video


def _load_processor(folder: Path) -> Any:
    """The checkpoint's own preprocessing, None where it has none."""
    from transformers import AutoImageProcessor, AutoVideoProcessor

    safe = {"local_files_only": True, "trust_remote_code": False}
    if (folder / "preprocessor_config.json").is_file():
        return AutoImageProcessor.from_pretrained(folder, **safe)
    if (folder / "video_preprocessor_config.json").is_file():
        return AutoVideoProcessor.from_pretrained(folder, **safe)
    return None
