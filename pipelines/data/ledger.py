"""The ledger: a row for every file and a row for every stretch of it, which together account for every
second."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from kineograph.errors import UserError
from kineograph.media.geometry import Bucket
from kineograph.store.commit import committed
from kineograph.store.schema import CLIP_SCHEMA, SOURCE_SCHEMA, Reason
from pipelines.data.config import CurateConfig
from pipelines.data.decide import Failed
from pipelines.data.duplicates.perceptual import Duplicate
from pipelines.data.encode import crop_for, used_span

Row = dict[str, Any]
ROWS_PER_PART = 20_000


def exact_duplicates(lines: Sequence[Row]) -> dict[str, Row]:
    """uri -> the line of the source with the same bytes that stands for it: of each group one that has a caption, and of
    those one that is wanted whole, the first by uri."""
    first: dict[str, Row] = {}
    duplicates = {}

    def worth(line: Row) -> tuple[bool, bool, str]:
        source = line["source"]
        return not source.get("captions"), bool(source.get("spans")), source["uri"]

    for line in sorted(lines, key=worth):
        kept = first.setdefault(line["source_id"], line)
        if kept is not line:
            duplicates[line["source"]["uri"]] = kept
    return duplicates


def source_row(line: Row, same_bytes: Row | None, copy: Duplicate | None, uris: dict[str, str]) -> Row:
    """The row of the sources table for a line of work/sources.json.

    Args:
        same_bytes: the line of the source that is kept in its stead, if there is one of equal bytes.
        copy: what it looks the same as, if there is such.
        uris: source_id -> uri.
    """
    facts, reason, detail = line["facts"] or {}, line["reason"], line["detail"]
    notes = [detail or facts.get("warning", ""), line["source"]["warning"]]
    duplicate_of = ""
    if same_bytes and not reason:
        reason, duplicate_of = Reason.EXACT_DUPLICATE.value, same_bytes["source_id"]
        notes.insert(0, f"the same bytes as {same_bytes['source']['uri']}")
    elif copy and not reason:
        reason, duplicate_of = Reason.PERCEPTUAL_DUPLICATE.value, copy.of
        notes.insert(0, f"looks the same as {uris[copy.of]} (distance {copy.distance:.2g})")
    seconds = facts.get("seconds", 0.0)
    return {
        "source_id": line["source_id"],
        "uri": line["source"]["uri"],
        **{name: facts.get(name, "") for name in ("media_type", "container", "codec")},
        "bytes": line["bytes"],
        **{name: facts.get(name, 0) for name in ("width", "height", "frames")},
        "fps": facts["frames"] / seconds if seconds else 0.0,
        "seconds": seconds,
        "status": "rejected" if reason else "ok",
        "reason": reason,
        "detail": "; ".join(note for note in notes if note),
        "duplicate_of": duplicate_of,
        "labels": json.dumps(line["source"].get("labels") or {}, sort_keys=True),
        "analysis_s": line["analysis_s"],
        "encode_s": 0.0 if duplicate_of else line["encode_s"],
    }


def clip_row(row: Row, config: CurateConfig) -> Row:
    """The row of the clips table, without its thumbnail, for a decided row of :mod:`pipelines.data.selection`."""
    failed: list[Failed] = row["failed"]
    used, crop = 0.0, row["content"]
    if not failed:
        bucket = Bucket.parse(row["bucket"])
        crop = list(crop_for(row["content"], row["bucket"]))
        if not bucket.is_image:
            begin, end = used_span(row["start_s"], row["end_s"], bucket, config.buckets.fps)
            used = end - begin
    values = {name: row[name] for name in CLIP_SCHEMA.names if name in row}
    return {
        **values,
        "crop": crop,
        "decision": "reject" if failed else "keep",
        "reason": failed[0].reason.value if failed else "",
        "failed": list(dict.fromkeys(one.reason.value for one in failed)),
        "value": float(failed[0].value) if failed else float("nan"),
        "threshold": float(failed[0].threshold) if failed else float("nan"),
        "used_s": used,
    }


def totals(sources: Sequence[Row], clips: Sequence[Row]) -> dict[str, Any]:
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


def write_ledger(run: Path, sources: Sequence[Row], clips: Sequence[Row], thumbnails: dict[str, bytes]) -> None:
    """Commit both tables as parts, and remove the parts of an earlier, longer ledger.

    ``thumbnails``: clip_id -> JPEG.
    """
    _write_table(run / "sources", sources, SOURCE_SCHEMA)
    pictured = ({**clip, "thumbnail": thumbnails.get(clip["clip_id"], b"")} for clip in clips)
    _write_table(run / "clips", pictured, CLIP_SCHEMA)


def _write_table(folder: Path, rows: Sequence[Row] | Iterator[Row], schema: pa.Schema) -> None:
    names: set[str] = set()
    rows = iter(rows)
    while True:
        part = [row for _, row in zip(range(ROWS_PER_PART), rows, strict=False)]
        if not part and names:
            break
        path = folder / f"part-{len(names):05d}.parquet"
        names.add(path.name)
        with committed(path) as temp:
            pq.write_table(pa.Table.from_pylist(part, schema=schema), temp)
    for path in folder.glob("part-*.parquet"):
        if path.name not in names:
            path.unlink()


def read_ledger(run: str | Path) -> tuple[list[Row], list[Row]]:
    """The rows of sources and clips, without thumbnails. Raises UserError when ``run`` has no ledger."""
    run = Path(run)
    columns = [name for name in CLIP_SCHEMA.names if name != "thumbnail"]
    try:
        # partitioning=None: "bucket=…" in a path above the run must not become a column.
        sources = pq.read_table(run / "sources", partitioning=None)
        clips = pq.read_table(run / "clips", partitioning=None, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{run} has no ledger: make one with 'kineo data run RECIPE --input DIR --out {run}'"
        ) from error
    return sources.to_pylist(), clips.to_pylist()


def read_thumbnails(run: Path, clips: Sequence[Row]) -> list[bytes]:
    """The JPEG of each of ``clips``, from the ledger of ``run``."""
    wanted = [clip["clip_id"] for clip in clips]
    files = sorted(str(path) for path in (run / "clips").glob("part-*.parquet"))
    table = pads.dataset(files, schema=CLIP_SCHEMA).to_table(
        columns=["clip_id", "thumbnail"], filter=pads.field("clip_id").isin(wanted)
    )
    found = dict(zip(table["clip_id"].to_pylist(), table["thumbnail"].to_pylist(), strict=True))
    return [found.get(clip_id, b"") for clip_id in wanted]
