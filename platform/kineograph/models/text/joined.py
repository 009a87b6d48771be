"""Several text encoders as one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kineograph.config import digest
from kineograph.models.text.interface import TextEncoder


class JoinedEncoder:
    """The tokens of several encoders one after another; narrower states are padded with zeros to the widest.

    As Stable Diffusion 3 joins CLIP's and T5's (Esser et al. 2024, Scaling rectified flow transformers, section 5). Each
    encoder cuts the caption at its own limit.
    """

    def __init__(self, encoders: Sequence[TextEncoder]) -> None:
        self.encoders = tuple(encoders)
        self.name = "+".join(encoder.name for encoder in encoders)
        self.width = max(encoder.width for encoder in encoders)
        # The largest, so that loading the same name with it gives the same encoders.
        self.max_tokens = max(encoder.max_tokens for encoder in encoders)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the encoders' own, in order."""
        return digest([encoder.fingerprint for encoder in self.encoders])

    def encode(self, captions: Sequence[str]) -> list[np.ndarray]:
        """One float16 array (tokens of all encoders, width) per caption."""
        parts = [[self._widened(states) for states in encoder.encode(captions)] for encoder in self.encoders]
        return [np.concatenate(of_caption) for of_caption in zip(*parts, strict=True)]

    def _widened(self, states: np.ndarray) -> np.ndarray:
        return np.pad(states, ((0, 0), (0, self.width - states.shape[1])))
