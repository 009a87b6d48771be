"""What the report says in words: what each reason means, and how numbers are written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from kineograph.progress import duration
from kineograph.store.schema import Reason

Row = dict[str, Any]
LONGEST_TEXT = 300


@dataclass(frozen=True)
class Meaning:
    """What a reason means to a reader."""

    text: str
    """One sentence."""
    value: str = ""
    """What the measured value is called; "" when value and threshold say nothing to a reader."""
    unit: str = ""
    """Unit of value and threshold."""


MEANING = {
    Reason.NOT_MEDIA: Meaning("The file is in no allowed video or image format."),
    Reason.CORRUPT: Meaning("The file opened, but nothing in it could be decoded."),
    Reason.UNREADABLE: Meaning("The file could not be read."),
    Reason.TOO_LARGE: Meaning("The file is past the limits on bytes, pixels, seconds or streams."),
    Reason.TIMEOUT: Meaning("Its analysis took too long and was stopped."),
    Reason.CRASHED: Meaning("The decoder died on it."),
    Reason.FETCH_FAILED: Meaning("The remote file could not be brought here."),
    Reason.EXACT_DUPLICATE: Meaning("It has the same bytes as a source that is kept."),
    Reason.OUTSIDE_SPAN: Meaning("It lies outside the stretches that the manifest names."),
    Reason.TRANSITION: Meaning("It is a fade or dissolve between two shots."),
    Reason.DURATION: Meaning("It is shorter than the least length of a clip.", "length", "s"),
    Reason.RESOLUTION: Meaning("It has too few pixels on the short side, black bars not counted.", "short side", "px"),
    Reason.ASPECT: Meaning("It is wider or taller than the recipe allows.", "width / height"),
    Reason.FPS: Meaning("It has too few frames per second.", "rate", "frames/s"),
    Reason.BLACK: Meaning("Too large a share of its frames is black.", "share black"),
    Reason.STATIC: Meaning("Too large a share of its frames repeats the one before.", "share repeated"),
    Reason.MOTION_LOW: Meaning("It moves too little.", "motion", "diagonals/s"),
    Reason.MOTION_HIGH: Meaning("It moves too much.", "motion", "diagonals/s"),
    Reason.BLUR: Meaning("It is too blurred.", "blur"),
    Reason.FLASHING: Meaning("It flashes too often within a second.", "flashes", "per s"),
    Reason.TEXT: Meaning("Text covers too much of the picture.", "share text"),
    Reason.UNSAFE: Meaning("The safety model is too sure of nudity.", "score"),
    Reason.AESTHETIC: Meaning("Its aesthetic score is too low.", "score"),
    Reason.LEARNED: Meaning("The classifier gives the wanted label too little probability.", "probability"),
    Reason.NO_BUCKET: Meaning("It is too short or too small for every bucket.", "measured"),
    Reason.PERCEPTUAL_DUPLICATE: Meaning("It looks the same, frame for frame, as something that is kept.", "distance"),
    Reason.SEMANTIC_DUPLICATE: Meaning("It shows the same as a clip that is kept, by its CLIP embedding.", "cosine"),
    Reason.NO_CAPTION: Meaning("It has no caption, and the recipe asks for one."),
    Reason.CAPTION_MATCH: Meaning("Its caption says something else than it shows, by CLIP.", "cosine"),
    Reason.ENCODE_FAILED: Meaning("It could not be decoded again when it was to be written."),
}

CAPTION_SOURCES = {
    "sidecar": "a file beside the source",
    "manifest": "the manifest that lists the sources",
    "model": "written by a captioning model",
    "measured": "put together from what was measured",
    "": "no caption",
}


def losses(totals: Row) -> str:
    """What was rejected, on one line: ``5 sources, 5 rejected (3 not_media, 2 corrupt)``."""
    parts = [_counted(totals["sources"], "source", totals["sources_rejected"])]
    if totals["clips"]:
        parts.append(_counted(totals["clips"], "clip", totals["clips_rejected"]))
    return "; ".join(parts)


def _counted(count: int, unit: str, rejected: dict[str, int]) -> str:
    text = f"{count} {unit}{'' if count == 1 else 's'}"
    if not rejected:
        return text
    by_count = sorted(rejected.items(), key=lambda item: (-item[1], item[0]))
    return f"{text}, {sum(rejected.values())} rejected ({', '.join(f'{n} {reason}' for reason, n in by_count)})"


def plural(count: int, unit: str) -> str:
    """``1 clip``, ``2,000 clips``."""
    return f"{count:,} {unit}{'' if count == 1 else 's'}"


def time(seconds: float) -> str:
    """``12.3 s``, ``4m05s``, ``2h07m``, ``1,204 h``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return duration(seconds) if seconds < 360_000 else f"{seconds / 3600:,.0f} h"


def time_unit(longest: float) -> tuple[float, str]:
    """Seconds of the unit in which a column whose greatest is ``longest`` seconds reads well, and its name."""
    if longest >= 3600:
        return 3600.0, "hours"
    return (60.0, "minutes") if longest >= 600 else (1.0, "seconds")


def number(value: float) -> str:
    """Three significant digits, whole numbers in full: ``0.0213``, ``0.3``, ``1,920``; "" when not measured."""
    if not math.isfinite(value):
        return ""
    return f"{value:,.0f}" if value == 0 or abs(value) >= 100 else f"{value:.3g}"


def interval(low: str, high: str) -> str:
    """``low–high``, with the dash of ranges."""
    return f"{low}\N{EN DASH}{high}"


def compact(count: float) -> str:
    """A count in at most four characters: ``950``, ``1.2k``, ``31k``, ``4M``."""
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if count >= size:
            return (
                f"{count / size:.1f}".removesuffix(".0") + letter
                if count < 10 * size
                else f"{count / size:.0f}{letter}"
            )
    return f"{count:g}"


def percent(share: float) -> str:
    """``0%``, ``0.4%``, ``37%``; what is there but rounds to nothing is ``<0.1%``."""
    if 0 < share < 0.001:
        return "<0.1%"
    return f"{100 * share:.1f}%" if 0 < share < 0.0995 else f"{100 * share:.0f}%"


def shortened(text: str, longest: int = LONGEST_TEXT) -> str:
    """``text`` on one line, cut to ``longest`` characters: a page must not grow with what a stranger wrote."""
    line = " ".join(text[: 4 * longest].split())
    return line if len(line) <= longest and len(text) <= 4 * longest else line[: longest - 1] + "…"
