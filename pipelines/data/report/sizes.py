"""A picture of the clips' sizes, and of the buckets that they went to."""

from __future__ import annotations

import numpy as np

from kineograph.media.geometry import Bucket
from pipelines.data.report.columns import Clips
from pipelines.data.report.words import Row, plural

SIDE, LEFT, TOP, BOTTOM = 360, 46, 10, 40
CELLS_PER_OCTAVE = 6
LARGEST_RADIUS = 17.0
MOST_CELLS = 400
FEW_CELLS = 16
CHARACTER = 6.2


def sizes_chart(clips: Clips, buckets: list[Bucket]) -> Row | None:
    """Width against height, both logarithmic: a disc for each size with area as its number of clips, the kept
    within; a cross for each bucket. None without clips."""
    if not len(clips):
        return None
    sizes = np.log2(np.maximum(np.stack(clips.sizes(), axis=1), 1.0))  # N 2
    marks = sorted({(bucket.width, bucket.height) for bucket in buckets})
    every = np.concatenate([sizes, np.log2(np.array(marks, np.float64)).reshape(-1, 2)])
    low, high = float(every.min()) - 0.5, float(every.max()) + 0.5

    def x(octave: float) -> float:
        return round(LEFT + (octave - low) / (high - low) * (SIDE - LEFT - 10), 1)

    def y(octave: float) -> float:
        return round(SIDE - BOTTOM - (octave - low) / (high - low) * (SIDE - TOP - BOTTOM), 1)

    cells, where = np.unique(np.round(sizes * CELLS_PER_OCTAVE), axis=0, return_inverse=True)
    where = where.reshape(-1)
    count = np.bincount(where, minlength=len(cells))
    kept = np.bincount(where, weights=clips.kept, minlength=len(cells))
    order = np.argsort(-count, kind="stable")[:MOST_CELLS]
    largest = LARGEST_RADIUS * min(1.0, np.sqrt(FEW_CELLS / len(cells)))  # many discs are small, else they are a blot
    radius = largest / np.sqrt(count.max())
    return {
        "side": SIDE,
        "left": LEFT,
        "ground": SIDE - BOTTOM,
        "top": TOP,
        "right": SIDE - 10,
        "discs": [
            {
                "x": x(cells[i, 0] / CELLS_PER_OCTAVE),
                "y": y(cells[i, 1] / CELLS_PER_OCTAVE),
                "all": round(max(1.2, radius * float(np.sqrt(count[i]))), 1),
                "kept": round(max(1.0, radius * float(np.sqrt(kept[i]))), 1) if kept[i] else 0,
            }
            for i in order
        ],
        "ticks": [{"x": x(n), "y": y(n), "label": f"{2**n}"} for n in range(int(np.ceil(low)), int(high) + 1)],
        "buckets": _labelled([(x(np.log2(w)), y(np.log2(h)), f"{h}x{w}") for w, h in marks]),
        "description": f"Width against height of {plural(len(clips), 'clip')}, {int(clips.kept.sum()):,} kept, with "
        + (f"{len(marks)} bucket sizes: " + ", ".join(f"{h}x{w}" for w, h in marks) if marks else "no bucket"),
    }


def _labelled(marks: list[tuple[float, float, str]]) -> list[Row]:
    """Crosses with labels where none covers another; a label that finds no place is left to the table."""
    taken: list[tuple[float, float, float, float]] = [(x - 6, y - 6, x + 6, y + 6) for x, y, _ in marks]
    placed = []
    for x, y, label in marks:
        half = CHARACTER * len(label) / 2
        at = None
        for dx, dy in ((0, 18), (0, -10), (half + 10, 4), (-half - 10, 4), (0, 31), (0, -23)):
            box = (x + dx - half, y + dy - 10, x + dx + half, y + dy + 2)
            inside = box[0] > LEFT and box[2] < SIDE and box[1] > TOP and box[3] < SIDE - BOTTOM
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                at = {"x": round(x + dx, 1), "y": round(y + dy, 1)}
                break
        placed.append({"x": x, "y": y, "label": label, "at": at})
    return placed


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
