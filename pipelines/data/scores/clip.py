"""CLIP on clips: one embedding per clip, its aesthetic score, and how well its caption matches.

Sources: Radford et al. 2021, Learning Transferable Visual Models From Natural Language Supervision; models and weights
by open_clip (Ilharco et al. 2021); the aesthetic heads of LAION-Aesthetics (Schuhmann 2022).
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from kineograph.config import Config
from kineograph.errors import UserError
from pipelines.data.scores.base import ClipFrames
from pipelines.data.scores.frames import choose_most, one_line

_SELF_CONTAINED = ("hf-hub:", "local-dir:")
_HINT = ": without the hub, give an architecture and a local file, e.g. model: ViT-B-32 and pretrained: FILE"


class ClipModel(Config):
    """A CLIP model of open_clip, and optionally a head that grades pictures on its embeddings."""

    model: str = "ViT-B-32"
    """Architecture as open_clip names it, or ``hf-hub:org/name``, or ``local-dir:FOLDER`` with open_clip_config.json
    and weights."""
    pretrained: str | None = "laion2b_s34b_b79k"
    """Weights of the architecture: a local file (safetensors, or what torch.load reads with weights_only) or a tag that
    open_clip fetches from the hub. hf-hub: and local-dir: models bring their own, and this is not looked at."""
    aesthetic_head: str | None = None
    """File (safetensors, or torch's with weights_only) of a linear layer, or of several without activations between
    them, from the normalised embedding of a picture to its score: LAION-Aesthetics, improved-aesthetic-predictor. It
    must have been trained on embeddings of the same model. null leaves ``aesthetic`` unmeasured."""
    frames: int = Field(4, ge=1)
    """Sampled frames looked at per clip, evenly chosen."""
    device: str = "cpu"
    """Where the model runs, as torch calls it: cpu, cuda, cuda:1."""
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Precision of the weights; fp16 and bf16 are for GPUs."""
    batch_size: int = Field(32, ge=1)
    """Frames, or captions, encoded at a time."""


class ClipScorer:
    """``embedding``, ``aesthetic`` and ``caption_match`` of clips.

    ``embedding`` is the mean of the frames' normalised embeddings, normalised: float32 (D,). ``aesthetic`` is the mean
    of the frames' scores by the head, NaN without one. ``caption_match`` is the cosine of the caption's embedding and
    ``embedding``, -1..1, NaN without a caption.
    """

    def __init__(self, config: ClipModel) -> None:
        """Load the model. Raises UserError when the model, its weights or the head cannot be."""
        self._config = config
        self._model, self._preprocess, self._tokenize, self._input_dtype = _load(config)
        self._head: tuple[np.ndarray, float] | None = None
        if config.aesthetic_head is not None:
            blank = np.zeros((8, 8, 3), np.uint8)
            self._head = load_head(config.aesthetic_head, width=self._encode_frames([blank]).shape[1])

    def __call__(self, clips: Sequence[ClipFrames]) -> list[dict[str, Any]]:
        chosen = [choose_most(clip.frames, self._config.frames) for clip in clips]
        encoded = self._encode_frames([frame for frames in chosen for frame in frames])
        parts = np.split(encoded, np.cumsum([len(frames) for frames in chosen])[:-1]) if clips else []
        embeddings = [_unit(part.mean(axis=0)) for part in parts]
        matches = self.match([clip.caption for clip in clips], embeddings)
        return [
            {"embedding": embedding, "aesthetic": self._aesthetic(part), "caption_match": match}
            for part, embedding, match in zip(parts, embeddings, matches, strict=True)
        ]

    def match(self, captions: Sequence[str], embeddings: Sequence[np.ndarray]) -> list[float]:
        """Cosine of each caption and the clip's ``embedding``; NaN for a blank caption. Equal captions are encoded once.

        For captions that are made after the pictures were encoded.
        """
        texts = list(dict.fromkeys(caption for caption in captions if caption.strip()))
        encoded = dict(zip(texts, self._encode_texts(texts), strict=True))
        return [
            float(encoded[caption] @ embedding) if caption in encoded else float("nan")
            for caption, embedding in zip(captions, embeddings, strict=True)
        ]

    def _aesthetic(self, frames: np.ndarray) -> float:
        """Mean score of normalised embeddings (frames, D)."""
        if self._head is None:
            return float("nan")
        weight, bias = self._head
        return float((frames.astype(np.float64) @ weight).mean() + bias)

    def _encode_frames(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """Normalised embeddings, float32 (frames, D), of uint8 RGB frames of any sizes."""
        import torch

        rows: list[np.ndarray] = []
        for start in range(0, len(frames), self._config.batch_size):
            batch = frames[start : start + self._config.batch_size]
            images = torch.stack([self._preprocess(Image.fromarray(frame)) for frame in batch])
            with torch.inference_mode():
                encoded = self._model.encode_image(images.to(self._config.device, self._input_dtype))
            rows.extend(_unit(encoded.float().cpu().numpy()))
        return np.stack(rows) if rows else np.zeros((0, 0), np.float32)

    def _encode_texts(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Normalised embeddings, float32 (D,), of captions; a long one is cut off at the model's context."""
        import torch

        rows: list[np.ndarray] = []
        for start in range(0, len(texts), self._config.batch_size):
            tokens = self._tokenize(list(texts[start : start + self._config.batch_size]))
            with torch.inference_mode():
                encoded = self._model.encode_text(tokens.to(self._config.device))
            rows.extend(_unit(encoded.float().cpu().numpy()))
        return rows


def _unit(vectors: np.ndarray) -> np.ndarray:
    """``vectors`` (..., D) scaled to length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def load_head(path: str, width: int) -> tuple[np.ndarray, float]:
    """Fold the linear layers of ``path`` into one: float64 weight (``width``,) and bias of score = weight · x + bias.

    The layers are taken in the order of the numbers in their names. Raises UserError when the file cannot be read, or
    does not lead from ``width`` numbers to one.
    """
    tensors = _read_tensors(path)
    names = sorted((name for name in tensors if name.split(".")[-1] == "weight"), key=_natural_order)
    weight, bias = np.eye(width), np.zeros(width)
    for name in names:
        layer = tensors[name]
        if layer.ndim != 2 or layer.shape[1] != len(bias):
            takes = f"a layer of shape {tuple(layer.shape)} where {len(bias)} numbers come in"
            raise UserError(f"the aesthetic head {path} is for another model: {name} is {takes}")
        weight = layer @ weight
        bias = layer @ bias + tensors.get(f"{name.removesuffix('weight')}bias", 0.0)
    if not names or len(bias) != 1:
        raise UserError(f"{path} is no aesthetic head: its layers do not end in one number")
    return weight[0], float(bias[0])


def _read_tensors(path: str) -> dict[str, np.ndarray]:
    import torch
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise UserError(f"there is no aesthetic head {path}: give a file, or null")
    try:
        safe = path.endswith(".safetensors")
        tensors = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor.double().numpy() for name, tensor in tensors.items()}
    except Exception as error:
        raise UserError(f"cannot read the aesthetic head {path}: {one_line(error)}") from error


def _natural_order(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _load(config: ClipModel) -> tuple[Any, Any, Any, Any]:
    """(model, preprocessing of a PIL image, tokenizer, dtype of the model's pictures)."""
    from kineograph.models.torchvision_shim import ensure_torchvision_importable

    ensure_torchvision_importable()
    import open_clip

    own = config.model.startswith(_SELF_CONTAINED)
    if not own:
        _check_names(config)
    pretrained = None if own else config.pretrained
    try:
        with _safely():
            model, preprocess = open_clip.create_model_from_pretrained(
                config.model,
                pretrained,
                precision=config.dtype,
                device=config.device,
                weights_only=True,
                pretrained_text=False,  # the weights hold both towers
            )
            tokenize = open_clip.get_tokenizer(config.model)
    except Exception as error:
        weights = f" with {pretrained}" if pretrained else ""
        said = f"cannot load CLIP {config.model}{weights} ({one_line(error)})"
        raise UserError(f"{said}{_HINT if _is_on_hub(config) else ''}") from error
    return model.eval(), preprocess, tokenize, open_clip.get_input_dtype(config.dtype)


def _is_on_hub(config: ClipModel) -> bool:
    if config.model.startswith(_SELF_CONTAINED):
        return config.model.startswith("hf-hub:")
    return not Path(str(config.pretrained)).is_file()


def _check_names(config: ClipModel) -> None:
    import open_clip

    known = open_clip.list_models()
    if config.model not in known:
        nearest = difflib.get_close_matches(config.model, known, n=3, cutoff=0.3)
        raise UserError(f"open_clip has no model {config.model!r}; near it are: {', '.join(nearest) or known[0]}")
    if config.pretrained is None:
        raise UserError(f"CLIP {config.model} has random weights: give pretrained, a local file or a tag")
    tags = open_clip.list_pretrained_tags_by_model(config.model)
    if config.pretrained not in tags and not Path(config.pretrained).is_file():
        some = ", ".join(tags[:6]) + (", …" if len(tags) > 6 else "")
        raise UserError(f"{config.pretrained} is neither a file nor a tag of {config.model}; its tags are: {some}")


@contextmanager
def _safely() -> Iterator[None]:
    """No pickled code is run and nothing is logged while open_clip loads.

    open_clip asks torch for weights_only, and where that raises TypeError asks again without it.
    """
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    level = logging.root.manager.disable
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(level)
        if before is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before
