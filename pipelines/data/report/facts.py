"""Everything that the page says, from the ledger's rows."""

from __future__ import annotations

import numpy as np

from kineograph.media.geometry import Bucket
from kineograph.store.schema import Reason
from pipelines.data.planning.plan import bucket_plan
from pipelines.data.report.columns import Clips
from pipelines.data.report.duplicates import duplicate_facts
from pipelines.data.report.pictures import Album, spread
from pipelines.data.report.signals import signal_charts
from pipelines.data.report.sizes import sizes_chart
from pipelines.data.report.tables import caption_facts, funnel, reason_facts, time_facts
from pipelines.data.report.words import MEANING, Row, plural, shortened, time

KEPT_SHOWN = 16
MOST_SOURCES_SHOWN = 50
# They have a section of their own, and would push the broken files off the list.
DUPLICATES = (Reason.EXACT_DUPLICATE.value, Reason.PERCEPTUAL_DUPLICATE.value)


def page_facts(
    summary: Row, sources: list[Row], clips: Clips, filters: Row | None, stages: list[Row] | None
) -> tuple[Row, Album]:
    """The template's variables, and the album with the pictures that they ask for."""
    totals, album = summary["totals"], Album()
    seconds = totals["seconds"]
    buckets = bucket_plan(list(clips.rows))
    failed = [row for row in sources if row["reason"] and row["reason"] not in DUPLICATES]
    warned = [row for row in sources if not row["reason"] and row["detail"]]
    seen = {row["reason"] for row in (*sources, *clips.rows)}
    facts = {
        "run": summary["run"],
        "digest": summary["digest"],
        "wall_s": summary["wall_s"],
        "totals": totals,
        "seconds": seconds,
        "sentence": _sentence(summary, buckets),
        "fates": _fates(seconds),
        "funnel": funnel(clips, totals),
        "signals": signal_charts(clips, filters),
        "reasons": reason_facts(sources, clips, album, seconds["input"]),
        "unseen": [
            {"reason": reason.value, "meaning": MEANING[reason].text} for reason in Reason if reason.value not in seen
        ],
        "kept": [album.show(clips.rows[i], 1) for i in spread(np.flatnonzero(clips.kept), KEPT_SHOWN)],
        "buckets": buckets,
        "sizes_chart": sizes_chart(clips, [Bucket.parse(row["bucket"]) for row in buckets]),
        "duplicates": duplicate_facts(sources, clips, album),
        "captions": caption_facts(clips, album),
        "time": time_facts(sources, stages, seconds["input"], summary["wall_s"]),
        "failed": [_source(row) for row in failed[:MOST_SOURCES_SHOWN]],
        "failed_count": len(failed),
        "warned": [_source(row) for row in warned[:MOST_SOURCES_SHOWN]],
        "warned_count": len(warned),
    }
    return facts, album


def _sentence(summary: Row, buckets: list[Row]) -> str:
    """The run in one sentence."""
    totals = summary["totals"]
    seconds = totals["seconds"]
    given = f"{plural(totals['sources'], 'source')} with {time(seconds['input'])} of video"
    if not totals["clips_kept"]:
        return f"Of {given}, nothing was kept."
    clips = f"{plural(totals['clips_kept'], 'clip')} of {totals['clips']:,} kept"
    return f"Of {given}: {clips}, {time(seconds['kept'])} written in {plural(len(buckets), 'bucket')}" + (
        f", in {time(summary['wall_s'])}." if summary["wall_s"] is not None else "."
    )


def _fates(seconds: Row) -> list[Row]:
    """The bar of seconds: (name, seconds, share) of kept, unused and rejected."""
    parts = (
        ("kept", "kept", seconds["kept"]),
        ("unused", "beyond the bucket's length", seconds["unused"]),
        ("rejected", "rejected", sum(seconds["rejected"].values())),
    )
    whole = sum(part[2] for part in parts)
    return [{"kind": k, "name": n, "seconds": s, "share": s / whole if whole else 0.0} for k, n, s in parts]


def _source(row: Row) -> Row:
    return {"uri": shortened(row["uri"]), "reason": row["reason"], "detail": shortened(row["detail"] or "")}
