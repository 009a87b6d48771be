"""The confusion matrix, as numbers and as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image


def confusion_matrix(truth: np.ndarray, found: np.ndarray, classes: int) -> np.ndarray:
    """Clips (classes, classes) by true class (row) and by the class that was found (column); both given (N) as places."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (truth, found), 1)
    return counts


def draw_confusion(counts: np.ndarray, names: Sequence[str]) -> Image.Image:
    """Shares of each true class as shades, with the numbers of clips."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    side = 2.5 + 0.5 * len(names)
    figure = Figure(figsize=(side, side), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("found")
    axes.set_ylabel("true")
    right = int(np.trace(counts))
    axes.set_title(f"{right} of {int(counts.sum())} right")
    if len(names) <= 30:  # beyond, numbers cannot be read
        for row, column in np.argwhere(counts):
            ink = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=ink)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
