"""How far two layouts are apart, in levels of 0..255."""

from __future__ import annotations

import numpy as np

# Contrast, levels, below which a difference counts for more: in fog all pictures are alike. Scenes of the
# synthetic world have 17 (median), footage about 30.
FULL_CONTRAST = 30.0


def contrasts(layout: np.ndarray) -> np.ndarray:
    """Root of the mean variance of the three planes of each layout (n, K): levels, float32 (n,)."""
    planes = layout.reshape(len(layout), 3, layout.shape[1] // 3)
    contrast: np.ndarray = np.sqrt(planes.var(axis=2, dtype=np.float32).mean(axis=1))
    return contrast


def layout_distance(change: np.ndarray, contrast: np.ndarray) -> np.ndarray:
    """Root mean square of ``change``, the difference of two layouts: (..., K) to (...,).

    What differs in pattern is scaled up where ``contrast`` (...,), that of the plainer layout, is under
    FULL_CONTRAST. What differs in a plane's mean is not: encoders that round moved it by 2 levels.
    """
    size = change.shape[-1]
    planes = change.reshape(*change.shape[:-1], 3, size // 3)
    level = (planes.sum(axis=-1) ** 2).sum(axis=-1) * (3.0 / size**2)
    pattern = np.einsum("...k,...k->...", change, change) / size - level
    scale = FULL_CONTRAST / np.minimum(contrast, FULL_CONTRAST).clip(1e-3)
    distance: np.ndarray = np.sqrt(np.maximum(pattern, 0) * scale**2 + level)
    return distance
