"""Class labels in the place of captions, for models that know classes and no words (DiT)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kineograph.config import digest
from kineograph.errors import UserError
from kineograph.models.text.interface import STATES_VERSION

MOST = 65_535
"""The highest class that two bytes can say."""


class ClassLabels:
    """The prompt is the number of a class: "207". It becomes one token of two channels, its high and its low byte, which
    is exact in half precision (:func:`kineograph.models.dit.label_tokens`). No caption is "no class"."""

    name = "labels"
    width = 2
    max_tokens = 1

    @property
    def fingerprint(self) -> str:
        """Of the rule, as there are no weights."""
        return digest([STATES_VERSION, self.name])

    def encode(self, captions: Sequence[str]) -> list[np.ndarray]:
        """One float16 array (1, 2) per caption. Raises UserError for what is no number of a class."""
        return [np.array([divmod(_class_of(caption), 256)], np.float16) for caption in captions]


def _class_of(caption: str) -> int:
    text = caption.strip()
    if not (text.isdecimal() and len(text) <= len(str(MOST)) and int(text) <= MOST):
        raise UserError(
            f"text encoder labels: a prompt is the number of a class, 0 to {MOST}, e.g. 207, and not {caption[:60]!r}"
        )
    return int(text)
