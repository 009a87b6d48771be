"""Which clips are kept: checks, duplicates, model scores and captions, cheap before dear.

Every step looks only at the clips that have passed so far. A row carries ``failed``, a list of
:class:`pipelines.data.decide.Failed`; the first is its reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kineograph.store.schema import Reason
from pipelines.data import measured, scoring
from pipelines.data.captions.binding import choose, wants_model
from pipelines.data.config import CurateConfig
from pipelines.data.decide import Failed, caption_failures, decide
from pipelines.data.duplicates.perceptual import (
    ClipSpan,
    Duplicate,
    FingerprintedSource,
    Matches,
    clip_duplicates,
    source_duplicates,
)
from pipelines.data.duplicates.semantic import semantic_duplicates

Row = dict[str, Any]


def select(
    run: Path, config: CurateConfig, lines: Sequence[Row], keys: Sequence[str]
) -> tuple[list[Row], dict[str, Duplicate]]:
    """Decide on every measured clip of the chunks ``keys``.

    ``lines`` are the analysed sources (of work/sources.json) that the chunks are made of. Returns the rows with
    ``failed``, ``bucket`` and the caption columns, and the sources that are copies of others by their id; these
    have no rows.
    """
    rows = measured.read_rows(run, keys)
    _check(rows, config)
    quality = _qualities(lines, rows)
    sources = _fingerprinted(run, config, lines, keys, quality)
    matches = Matches(sources, config.duplicates.perceptual) if sources else None
    copies = _copied_sources(run, config, sources, matches, rows)
    rows = [row for row in rows if row["source_id"] not in copies]
    if matches is not None:
        _reject_copies(rows, matches, quality, config)
    if config.duplicates.semantic.enabled:
        _reject_alike(rows, quality, config)
    _caption(run, config, rows)
    for row in rows:
        if row["failed"]:
            row["bucket"] = ""
    return rows, copies


def passing(rows: Sequence[Row]) -> list[Row]:
    """The rows that have failed nothing so far."""
    return [row for row in rows if not row["failed"]]


def _may_be_kept(rows: Sequence[Row], config: CurateConfig) -> list[Row]:
    """Those that pass so far and have a caption, or can do without one or get one: what may stand for a copy."""
    captions = config.captions
    if not captions.require or captions.model is not None or captions.measured:
        return passing(rows)
    return [row for row in passing(rows) if row["caption"] and row["caption_source"] in captions.sources]


def _check(rows: Sequence[Row], config: CurateConfig) -> None:
    for row in rows:
        row["failed"], row["bucket"] = decide(row, config)
        row["duplicate_of"] = ""


def _fingerprinted(
    run: Path,
    config: CurateConfig,
    lines: Sequence[Row],
    keys: Sequence[str],
    quality: dict[str, tuple[float, ...]],
) -> list[FingerprintedSource]:
    """The sources with their fingerprints; none when nobody asks for duplicates."""
    if not config.duplicates.perceptual.enabled:
        return []
    prints = dict(measured.read_prints(run, keys))
    return [
        FingerprintedSource(
            id=line["source_id"],
            seconds=line["facts"]["seconds"],
            is_image=line["facts"]["media_type"] == "image",
            quality=quality[line["source_id"]],
            prints=prints[line["source_id"]],
        )
        for line in lines
    ]


def _copied_sources(
    run: Path,
    config: CurateConfig,
    sources: Sequence[FingerprintedSource],
    matches: Matches | None,
    rows: Sequence[Row],
) -> dict[str, Duplicate]:
    """Find the sources that are copies of better ones, and have models look at the clips of the others.

    A source of which no clip can be kept stands for none: an enlarged, blurred copy must not take a sharp original with
    it, nor one without a caption one that has it. What models reject is known when they have been asked, so it may take
    a few rounds. Sources of which a manifest wants stretches are compared clip by clip alone.
    """
    if matches is None:
        _ask_models(run, config, rows)
        return {}
    overlap = config.duplicates.perceptual.source_overlap
    in_part = {row["source_id"] for row in rows if row["part"] == Reason.OUTSIDE_SPAN.value}
    while True:
        good = {row["source_id"] for row in _may_be_kept(rows, config)}
        found = source_duplicates([source for source in sources if source.id in good - in_part], matches, overlap)
        copies = {copy.id: copy for copy in found}
        _ask_models(run, config, [row for row in rows if row["source_id"] not in copies])
        still_good = {row["source_id"] for row in _may_be_kept(rows, config)}
        if all(copy.of in still_good for copy in found):
            return copies


def _qualities(lines: Sequence[Row], rows: Sequence[Row]) -> dict[str, tuple[float, ...]]:
    """source_id -> what of two copies is kept: more pixels of picture, more frames a second, more bytes."""
    pixels: dict[str, int] = defaultdict(int)
    for row in rows:
        pixels[row["source_id"]] = max(pixels[row["source_id"]], row["content"][2] * row["content"][3])
    rate = {line["source_id"]: line["facts"]["frames"] / max(line["facts"]["seconds"], 1e-3) for line in lines}
    return {
        line["source_id"]: (
            float(pixels[line["source_id"]]),
            0.0 if line["facts"]["media_type"] == "image" else round(rate[line["source_id"]], 3),
            float(line["bytes"]),
        )
        for line in lines
    }


def _ask_models(run: Path, config: CurateConfig, rows: Sequence[Row]) -> None:
    """Fill in what models say of the clips that pass, model by model, and check them again."""
    for model in ("text_area", "safety", "learned", "clip"):
        asked = passing(rows)
        scores = scoring.score(run, model, asked, config)
        if not scores:
            continue
        for row in asked:
            row.update(scores.get(row["clip_id"], {}))
        _check(asked, config)


def _reject_copies(
    rows: Sequence[Row], matches: Matches, quality: dict[str, tuple[float, ...]], config: CurateConfig
) -> None:
    """Clips that a better clip shows frame for frame."""
    settings = config.duplicates.perceptual
    spans = [
        ClipSpan(row["clip_id"], row["source_id"], row["start_s"], row["end_s"], quality[row["source_id"]])
        for row in _may_be_kept(rows, config)
    ]
    values = {copy.id: (copy.of, copy.distance) for copy in clip_duplicates(spans, matches, settings.overlap)}
    _mark(rows, values, Reason.PERCEPTUAL_DUPLICATE, settings.max_distance)


def _reject_alike(rows: Sequence[Row], quality: dict[str, tuple[float, ...]], config: CurateConfig) -> None:
    """Clips that show the same as a better one by their embeddings."""
    settings = config.duplicates.semantic
    clips = _may_be_kept(rows, config)
    found = semantic_duplicates(
        [row["clip_id"] for row in clips],
        np.stack([row["embedding"] for row in clips]) if clips else np.zeros((0, 0), np.float32),
        [quality[row["source_id"]] for row in clips],
        settings.min_cosine,
    )
    values = {copy.id: (copy.of, copy.cosine) for copy in found}
    _mark(rows, values, Reason.SEMANTIC_DUPLICATE, settings.min_cosine)


def _mark(rows: Sequence[Row], found: dict[str, tuple[str, float]], reason: Reason, threshold: float) -> None:
    """Reject the clips of ``found``: clip_id -> the clip that is kept, and the value that says so."""
    for row in rows:
        if row["clip_id"] in found:
            row["duplicate_of"], value = found[row["clip_id"]]
            row["failed"].append(Failed(reason, value, threshold))


def _caption(run: Path, config: CurateConfig, rows: Sequence[Row]) -> None:
    """Give every clip its caption, asking the model only for those that pass and have none before it."""
    given = {row["clip_id"]: {row["caption_source"]: row["caption"]} for row in rows}
    asked = [row for row in passing(rows) if wants_model(given[row["clip_id"]], config.captions)]
    answers = scoring.score(run, "captions", asked, config)
    for row in rows:
        row.update(choose(given[row["clip_id"]], answers.get(row["clip_id"]), row, config.captions))
    captioned = passing(rows)
    matches = scoring.match_captions(run, captioned, config)
    for row in captioned:
        row["caption_match"] = matches.get(row["clip_id"], float("nan"))
        row["failed"].extend(caption_failures(row, config))
