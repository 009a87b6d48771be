"""Captions by a vision-language model, from the frames that were sampled while the source was decoded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from kineograph.errors import UserError
from kineograph.store.commit import sha256_file
from pipelines.data.captions.config import CaptionModel
from pipelines.data.scores.base import ClipFrames

MAX_CHARACTERS = 2000
# Hex digits of a local model's digest in ``caption_model``.
DIGEST_LENGTH = 16


class ModelCaptioner:
    """A Scorer that gives ``caption``, ``caption_source`` and ``caption_model``; all "" when the model is silent.

    The answer is decoded greedily. Prompts of unequal length are padded on the left, so that a clip's answer does not
    depend on its batch but for rounding. Raises UserError when the model cannot be loaded.
    """

    def __init__(self, config: CaptionModel) -> None:
        self._config = config
        self._processor, self._model, self.name = _load(config)

    def __call__(self, clips: Sequence[ClipFrames]) -> list[dict[str, Any]]:
        """The caption columns of each clip, in order."""
        size = self._config.batch_size
        batches = (clips[start : start + size] for start in range(0, len(clips), size))
        return [self._columns(text) for text in chain.from_iterable(map(self._answers, batches))]

    def _columns(self, text: str) -> dict[str, Any]:
        if not text:
            return {"caption": "", "caption_source": "", "caption_model": ""}
        return {"caption": text, "caption_source": "model", "caption_model": self.name}

    def _answers(self, clips: Sequence[ClipFrames]) -> list[str]:
        import torch

        inputs = self._inputs(clips).to(self._config.device, dtype=self._model.dtype)
        with torch.inference_mode():
            tokens = self._model.generate(**inputs, max_new_tokens=self._config.max_new_tokens)  # B L
        if not self._model.config.is_encoder_decoder:
            tokens = tokens[:, inputs["input_ids"].shape[1] :]
        answers = self._processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [clean(answer) for answer in answers]

    def _inputs(self, clips: Sequence[ClipFrames]) -> Any:
        """Token ids, padded on the left, and pixels, as the model's own processor makes them."""
        shown = [pick(clip.frames, self._config.frames) for clip in clips]
        texts = [
            self._processor.apply_chat_template(self._conversation(len(frames)), add_generation_prompt=True)
            for frames in shown
        ]
        # The template may have written the token that begins a text.
        begin = self._processor.tokenizer.bos_token
        options = {
            "padding": True,
            "return_tensors": "pt",
            "add_special_tokens": not (begin and texts[0].startswith(begin)),
        }
        if self._config.content == "images":
            return self._processor(text=texts, images=[list(frames) for frames in shown], **options)
        fps = self._config.fps
        facts = [{"total_num_frames": len(f), "fps": fps, "frames_indices": list(range(len(f)))} for f in shown]
        videos = [np.stack(frames) for frames in shown]
        return self._processor(text=texts, videos=videos, video_metadata=facts, do_sample_frames=False, **options)

    def _conversation(self, frames: int) -> list[dict[str, Any]]:
        seen = [{"type": "image"}] * frames if self._config.content == "images" else [{"type": "video"}]
        prompt = self._config.prompt if frames > 1 else self._config.still_prompt
        asked = {"role": "user", "content": [*seen, {"type": "text", "text": prompt}]}
        if self._config.system is None:
            return [asked]
        return [{"role": "system", "content": [{"type": "text", "text": self._config.system}]}, asked]


def pick(frames: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """``count`` of ``frames``, evenly spaced from first to last, in order; the middle one of a count of 1."""
    if len(frames) <= count:
        return list(frames)
    if count == 1:
        return [frames[len(frames) // 2]]
    return [frames[index] for index in np.linspace(0, len(frames) - 1, count).round().astype(int)]


def clean(answer: str) -> str:
    """One line of at most 2000 characters without control characters."""
    printable = "".join(c if c.isprintable() else " " for c in answer)
    return " ".join(printable.split())[:MAX_CHARACTERS].rstrip()


def _load(config: CaptionModel) -> tuple[Any, Any, str]:
    """(processor, model, name) of the config, ready for greedy decoding."""
    import torch
    from safetensors import SafetensorError

    from kineograph.models.torchvision_shim import ensure_torchvision_importable

    ensure_torchvision_importable()
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = Path(config.model).expanduser()
    local = folder.is_dir()
    where = str(folder) if local else config.model
    if not local and config.model.startswith(("/", ".", "~")):
        raise UserError(f"captions.model.model: there is no folder {config.model!r}")
    options = {"revision": config.revision, "trust_remote_code": False, "local_files_only": local}
    options = {key: value for key, value in options.items() if value is not None}
    try:
        processor = AutoProcessor.from_pretrained(where, **options)
        weights = {"dtype": getattr(torch, config.dtype), "use_safetensors": True}
        model = AutoModelForImageTextToText.from_pretrained(where, **options, **weights)
        model = model.eval().to(config.device)
    except (OSError, ValueError, ImportError, KeyError, AssertionError, RuntimeError, SafetensorError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()
        raise UserError(f"the caption model {config.model!r} cannot be loaded: {reason}") from error
    _check(processor, config)
    _decode_greedily(processor.tokenizer, model)
    if local:
        return processor, model, f"{folder.resolve().name}@{folder_digest(folder)[:DIGEST_LENGTH]}"
    commit = getattr(model.config, "_commit_hash", None)
    return processor, model, f"{config.model}@{commit or config.revision or 'unknown'}"


def _check(processor: Any, config: CaptionModel) -> None:
    parts = {"tokenizer": "text", ("image_processor" if config.content == "images" else "video_processor"): "frames"}
    for part, takes in parts.items():
        if getattr(processor, part, None) is None:
            hint = "; try captions.model.content: images" if part == "video_processor" else ""
            raise UserError(f"the caption model {config.model!r} has no {part} for its {takes}{hint}")
    if not getattr(processor, "chat_template", None):
        raise UserError(f"the caption model {config.model!r} has no chat template: take one tuned on instructions")


def _decode_greedily(tokenizer: Any, model: Any) -> None:
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    settings = model.generation_config
    settings.do_sample, settings.num_beams, settings.max_length = False, 1, None
    settings.temperature = settings.top_p = settings.top_k = None
    settings.pad_token_id = tokenizer.pad_token_id


def folder_digest(folder: Path) -> str:
    """SHA-256 (hex) of the names and bytes of all files in ``folder``, hidden ones left out."""
    whole = hashlib.sha256()
    paths = [p for p in folder.rglob("*") if p.is_file() and not any(q[0] == "." for q in p.relative_to(folder).parts)]
    for name, path in sorted((p.relative_to(folder).as_posix(), p) for p in paths):
        whole.update(f"{sha256_file(path)} {name}\n".encode())
    return whole.hexdigest()
