"""Charts as plain geometry for the page's SVG: paths, ticks and labels in the units of a view box.

No colour and no markup is made here; the page draws what these functions return and escapes every text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pipelines.data.report.words import Row, compact, number

WIDTH, LEFT, RIGHT = 320, 36, 8
PLOT_HEIGHT, LABEL_ROW, TICK_ROW = 84, 14, 20
# A bar this many times as high as the next is broken: else one heap at zero hides all the others.
BREAK_FROM = 2.5
CHARACTER = 5.8  # width of a character of a label, in units of the view box


class Axis:
    """Values to places: linear, or logarithmic in ``log``; what lies outside goes to the ends."""

    def __init__(self, low: float, high: float, log: bool = False) -> None:
        assert low < high
        self.log = log
        self.low, self.high = (math.log10(low), math.log10(high)) if log else (low, high)

    def share(self, values: np.ndarray | float) -> np.ndarray:
        """Where ``values`` lie between the ends, 0..1."""
        values = np.asarray(values, np.float64)
        with np.errstate(divide="ignore"):
            scaled = np.log10(np.maximum(values, 0)) if self.log else values
        return np.clip((scaled - self.low) / (self.high - self.low), 0.0, 1.0)

    def x(self, value: float) -> float:
        """The place of ``value`` in the view box."""
        return round(LEFT + float(self.share(value)) * (WIDTH - LEFT - RIGHT), 1)


def histogram(
    axis: Axis,
    bins: int,
    ticks: Sequence[tuple[float, str]],
    layers: Sequence[tuple[str, np.ndarray]],
    thresholds: Sequence[tuple[str, float]],
) -> Row:
    """Stacked bars of ``layers`` (name, values), from the ground up, with ``thresholds`` (label, place) as lines.

    Every bar with something in it can be seen, and at most one is broken off, with its count beside it.
    """
    counts = np.array([np.bincount(_bins(axis, bins, values), minlength=bins) for _, values in layers])  # L B
    total = counts.sum(axis=0)
    top, broken = _top(total)
    lines, rows = _threshold_labels(axis, thresholds)
    head = 8 + LABEL_ROW * rows + (LABEL_ROW if broken is not None else 0)
    ground = head + PLOT_HEIGHT
    step = (WIDTH - LEFT - RIGHT) / bins
    heights = _heights(counts, top)
    paths = [
        {"name": name, "d": _bars(heights[: index + 1].sum(axis=0), heights[index], step, ground)}
        for index, (name, _) in enumerate(layers)
    ]
    grid = nice_below(top)
    chart = {
        "width": WIDTH,
        "height": ground + TICK_ROW,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "ground": ground,
        "paths": paths,
        "ticks": [{**_anchored(axis.x(value), text), "y": ground + 15} for value, text in ticks],
        "thresholds": [{**line, "top": head - 3, "y": 11 + LABEL_ROW * line["row"]} for line in lines],
        "grid": {"y": round(ground - PLOT_HEIGHT * grid / top, 1), "label": compact(grid)},
        "broken": None,
    }
    if broken is not None:
        x = LEFT + (broken + 0.5) * step
        chart["broken"] = {
            **_anchored(x, compact(int(total[broken]))),
            "y": head - 4,
            "left": round(x - step / 2 - 1, 1),
            "width": round(step + 1, 1),
            "gap": head + 7,
        }
    return chart


def _bins(axis: Axis, bins: int, values: np.ndarray) -> np.ndarray:
    return np.minimum((axis.share(values) * bins).astype(np.int64), bins - 1)


def _top(total: np.ndarray) -> tuple[float, int | None]:
    """The count at the top of the plot, and the bin that is broken because it is far beyond it."""
    most, *others = sorted(total.tolist(), reverse=True)
    if others and others[0] and most > BREAK_FROM * others[0]:
        return 1.5 * others[0], int(total.argmax())
    return max(1.0, float(most)), None


def _heights(counts: np.ndarray, top: float) -> np.ndarray:
    """Heights (L B) of the stacked layers, none beyond the plot: at least 1.5 where there is anything."""
    heights = counts / top * PLOT_HEIGHT
    heights *= np.minimum(1.0, PLOT_HEIGHT / np.maximum(heights.sum(axis=0), 1e-9))
    return np.where(counts > 0, np.maximum(heights, 1.5), 0.0)


def _bars(tops: np.ndarray, heights: np.ndarray, step: float, ground: float) -> str:
    """One path of upright bars that hang from ``tops`` (height above ground)."""
    width = step - (1 if step > 4 else 0.4)
    return "".join(
        f"M{LEFT + i * step + (step - width) / 2:.1f} {ground - top:.1f}h{width:.1f}v{height:.1f}h-{width:.1f}z"
        for i, (top, height) in enumerate(zip(tops, heights, strict=True))
        if height > 0
    )


def _threshold_labels(axis: Axis, thresholds: Sequence[tuple[str, float]]) -> tuple[list[Row], int]:
    """Lines with labels that stay inside the chart and, in rows of their own where they must, off each other."""
    lines: list[Row] = []
    ends: list[float] = []  # right end of the last label of each row
    for label, value in sorted(thresholds, key=lambda threshold: threshold[1]):
        place = _anchored(axis.x(value), label)
        width = CHARACTER * len(label)
        left = place["at"] - {"start": 0.0, "middle": width / 2, "end": width}[place["anchor"]]
        row = next((r for r, end in enumerate(ends) if left > end + 6), len(ends))
        ends[row : row + 1] = [left + width]
        lines.append({**place, "x": axis.x(value), "row": row})
    return lines, len(ends)


def _anchored(x: float, text: str) -> Row:
    """A label at ``x``, shifted inwards at the ends of the chart."""
    half = CHARACTER * len(text) / 2
    if x + half > WIDTH:
        return {"at": WIDTH - 1, "anchor": "end", "label": text}
    if x - half < 0:
        return {"at": 1, "anchor": "start", "label": text}
    return {"at": round(x, 1), "anchor": "middle", "label": text}


def nice_below(value: float) -> float:
    """The greatest of 1, 2, 5, 10, 20, … that is not above ``value``."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (5, 2, 1) if step * power <= value * 1.000001)


def linear_ticks(low: float, high: float, most: int = 5) -> list[tuple[float, str]]:
    """At most about ``most`` round values from ``low`` to ``high``."""
    step = nice_below((high - low) / most) or 1.0
    while (high - low) / step > most:
        step = nice_below(step * 2.5)
    first = math.ceil(low / step - 1e-9)
    values = [round(i * step, 9) for i in range(first, math.floor(high / step + 1e-9) + 1)]
    return [(value, number(value)) for value in values]


def log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """The powers of ten from ``low`` to ``high``."""
    return [(10.0**p, f"{10.0**p:g}") for p in range(round(math.log10(low)), round(math.log10(high)) + 1)]
