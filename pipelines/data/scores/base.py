"""What a model stage sees of a clip, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ClipFrames:
    """A clip as the models see it: frames that were sampled while its source was decoded."""

    clip_id: str
    caption: str
    frames: tuple[np.ndarray, ...]
    """uint8 RGB (H, W, 3), in order of time, upright, without black bars; at least one."""


Scorer = Callable[[Sequence[ClipFrames]], list[dict[str, Any]]]
"""Columns of each clip, in order. ``embedding`` is float32 (D,), everything else a column of the clips table."""
