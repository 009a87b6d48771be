"""The report of a curation run: one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
from collections import defaultdict
from pathlib import Path
from typing import Any

import jinja2

from kineograph.media.geometry import Bucket
from kineograph.progress import duration
from kineograph.store.commit import write_text
from kineograph.store.schema import Reason
from pipelines.data.ledger import Row

REPORT_NAME = "report.html"
EXAMPLES_PER_REASON = 8
MOST_FAILED_SHOWN = 50
SLOWEST_SHOWN = 5

# What each reason means to a reader, and the unit of its value.
MEANING = {
    Reason.NOT_MEDIA: ("no allowed video or image format", ""),
    Reason.CORRUPT: ("opened, but nothing could be decoded", ""),
    Reason.UNREADABLE: ("the file could not be read", ""),
    Reason.TOO_LARGE: ("past the limits on bytes, pixels, seconds or streams", ""),
    Reason.TIMEOUT: ("analysis took too long and was stopped", ""),
    Reason.CRASHED: ("the decoder died on it", ""),
    Reason.EXACT_DUPLICATE: ("the same bytes as a source that is kept", ""),
    Reason.DURATION: ("shorter than the least length of a clip", "s"),
    Reason.RESOLUTION: ("too few pixels on the short side", "px"),
    Reason.BLACK: ("too large a share of black frames", ""),
    Reason.STATIC: ("too large a share of frames that repeat the one before", ""),
    Reason.MOTION_LOW: ("too little motion", "diagonals/s"),
    Reason.MOTION_HIGH: ("too much motion", "diagonals/s"),
    Reason.NO_CAPTION: ("no caption, and the recipe asks for one", ""),
    Reason.NO_BUCKET: ("too short or too small for every bucket", ""),
    Reason.ENCODE_FAILED: ("could not be decoded again when it was to be written", ""),
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


def bucket_plan(clips: list[Row]) -> list[Row]:
    """Per bucket, sorted: clips, seconds used, share of the kept clips."""
    kept = [clip for clip in clips if clip["decision"] == "keep"]
    of_bucket: dict[str, list[Row]] = defaultdict(list)
    for clip in kept:
        of_bucket[clip["bucket"]].append(clip)
    return [
        {
            "bucket": name,
            "clips": len(rows),
            "seconds": round(sum(row["used_s"] for row in rows), 3),
            "share": len(rows) / len(kept),
        }
        for name, rows in sorted(of_bucket.items(), key=lambda item: Bucket.parse(item[0]))
    ]


def lost(sources: list[Row], clips: list[Row]) -> list[Row]:
    """Per reason, most seconds first: sources, clips and seconds that it cost."""
    reasons: dict[str, Row] = {}
    for kind, rows in (("sources", sources), ("clips", clips)):
        for row in rows:
            if row["reason"]:
                entry = reasons.setdefault(
                    row["reason"], {"reason": row["reason"], "sources": 0, "clips": 0, "seconds": 0.0}
                )
                entry[kind] += 1
                entry["seconds"] += row["seconds"] if kind == "sources" else row["end_s"] - row["start_s"]
    return sorted(reasons.values(), key=lambda r: (-r["seconds"], r["reason"]))


def write_report(run: Path, summary: Row, sources: list[Row], clips: list[Row]) -> Path:
    """Commit RUN/report.html from the ledger's rows; returns its path."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(time=_time, number=lambda n: f"{n:,}", measure=_measure)
    page = environment.get_template("report.html").render(**_facts(summary, sources, clips))
    write_text(run / REPORT_NAME, page)
    return run / REPORT_NAME


def _facts(summary: Row, sources: list[Row], clips: list[Row]) -> Row:
    totals = summary["totals"]
    kept = [clip for clip in clips if clip["decision"] == "keep"]
    examples: dict[str, list[Row]] = defaultdict(list)
    for clip in clips:
        if clip["reason"] and clip["thumbnail"] and len(examples[clip["reason"]]) < EXAMPLES_PER_REASON:
            examples[clip["reason"]].append(_example(clip))
    failed = [row for row in sources if row["reason"]]
    analysis_s = sum(row["analysis_s"] for row in sources)
    return {
        "run": summary["run"],
        "digest": summary["digest"],
        "wall_s": summary["wall_s"],
        "totals": totals,
        "seconds": totals["seconds"],
        "fates": _fates(totals["seconds"]),
        "funnel": _funnel(totals, clips),
        "kept_examples": [_example(clip) for clip in _spread([c for c in kept if c["thumbnail"]], 12)],
        "reasons": [
            {**entry, "meaning": MEANING[Reason(entry["reason"])][0], "examples": examples[entry["reason"]]}
            for entry in lost(sources, clips)
        ],
        "buckets": bucket_plan(clips),
        "failed": failed[:MOST_FAILED_SHOWN],
        "failed_more": max(0, len(failed) - MOST_FAILED_SHOWN),
        "warned": [row for row in sources if not row["reason"] and row["detail"]][:MOST_FAILED_SHOWN],
        "analysis_s": analysis_s,
        "speed": totals["seconds"]["input"] / analysis_s if analysis_s else 0.0,
        "slowest": sorted(sources, key=lambda row: -row["analysis_s"])[:SLOWEST_SHOWN],
    }


def _fates(seconds: Row) -> list[Row]:
    """The bar of seconds: (name, seconds, share) of kept, unused and rejected."""
    parts = {
        "kept": seconds["kept"],
        "unused": seconds["unused"],
        "rejected": sum(seconds["rejected"].values()),
    }
    whole = sum(parts.values())
    return [{"name": name, "seconds": s, "share": s / whole if whole else 0.0} for name, s in parts.items()]


def _funnel(totals: Row, clips: list[Row]) -> list[Row]:
    """Clips left after each check, in the order of the checks, in clips and seconds."""
    left, seconds = len(clips), sum(clip["end_s"] - clip["start_s"] for clip in clips)
    steps = [{"name": "cut from sources", "clips": left, "seconds": seconds}]
    for reason in Reason:
        if count := totals["clips_rejected"].get(reason.value):
            left -= count
            seconds -= sum(c["end_s"] - c["start_s"] for c in clips if c["reason"] == reason.value)
            steps.append({"name": f"after {reason.value}", "clips": left, "seconds": max(0.0, seconds)})
    most = max(1, len(clips))
    return [{**step, "share": step["clips"] / most} for step in steps]


def _spread(rows: list[Row], count: int) -> list[Row]:
    """``count`` of ``rows`` at equal distances."""
    if len(rows) <= count:
        return rows
    return [rows[i * len(rows) // count] for i in range(count)]


def _example(clip: Row) -> Row:
    unit = MEANING[Reason(clip["reason"])][1] if clip["reason"] else ""
    return {
        "image": "data:image/jpeg;base64," + base64.b64encode(clip["thumbnail"]).decode(),
        "uri": clip["uri"],
        "start_s": clip["start_s"],
        "end_s": clip["end_s"],
        "caption": clip["caption"],
        "bucket": clip["bucket"],
        "value": clip["value"],
        "threshold": clip["threshold"],
        "unit": unit,
        "measured": bool(unit) or clip["reason"] in (Reason.BLACK.value, Reason.STATIC.value, Reason.NO_BUCKET.value),
    }


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)


def _measure(value: Any) -> str:
    return f"{value:.3g}"
