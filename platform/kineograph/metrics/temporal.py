"""Metrics of how a video changes over time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

FLICKER_VERSION = "vbench-temporal-flickering-1"


def flicker(video: np.ndarray) -> float:
    """Temporal flickering of VBench (Huang et al. 2024): 1 - mean over neighbouring frames of MAE / 255.

    ``video`` is uint8 (T, H, W, 3), T >= 2. The result lies in 0..1: 1 stands still, and what moves as well
    as what flickers lowers it. Raises ValueError on another dtype or shape.
    """
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3 or 0 in video.shape:
        raise ValueError(f"a video is uint8 of shape (T, H, W, 3), not {video.dtype} of shape {video.shape}")
    if len(video) < 2:
        raise ValueError("flicker needs at least two frames")
    total = 0
    for before, after in pairwise(video):  # frame by frame: long videos stay out of int16
        total += int(np.abs(after.astype(np.int16) - before).sum(dtype=np.int64))
    return 1.0 - total / (255.0 * (video.size - video[0].size))
