"""What a run is made of: the media files under its input, and the captions that lie beside them."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kineograph.errors import UserError

VIDEO_EXTENSIONS = frozenset(
    (
        ".mp4",
        ".m4v",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".ts",
        ".mts",
        ".m2ts",
        ".mpg",
        ".mpeg",
        ".flv",
        ".ogv",
        ".3gp",
        ".3g2",
        ".gif",
    )
)
IMAGE_EXTENSIONS = frozenset([".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".apng"])
SIDECAR_EXTENSIONS = frozenset((".txt", ".json"))
# More than any caption needs; a sidecar is as hostile as its source.
MAX_SIDECAR_BYTES = 1 << 20
MAX_CAPTION_CHARACTERS = 2000


@dataclass(frozen=True)
class Caption:
    """What is said of a stretch of a source; ``end_s`` None is its end."""

    text: str
    start_s: float = 0.0
    end_s: float | None = None


@dataclass(frozen=True)
class Source:
    """A file of the input."""

    uri: str
    """Path below the input with forward slashes; bytes that are no UTF-8 are written as \\xNN."""
    path: str
    """Where to open it (surrogates stand for bytes that are no UTF-8)."""
    captions: tuple[Caption, ...] = ()
    warning: str = ""
    """What was wrong with its sidecar."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Source:
        return cls(**{**value, "captions": tuple(Caption(**c) for c in value["captions"])})


@dataclass
class Listing:
    """The sources under an input, sorted by uri, and what else lay there."""

    sources: list[Source]
    others: Counter[str] = field(default_factory=Counter)
    """Extension -> files that are neither media nor sidecars."""

    @property
    def note(self) -> str:
        """One line about the files that are left out; "" when there are none."""
        if not self.others:
            return ""
        kinds = ", ".join(f"{count} {ext or 'without extension'}" for ext, count in self.others.most_common(5))
        return f"left out {self.others.total()} files that are no media by their names: {kinds}"


def list_sources(root: str | Path) -> Listing:
    """The media files of ``root``: all below it when it is a directory, itself when it is a file.

    Raises UserError when it is missing, cannot be read or holds no media.
    """
    root = Path(root)
    if not root.exists():
        raise UserError(f"input {root} does not exist")
    if root.is_file():
        return Listing([_source(root.name, root)])
    if not os.access(root, os.R_OK | os.X_OK):
        raise UserError(f"input {root} cannot be read: check its permissions")
    listing = Listing([])
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in names:
            path = Path(folder, name)
            extension = path.suffix.lower()
            if extension in VIDEO_EXTENSIONS or extension in IMAGE_EXTENSIONS:
                listing.sources.append(_source(path.relative_to(root).as_posix(), path))
            elif extension not in SIDECAR_EXTENSIONS:
                listing.others[extension] += 1
    if not listing.sources:
        known = " ".join(sorted(e[1:] for e in VIDEO_EXTENSIONS | IMAGE_EXTENSIONS))
        raise UserError(f"no media found under {root}: it looks for files named {known}")
    listing.sources.sort(key=lambda source: source.uri)
    return listing


def _source(relative: str, path: Path) -> Source:
    uri = os.fsencode(relative).decode("utf-8", "backslashreplace")
    try:
        captions, warning = _captions(path), ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        captions, warning = (), f"its caption file cannot be read: {' '.join(str(error).split())[:120]}"
    return Source(uri, str(path), captions, warning)


def _captions(path: Path) -> tuple[Caption, ...]:
    """From NAME.json, else NAME.txt, else none."""
    spans, whole = path.with_suffix(".json"), path.with_suffix(".txt")
    if spans.is_file():
        value = json.loads(_read_sidecar(spans))
        return tuple(
            Caption(text, float(span["start_s"]), float(span["end_s"]))
            for span in value["captions"]
            if (text := _clean(span["caption"]))
        )
    if whole.is_file() and (text := _clean(_read_sidecar(whole))):
        return (Caption(text),)
    return ()


def _read_sidecar(path: Path) -> str:
    if path.stat().st_size > MAX_SIDECAR_BYTES:
        raise ValueError(f"{path.name} is larger than {MAX_SIDECAR_BYTES} bytes")
    return path.read_text(encoding="utf-8", errors="replace")


def _clean(text: str) -> str:
    """``text`` on one line, without what cannot be stored as UTF-8."""
    if not isinstance(text, str):
        raise TypeError(f"a caption is text, not {type(text).__name__}")
    text = text.encode("utf-8", "replace").decode()
    return " ".join(text.replace("\0", " ").split())[:MAX_CAPTION_CHARACTERS]


def caption_of(captions: tuple[Caption, ...], start_s: float, end_s: float) -> str:
    """The caption whose span overlaps [start_s, end_s) most, the earliest on a tie; "" when none does.

    A span of no length, an image's, takes the caption that it stands in.
    """
    best, best_overlap = "", 0.0
    for caption in captions:
        caption_end = float("inf") if caption.end_s is None else caption.end_s
        overlap = min(end_s, caption_end) - max(start_s, caption.start_s)
        if start_s == end_s and caption.start_s <= start_s <= caption_end:
            overlap = 1.0
        if overlap > best_overlap + 1e-9:
            best, best_overlap = caption.text, overlap
    return best
