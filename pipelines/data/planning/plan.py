"""What a run holds for training, bucket by bucket; what is lost and why; and what other buckets would make of it.

All from the ledger: nothing is decoded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kineograph.errors import UserError
from kineograph.media.geometry import Bucket, assign, kept_fraction, why_nowhere
from kineograph.store.schema import Reason
from pipelines.data import ledger, state
from pipelines.data.planning.buckets import Buckets, override_buckets
from pipelines.data.planning.plan_text import plan_text
from pipelines.data.planning.trainer_memory import TrainerModel

__all__ = [
    "CLIP_COLUMNS",
    "SOURCE_COLUMNS",
    "bucket_plan",
    "lost",
    "parse_bytes",
    "plan_facts",
    "plan_of",
    "plan_text",
    "reassign",
]

Row = dict[str, Any]

# What of the ledger a plan is made from.
SOURCE_COLUMNS = ("reason", "seconds")
CLIP_COLUMNS = (
    "media_type",
    "start_s",
    "end_s",
    "content",
    "decision",
    "reason",
    "failed",
    "value",
    "threshold",
    "bucket",
    "used_s",
)

_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def plan_facts(
    run: str | Path,
    what_if: Sequence[str] = (),
    memory_bytes: int | None = None,
    trainer: TrainerModel | None = None,
) -> Row:
    """The plan of ``run``, and beside it that with ``what_if`` overrides of its buckets (``buckets.areas=[…]``).

    With ``memory_bytes``, the memory of a GPU, also an estimate of the clips of each bucket that fit it. Raises
    UserError without a run or ledger, or on a wrong override.
    """
    buckets = state.load_config(Path(run)).buckets
    other = override_buckets(buckets, what_if) if what_if else None
    sources, clips = ledger.read_ledger(run)
    return {"run": str(run), **plan_of(sources, clips, buckets, other, memory_bytes, trainer or TrainerModel())}


def plan_of(
    sources: list[Row],
    clips: list[Row],
    buckets: Buckets,
    what_if: Buckets | None = None,
    memory_bytes: int | None = None,
    trainer: TrainerModel | None = None,
) -> Row:
    """The same of the ledger's rows (SOURCE_COLUMNS and CLIP_COLUMNS of them)."""
    trainer = trainer or TrainerModel()
    facts: Row = {
        **_part(clips, buckets, memory_bytes, trainer),
        "lost": lost(sources, clips),
        "seconds": _seconds(sources, clips),
        "memory": _memory(memory_bytes, trainer),
        "what_if": None,
    }
    if what_if is not None:
        then = reassign(clips, what_if)
        facts["what_if"] = {
            **_part(then, what_if, memory_bytes, trainer),
            "config": what_if.model_dump(mode="json"),
            **_change(clips, then),
        }
    return facts


def bucket_plan(clips: Iterable[Row], spatial_stride: int = 16, temporal_stride: int = 4) -> list[Row]:
    """Per bucket, sorted: kept clips, the seconds used of them, tokens, the bucket's share of clips and of tokens, and
    the mean share of the picture (``cropped``) and of the time (``cut``) that a clip loses in it.

    The strides are pixels a token and frames a latent, as of :class:`Buckets`.
    """
    of_bucket: dict[str, list[Row]] = defaultdict(list)
    for clip in clips:
        if clip["decision"] == "keep":
            of_bucket[clip["bucket"]].append(clip)
    named = sorted((Bucket.parse(name), rows) for name, rows in of_bucket.items())
    tokens = {bucket: bucket.tokens(spatial_stride, temporal_stride) for bucket, _ in named}
    all_clips = sum(len(rows) for _, rows in named)
    all_tokens = sum(tokens[bucket] * len(rows) for bucket, rows in named)
    return [
        {
            "bucket": bucket.name,
            "clips": len(rows),
            "seconds": round(sum(row["used_s"] for row in rows), 3),
            "hours": sum(row["used_s"] for row in rows) / 3600,
            "share": len(rows) / all_clips,
            "tokens_per_clip": tokens[bucket],
            "tokens": tokens[bucket] * len(rows),
            "token_share": tokens[bucket] * len(rows) / all_tokens,
            "cropped": _mean(1 - kept_fraction(row["content"][2], row["content"][3], bucket) for row in rows),
            "cut": 0.0 if bucket.is_image else _mean(1 - row["used_s"] / _length(row) for row in rows),
        }
        for bucket, rows in named
    ]


def lost(sources: Iterable[Row], clips: Iterable[Row]) -> list[Row]:
    """Per reason, most seconds first: the sources, clips and seconds that it cost, its share of all seconds, and the
    clips and seconds that fail nothing else (``alone``): they come back when the check is dropped."""
    reasons: dict[str, Row] = {}
    everything = 0.0
    for kind, rows in (("sources", sources), ("clips", clips)):
        for row in rows:
            seconds = row["seconds"] if kind == "sources" else _length(row)
            # A source that is analysed is its clips.
            everything += seconds if kind == "clips" or row["reason"] else 0.0
            if not row["reason"]:
                continue
            entry = reasons.setdefault(row["reason"], _nothing_lost(row["reason"]))
            entry[kind] += 1
            entry["seconds"] += seconds
            if kind == "clips" and row["failed"] == [row["reason"]]:
                entry["alone"] += 1
                entry["alone_seconds"] += seconds
    for entry in reasons.values():
        entry["share"] = entry["seconds"] / everything if everything else 0.0
    return sorted(reasons.values(), key=lambda r: (-r["seconds"], r["reason"]))


def reassign(clips: Iterable[Row], buckets: Buckets) -> list[Row]:
    """The clips as they would be decided with ``buckets``: those that are kept, and those that fail nothing but
    ``no_bucket``, go to their best bucket or fail ``no_bucket``; the others stay as they are."""
    sizes, fps = buckets.parsed, buckets.fps
    return [_assigned(clip, sizes, fps) if _hangs_on_buckets(clip) else clip for clip in clips]


def parse_bytes(text: str) -> int:
    """Bytes of ``80GiB``, ``24G`` (both of 1024³) or ``80GB`` (of 1000³). Raises UserError."""
    lower = text.strip().lower()
    number = lower.rstrip("bikmgt ")
    unit = lower[len(number) :].strip()
    base = 1000 if len(unit) == 2 and unit[1] == "b" else 1024
    power = _UNITS.get(unit.removesuffix("b").removesuffix("i"))
    try:
        value = float(number) * base**power if power is not None else 0.0
    except ValueError:
        value = 0.0
    if not 0 < value < 2**63:
        raise UserError(f"{text!r} is no amount of memory: write it as 80GiB")
    return round(value)


def _part(clips: list[Row], buckets: Buckets, memory_bytes: int | None, trainer: TrainerModel) -> Row:
    """Buckets, totals, and the names of buckets that no clip goes to."""
    rows = bucket_plan(clips, buckets.spatial_stride, buckets.temporal_stride)
    if memory_bytes is not None:
        rows = [{**row, "batch": trainer.batch(row["tokens_per_clip"], memory_bytes)} for row in rows]
    count = sum(row["clips"] for row in rows)
    used = {row["bucket"] for row in rows}
    nowhere = [clip for clip in clips if clip["reason"] == Reason.NO_BUCKET.value]
    totals = {
        "buckets": len(buckets.parsed),
        **{key: sum(row[key] for row in rows) for key in ("clips", "seconds", "hours", "tokens")},
        **{key: sum(r[key] * r["clips"] for r in rows) / count if count else 0.0 for key in ("cropped", "cut")},
        "no_bucket_clips": len(nowhere),
        "no_bucket_seconds": sum(map(_length, nowhere)),
    }
    return {
        "buckets": rows,
        "totals": totals,
        "empty": [bucket.name for bucket in buckets.parsed if bucket.name not in used],
    }


def _change(now: list[Row], then: list[Row]) -> Row:
    """How many clips come in, fall out, and change their bucket."""
    pairs = [(a["decision"] == "keep", b["decision"] == "keep", a, b) for a, b in zip(now, then, strict=True)]
    return {
        "gained": sum(not was and stays for was, stays, _, _ in pairs),
        "dropped": sum(was and not stays for was, stays, _, _ in pairs),
        "moved": sum(was and stays and a["bucket"] != b["bucket"] for was, stays, a, b in pairs),
    }


def _memory(memory_bytes: int | None, trainer: TrainerModel) -> Row | None:
    if memory_bytes is None:
        return None
    return {
        "bytes": memory_bytes,
        "parameters": trainer.parameters,
        "state_bytes": trainer.state_bytes,
        "trainer": trainer.model_dump(mode="json"),
    }


def _seconds(sources: list[Row], clips: list[Row]) -> Row:
    """Input, kept, unused (of kept clips, beyond their bucket's length) and rejected seconds."""
    kept = [clip for clip in clips if clip["decision"] == "keep"]
    used = sum(clip["used_s"] for clip in kept)
    return {
        "input": sum(source["seconds"] for source in sources),
        "kept": used,
        "unused": sum(map(_length, kept)) - used,
        "rejected": sum(source["seconds"] for source in sources if source["reason"])
        + sum(_length(clip) for clip in clips if clip["reason"]),
    }


def _hangs_on_buckets(clip: Row) -> bool:
    return clip["decision"] == "keep" or clip["failed"] == [Reason.NO_BUCKET.value]


def _assigned(clip: Row, sizes: list[Bucket], fps: float) -> Row:
    _, _, width, height = clip["content"]
    seconds, is_image = _length(clip), clip["media_type"] == "image"
    bucket = assign(width, height, seconds, is_image, sizes, fps)
    if bucket is not None:
        kept = {"decision": "keep", "reason": "", "failed": [], "bucket": bucket.name}
        return {**clip, **kept, "used_s": min(bucket.seconds(fps), seconds)}
    value, threshold = why_nowhere(width, height, seconds, is_image, sizes, fps)
    reason = Reason.NO_BUCKET.value
    rejected = {"decision": "reject", "reason": reason, "failed": [reason], "bucket": "", "used_s": 0.0}
    return {**clip, **rejected, "value": value, "threshold": threshold}


def _nothing_lost(reason: str) -> Row:
    return {"reason": reason, "sources": 0, "clips": 0, "seconds": 0.0, "alone": 0, "alone_seconds": 0.0}


def _length(clip: Row) -> float:
    return float(clip["end_s"] - clip["start_s"])


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0
