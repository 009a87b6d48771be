"""One caption of the several that a clip may have, and the hash that binds it to the clip."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pipelines.data.captions.config import Captions
from pipelines.data.captions.measured import measured_caption


def caption_hash(clip_id: str, caption: str, source: str, model: str) -> str:
    """SHA-256 (64 hex digits) of the four as a JSON list, in which no two different quadruples are the same."""
    return hashlib.sha256(json.dumps([clip_id, caption, source, model]).encode("ascii")).hexdigest()


def caption_columns(clip_id: str, caption: str = "", source: str = "", model: str = "") -> dict[str, str]:
    """The caption columns of the clips table; all are "" when ``caption`` says nothing.

    Args:
        clip_id: the clip that is described.
        caption: the text.
        source: sidecar, manifest, model or measured.
        model: who wrote it, when a model did.
    """
    if not caption.strip():
        return {"caption": "", "caption_source": "", "caption_model": "", "caption_hash": ""}
    return {
        "caption": caption,
        "caption_source": source,
        "caption_model": model,
        "caption_hash": caption_hash(clip_id, caption, source, model),
    }


def wants_model(given: Mapping[str, str], config: Captions) -> bool:
    """Whether the model is to be asked: no source before it in the order has a caption in ``given``."""
    if "model" not in config.sources:
        return False
    before = config.sources[: config.sources.index("model")]
    return "measured" not in before and not any(given.get(source, "").strip() for source in before)


def choose(
    given: Mapping[str, str],
    model_caption: Mapping[str, Any] | None,
    row: Mapping[str, Any],
    config: Captions,
) -> dict[str, str]:
    """The caption columns of a clip, from the first source of the order that has a caption.

    Args:
        given: caption by source, of sidecar and manifest; what is missing or "" is none.
        model_caption: what :class:`pipelines.data.captions.model.ModelCaptioner` gave for the clip; None when it
            was not asked.
        row: the clip's row, with its clip_id and its signals.
        config: the captions of the recipe.
    """
    answer = model_caption or {}
    for source in config.sources:
        if source == "model":
            text, model = answer.get("caption", ""), answer.get("caption_model", "")
        elif source == "measured":
            text, model = measured_caption(row), ""
        else:
            text, model = given.get(source, ""), ""
        if text.strip():
            return caption_columns(row["clip_id"], text, source, model)
    return caption_columns(row["clip_id"])
