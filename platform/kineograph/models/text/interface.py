"""What every text encoder offers, and what an empty caption is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import numpy as np

from kineograph.errors import UserError

BATCH = 64
"""Captions encoded at once."""
MAX_TOKENS = 64
"""Where captions are cut off unless said otherwise."""
STATES_VERSION = 1
"""Part of every fingerprint: raise it when a change to an encoder here changes its states."""

Dtype = Literal["float32", "float16", "bfloat16"]
"""Of an encoder's weights and of its arithmetic; its states are float16 in any case."""


class TextEncoder(Protocol):
    """What every text encoder offers."""

    name: str
    """What :func:`kineograph.models.text.load_text_encoder` loads it by."""
    width: int
    """Channels of a token state."""
    max_tokens: int
    """A longer caption is cut off here; start and end tokens count."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that its states depend on: kind, weights, tokenizer, max_tokens and dtype, and not of where
        the files lie. Reads local weights once, as fast as the disk gives them."""
        ...

    def encode(self, captions: Sequence[str]) -> list[np.ndarray]:
        """One float16 array (tokens, width) per caption, in order.

        A caption's states do not depend on how long its neighbours are. Beside others the last bits may still differ
        from those it has alone, as products of matrices of different sizes round differently.
        """
        ...


def encode_captions(encoder: TextEncoder, captions: Sequence[str]) -> list[np.ndarray]:
    """Token states (tokens, width) of each caption. An empty caption has no tokens: it stands for "no caption"."""
    states = iter(encoder.encode([c for c in captions if c.strip()]))
    return [next(states) if c.strip() else np.zeros((0, encoder.width), np.float16) for c in captions]


def empty_embedding(encoder: TextEncoder) -> np.ndarray:
    """What the encoder says to "": float16 (tokens, width), the states of its start and end tokens.

    For models of others that were trained with it as their unconditional text, as Stable Diffusion was; nothing here calls
    it. Ours learn a null text of their own, and so do those of DiT's and Open-Sora's line: for them "no caption" is
    :func:`encode_captions`' no tokens.
    """
    return encoder.encode([""])[0]


def batches(captions: Sequence[str]) -> Iterator[Sequence[str]]:
    """``captions`` in pieces of at most BATCH."""
    for start in range(0, len(captions), BATCH):
        yield captions[start : start + BATCH]


def check_finite(states: np.ndarray, name: str) -> np.ndarray:
    """``states`` as they are. Raises UserError when one is infinite or not a number: in a dataset it would spoil every
    batch that it comes into."""
    if not np.isfinite(states).all():
        raise UserError(f"text encoder {name} overflows: load it with dtype bfloat16 or float32")
    return states
