"""The ledger: a row for every file and a row for every stretch of it, which together account for every
second."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kineograph.errors import UserError
from kineograph.media.geometry import Bucket, cover_crop
from kineograph.store.commit import committed
from kineograph.store.schema import CLIP_SCHEMA, SOURCE_SCHEMA, Reason
from pipelines.data import clips as cutting
from pipelines.data.config import CurateConfig
from pipelines.data.decide import Candidate, Rejection, decide
from pipelines.data.encode import used_span
from pipelines.data.signals import Analysis, measure, thumbnail
from pipelines.data.sources import Source, caption_of

Row = dict[str, Any]
ROWS_PER_PART = 20_000


@dataclass(frozen=True)
class Outcome:
    """A source after analysis: what was measured, or why nothing was."""

    source: Source
    source_id: str
    bytes: int
    analysis_s: float
    analysis: Analysis | None
    reason: str = ""
    detail: str = ""


def source_row(outcome: Outcome, duplicate_of: Outcome | None) -> Row:
    """The row of the sources table; ``duplicate_of`` is the source that is kept in its stead."""
    analysis = outcome.analysis
    reason = Reason.EXACT_DUPLICATE.value if duplicate_of and not outcome.reason else outcome.reason
    notes = [outcome.detail or (analysis.warning if analysis else ""), outcome.source.warning]
    if duplicate_of:
        notes.insert(0, f"the same bytes as {duplicate_of.source.uri}")
    return {
        "source_id": outcome.source_id,
        "uri": outcome.source.uri,
        "media_type": analysis.media_type if analysis else "",
        "container": analysis.container if analysis else "",
        "codec": analysis.codec if analysis else "",
        "bytes": outcome.bytes,
        "width": analysis.width if analysis else 0,
        "height": analysis.height if analysis else 0,
        "fps": analysis.fps if analysis else 0.0,
        "frames": analysis.frames if analysis else 0,
        "seconds": analysis.seconds if analysis else 0.0,
        "status": "rejected" if reason else "ok",
        "reason": reason,
        "detail": "; ".join(note for note in notes if note),
        "duplicate_of": duplicate_of.source_id if duplicate_of else "",
        "analysis_s": outcome.analysis_s,
    }


def clip_rows(outcome: Outcome, config: CurateConfig) -> list[Row]:
    """The rows of the clips table for an analysed source: they part it exactly."""
    analysis = outcome.analysis
    assert analysis is not None
    return [_clip_row(outcome, analysis, span, config) for span in cutting.split(analysis, config.cuts, config.clips)]


def _clip_row(outcome: Outcome, analysis: Analysis, span: cutting.Span, config: CurateConfig) -> Row:
    start_s, end_s = float(analysis.times[span.start]), float(analysis.times[span.end])
    signals = measure(analysis, span.start, span.end, config.filters)
    caption = caption_of(outcome.source.captions, start_s, end_s)
    decision = decide(
        Candidate(analysis.is_image, analysis.width, analysis.height, end_s - start_s, signals, caption),
        config,
    )
    bucket, used = decision.bucket, 0.0
    if bucket is not None and not bucket.is_image:
        begin, end = used_span(start_s, end_s, bucket, config.buckets.fps)
        used = end - begin
    row = {
        "clip_id": cutting.clip_id(outcome.source_id, span),
        "source_id": outcome.source_id,
        "uri": outcome.source.uri,
        "media_type": analysis.media_type,
        "shot": span.shot,
        "start_s": start_s,
        "end_s": end_s,
        "start_frame": span.start,
        "end_frame": span.end,
        "crop": list(_crop(analysis, bucket)),
        "width": analysis.width,
        "height": analysis.height,
        "fps": analysis.fps,
        "luma": signals.luma,
        "black": signals.black,
        "static": signals.static,
        "motion": signals.motion,
        "caption": caption,
        "caption_source": "sidecar" if caption else "",
        "decision": "keep",
        "reason": "",
        "value": float("nan"),
        "threshold": float("nan"),
        "duplicate_of": "",
        "bucket": bucket.name if bucket else "",
        "used_s": used,
        "thumbnail": thumbnail(analysis, span.start, span.end),
    }
    return reject(row, decision.rejection) if decision.rejection else row


def _crop(analysis: Analysis, bucket: Bucket | None) -> tuple[int, int, int, int]:
    """Of a kept clip what the bucket shows, of a rejected one the whole frame."""
    whole = (0, 0, analysis.width, analysis.height)
    return cover_crop(analysis.width, analysis.height, bucket) if bucket else whole


def reject(row: Row, rejection: Rejection) -> Row:
    """``row`` as a rejected one."""
    return {
        **row,
        "decision": "reject",
        "reason": rejection.reason.value,
        "value": float(rejection.value),
        "threshold": float(rejection.threshold),
        "crop": [0, 0, row["width"], row["height"]],
        "bucket": "",
        "used_s": 0.0,
    }


def find_duplicates(outcomes: Iterable[Outcome]) -> dict[str, Outcome]:
    """uri -> the source with the same bytes that stands for it: the first by uri of each group."""
    first: dict[str, Outcome] = {}
    duplicates = {}
    for outcome in sorted(outcomes, key=lambda o: o.source.uri):
        kept = first.setdefault(outcome.source_id, outcome)
        if kept is not outcome:
            duplicates[outcome.source.uri] = kept
    return duplicates


def totals(sources: list[Row], clips: list[Row]) -> dict[str, Any]:
    """Counts and seconds by fate. Asserts that what is kept, unused and rejected adds up to the input."""
    kept = [clip for clip in clips if clip["decision"] == "keep"]
    rejected: dict[str, float] = defaultdict(float)
    for clip in clips:
        if clip["reason"]:
            rejected[clip["reason"]] += clip["end_s"] - clip["start_s"]
    for source in sources:
        if source["reason"]:
            rejected[source["reason"]] += source["seconds"]
    seconds = {
        "input": sum(source["seconds"] for source in sources),
        "kept": sum(clip["used_s"] for clip in kept),
        "unused": sum(clip["end_s"] - clip["start_s"] - clip["used_s"] for clip in kept),
        "rejected": dict(sorted(rejected.items())),
    }
    accounted = seconds["kept"] + seconds["unused"] + sum(rejected.values())
    assert abs(accounted - seconds["input"]) <= 1e-6 * max(1.0, seconds["input"]), (
        accounted,
        seconds["input"],
    )
    return {
        "sources": len(sources),
        "sources_ok": sum(source["status"] == "ok" for source in sources),
        "sources_rejected": dict(sorted(Counter(s["reason"] for s in sources if s["reason"]).items())),
        "frames": sum(source["frames"] for source in sources),
        "clips": len(clips),
        "clips_kept": len(kept),
        "clips_rejected": dict(sorted(Counter(c["reason"] for c in clips if c["reason"]).items())),
        "buckets": dict(sorted(Counter(clip["bucket"] for clip in kept).items())),
        "seconds": {k: _rounded(v) for k, v in seconds.items()},
    }


def _rounded(value: Any) -> Any:
    return {k: _rounded(v) for k, v in value.items()} if isinstance(value, dict) else round(value, 6)


def write_ledger(run: Path, sources: list[Row], clips: list[Row]) -> None:
    """Commit both tables as parts, and remove the parts of an earlier, longer ledger."""
    _write_table(run / "sources", sources, SOURCE_SCHEMA)
    _write_table(run / "clips", clips, CLIP_SCHEMA)


def _write_table(folder: Path, rows: list[Row], schema: pa.Schema) -> None:
    names = set()
    for number, start in enumerate(range(0, max(1, len(rows)), ROWS_PER_PART)):
        path = folder / f"part-{number:05d}.parquet"
        names.add(path.name)
        with committed(path) as temp:
            pq.write_table(pa.Table.from_pylist(rows[start : start + ROWS_PER_PART], schema=schema), temp)
    for path in folder.glob("part-*.parquet"):
        if path.name not in names:
            path.unlink()


def read_ledger(run: str | Path) -> tuple[list[Row], list[Row]]:
    """The rows of sources and clips. Raises UserError when ``run`` has no ledger."""
    run = Path(run)
    try:
        # partitioning=None: "bucket=…" in a path above the run must not become a column.
        tables = [pq.read_table(run / name, partitioning=None) for name in ("sources", "clips")]
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{run} has no ledger: make one with 'kineo data run RECIPE --input DIR --out {run}'"
        ) from error
    return tables[0].to_pylist(), tables[1].to_pylist()
