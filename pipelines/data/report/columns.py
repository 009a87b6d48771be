"""The clips as columns of numbers, so that a page over a hundred thousand of them takes a second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kineograph.store.schema import Reason
from pipelines.data.report.words import Row

REASONS = tuple(Reason)
INDEX = {reason.value: index for index, reason in enumerate(REASONS)}


@dataclass(frozen=True)
class Clips:
    """N rows of the clips table, and what the report counts of them."""

    rows: Sequence[Row]
    seconds: np.ndarray  # N, length of the span
    kept: np.ndarray  # N, bool
    reason: np.ndarray  # N, index into REASONS, -1 when kept
    fails: np.ndarray  # N R, bool: every check that it fails, not the first alone
    value: np.ndarray  # N, NaN when nothing was measured
    threshold: np.ndarray  # N
    video: np.ndarray  # N, bool

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Clips:
        """The columns of ``rows``. Raises KeyError for a reason that is not in the enum."""
        reason = np.array([INDEX[row["reason"]] if row["reason"] else -1 for row in rows], np.int64)
        fails = np.zeros((len(rows), len(REASONS)), bool)
        fails[np.flatnonzero(reason >= 0), reason[reason >= 0]] = True
        for index, row in enumerate(rows):
            for name in row.get("failed") or ():
                fails[index, INDEX[name]] = True
        return cls(
            rows=rows,
            seconds=floats(rows, "end_s") - floats(rows, "start_s"),
            kept=np.array([row["decision"] == "keep" for row in rows], bool),
            reason=reason,
            fails=fails,
            value=floats(rows, "value"),
            threshold=floats(rows, "threshold"),
            video=np.array([row["media_type"] != "image" for row in rows], bool),
        )

    def __len__(self) -> int:
        return len(self.rows)

    def rejected_by(self, reason: Reason) -> np.ndarray:
        """Indices of the clips that ``reason`` names, in the order of the rows."""
        return np.flatnonzero(self.reason == INDEX[reason.value])

    def signal(self, column: str) -> np.ndarray:
        """N values of a signal, NaN where it was not measured or means nothing (the length of an image)."""
        if column == "seconds":
            return np.where(self.video, self.seconds, np.nan)
        if column == "fps":
            return np.where(self.video, floats(self.rows, "fps"), np.nan)
        if column in ("short_side", "aspect"):
            width, height = self.sizes()
            if column == "short_side":
                return np.minimum(width, height)
            return np.divide(width, height, out=np.full(len(self), np.nan), where=(height > 0) & (width > 0))
        return floats(self.rows, column)

    def sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Width and height (N each) in pixels of the picture, without black bars where they were found."""
        content = [row.get("content") for row in self.rows]
        pairs = [
            (c[2], c[3]) if c else (row["width"], row["height"]) for c, row in zip(content, self.rows, strict=True)
        ]
        size = np.array(pairs, np.float64).reshape(len(self), 2)
        return size[:, 0], size[:, 1]


def floats(rows: Sequence[Row], column: str) -> np.ndarray:
    """A column as float64; NaN where it is missing or null."""
    return np.array([row.get(column) for row in rows], np.float64)
