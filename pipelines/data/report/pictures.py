"""The thumbnails on the page: chosen first, fetched together, and never more than the page may weigh."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

import numpy as np

from kineograph.store.schema import Reason
from pipelines.data.report.words import MEANING, Row, interval, number, shortened

Thumbnails = Callable[[Sequence[Row]], list[bytes]]
MOST_BYTES = 2_000_000  # of JPEG; base64 adds a third


class Album:
    """Collects the clips to show; :meth:`pictures` then gets their thumbnails in one go."""

    def __init__(self) -> None:
        self._wanted: list[tuple[int, Row]] = []

    def show(self, clip: Row, rank: int, longest: int = 160) -> Row:
        """What the page says of ``clip``; when not all pictures fit, those with the lowest ``rank`` are shown."""
        self._wanted.append((rank, clip))
        meaning = MEANING[Reason(clip["reason"])] if clip["reason"] else None
        still = clip["media_type"] == "image"
        value, threshold = float(clip["value"]), float(clip["threshold"])
        measured = meaning is not None and bool(meaning.value) and np.isfinite(value)
        return {
            "clip_id": clip["clip_id"],
            "uri": shortened(clip["uri"]),
            "name": shortened(PurePosixPath(clip["uri"]).name or clip["uri"]),
            "span": "still image" if still else interval(f"{clip['start_s']:.1f}", f"{clip['end_s']:.1f} s"),
            "caption": shortened(clip["caption"] or "", longest),
            "caption_model": shortened(clip.get("caption_model") or "", 80),
            "bucket": clip["bucket"],
            "kept": clip["decision"] == "keep",
            "measured": f"{meaning.value} {number(value)} {meaning.unit}".strip() if meaning and measured else "",
            "threshold": number(threshold) if measured else "",
        }

    def show_source(self, clip: Row, rank: int) -> Row:
        """As :meth:`show`, of the source that ``clip`` begins: without what is said of the clip alone."""
        return {**self.show(clip, rank), "measured": "", "caption": "", "bucket": "", "span": ""}

    def pictures(self, thumbnails: Thumbnails | None) -> dict[str, str]:
        """clip_id -> data URI, for as many clips as fit into MOST_BYTES."""
        uses: dict[str, int] = {}
        rows: dict[str, Row] = {}
        for _, clip in sorted(self._wanted, key=lambda wanted: wanted[0]):
            rows.setdefault(clip["clip_id"], clip)
            uses[clip["clip_id"]] = uses.get(clip["clip_id"], 0) + 1
        bare = [clip for clip in rows.values() if not clip.get("thumbnail")]
        fetched = dict(zip((clip["clip_id"] for clip in bare), thumbnails(bare), strict=True)) if thumbnails else {}
        pictures, weight = {}, 0
        for clip_id, clip in rows.items():
            jpeg = clip.get("thumbnail") or fetched.get(clip_id, b"")
            if jpeg and weight + len(jpeg) * uses[clip_id] <= MOST_BYTES:
                weight += len(jpeg) * uses[clip_id]
                pictures[clip_id] = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
        return pictures


def spread(rows: np.ndarray, count: int) -> list[int]:
    """``count`` of the indices ``rows`` at equal distances, the first and the last among them."""
    if len(rows) <= count:
        return rows.tolist()
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(int)].tolist()


def by_distance(rows: np.ndarray, value: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """The indices ``rows``, nearest to the threshold first; those without a value keep their order at the end."""
    return rows[np.argsort(np.abs(value[rows] - threshold[rows]), kind="stable")]
