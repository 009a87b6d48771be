"""Captions that lie beside a source: NAME.json for stretches of it, NAME.txt for the whole."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

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


def parse_sidecar(name: str, content: bytes) -> tuple[Caption, ...]:
    """The captions in the bytes of a file called ``name``.

    A .txt is one caption. A .json is an object: ``caption`` of the whole, or ``captions``, a list of objects with
    ``caption``, ``start_s`` and ``end_s`` in seconds. Raises ValueError with one line when it is neither.
    """
    if not name.lower().endswith(".json"):
        text = clean(content.decode("utf-8", "replace"))
        return (Caption(text),) if text else ()
    try:
        value = json.loads(content.decode("utf-8", "replace"))
        spans = value.get("captions", [value])
        captions = [Caption(clean(s["caption"]), *_seconds(s)) for s in spans]
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return tuple(caption for caption in captions if caption.text)


def _seconds(span: dict[str, Any]) -> tuple[float, float | None]:
    start, end = float(span.get("start_s", 0.0)), span.get("end_s")
    end = None if end is None else float(end)
    if not math.isfinite(start) or (end is not None and not math.isfinite(end)):
        raise ValueError(f"a span from {start} to {end}")
    return start, end


def clean(text: str) -> str:
    """``text`` on one line, without what cannot be stored as UTF-8."""
    if not isinstance(text, str):
        raise TypeError(f"a caption is text, not {type(text).__name__}")
    text = text.encode("utf-8", "replace").decode()
    return " ".join(text.replace("\0", " ").split())[:MAX_CAPTION_CHARACTERS]
