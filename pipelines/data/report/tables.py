"""The tables of the report: the funnel, what each reason cost, buckets, captions, time."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np

from kineograph.store.schema import Reason
from pipelines.data.planning.plan import lost
from pipelines.data.report.columns import INDEX, Clips
from pipelines.data.report.pictures import Album, by_distance, spread
from pipelines.data.report.words import CAPTION_SOURCES, MEANING, Row, shortened, time_unit

EXAMPLES_PER_REASON = 8
CAPTIONS_SHOWN = 3
SLOWEST_SHOWN = 8


def funnel(clips: Clips, totals: Row) -> Row:
    """What is left after each check, in the order of the checks, in clips and in time.

    ``share`` and ``lost_share`` are of what was there at first: the parts of a bar.
    """
    input_s, clip_s = float(totals["seconds"]["input"]), float(clips.seconds.sum())
    size, name = time_unit(input_s)
    steps = [_step("sources", "sources given", totals["sources"], 0, input_s, 0.0)]
    if totals["sources_rejected"]:
        lost_sources = sum(totals["sources_rejected"].values())
        steps.append(_step("sources", "sources usable", totals["sources_ok"], lost_sources, clip_s, input_s - clip_s))
    left, seconds = len(clips), clip_s
    steps.append(_step("clips", "clips cut", left, 0, seconds, 0.0))
    for reason in Reason:
        rows = clips.rejected_by(reason)
        if len(rows):
            gone = float(clips.seconds[rows].sum())
            left, seconds = left - len(rows), max(0.0, seconds - gone)
            steps.append(_step("check", reason.value, left, len(rows), seconds, gone))
    used = float(totals["seconds"]["kept"])
    if clips.kept.any():
        steps.append(_step("end", "beyond bucket's length", left, 0, used, max(0.0, seconds - used)))
    for step in steps:
        step["share"], step["lost_share"] = ((step[key] or 0) / max(1, len(clips)) for key in ("clips", "lost_clips"))
        step["time_share"], step["lost_time_share"] = (
            step[key] / max(input_s, 1e-9) for key in ("seconds", "lost_seconds")
        )
    idle = [reason.value for reason in Reason if INDEX[reason.value] >= INDEX[Reason.OUTSIDE_SPAN.value]]
    found = {step["name"] for step in steps}
    return {"steps": steps, "unit": name, "unit_s": size, "idle": [name for name in idle if name not in found]}


def _step(kind: str, name: str, left: int, lost: int, seconds: float, lost_s: float) -> Row:
    """``kind`` is sources | clips | check | end; ``left`` and ``lost`` count sources in the first of them."""
    of_sources = kind == "sources"
    return {
        "kind": kind,
        "name": name,
        "sources": left if of_sources else None,
        "clips": None if of_sources else left,
        "lost_sources": lost if of_sources else 0,
        "lost_clips": 0 if of_sources else lost,
        "seconds": seconds,
        "lost_seconds": lost_s,
    }


def reason_facts(sources: list[Row], clips: Clips, album: Album, input_s: float) -> list[Row]:
    """Per reason, most seconds first: meaning, costs, and clips from the nearest to the threshold to the farthest."""
    one = clips.fails.sum(axis=1) == 1
    facts = []
    for entry in lost(sources, list(clips.rows)):
        reason = Reason(entry["reason"])
        rows = clips.rejected_by(reason)
        chosen = spread(by_distance(rows, clips.value, clips.threshold), EXAMPLES_PER_REASON)
        fails = clips.fails[:, INDEX[reason.value]]
        facts.append(
            {
                **entry,
                "meaning": MEANING[reason].text,
                "share": entry["seconds"] / input_s if input_s else 0.0,
                "fails": int(fails.sum()),
                "alone": int((fails & one).sum()),
                "examples": [album.show(clips.rows[i], rank) for rank, i in enumerate(chosen)],
            }
        )
    return facts


def caption_facts(clips: Clips, album: Album) -> list[Row]:
    """Per origin of the caption, most clips first: clips, share, words, models, examples. Of the kept clips, or
    of all when none is kept."""
    indices = np.flatnonzero(clips.kept) if clips.kept.any() else np.arange(len(clips))
    origins: dict[str, list[int]] = defaultdict(list)
    for index in indices.tolist():
        origins[clips.rows[index].get("caption_source") or ""].append(index)
    return [
        {
            "source": origin or "none",
            "meaning": CAPTION_SOURCES.get(origin, ""),
            "clips": len(rows),
            "share": len(rows) / len(indices),
            "words": float(np.median([len((clips.rows[i]["caption"] or "").split()) for i in rows])),
            "models": [
                {"name": shortened(name, 80), "clips": count}
                for name, count in Counter(clips.rows[i].get("caption_model") or "" for i in rows).most_common(4)
                if name
            ],
            "examples": [
                album.show(clips.rows[i], rank, longest=400)
                for rank, i in enumerate(spread(np.array(rows), CAPTIONS_SHOWN))
                if origin
            ],
        }
        for origin, rows in sorted(origins.items(), key=lambda item: (-len(item[1]), item[0]))
    ]


def time_facts(sources: list[Row], stages: list[Row] | None, input_s: float, wall_s: float | None) -> Row:
    """Time by stage, throughput as seconds of input per second, and the slowest sources."""
    analysis_s = sum(row["analysis_s"] for row in sources)
    slowest = sorted(sources, key=lambda row: (-row["analysis_s"], row["uri"]))[:SLOWEST_SHOWN]
    whole = sum(stage["wall_s"] for stage in stages or ())
    return {
        "stages": [
            {
                **stage,
                "share": stage["wall_s"] / whole if whole else 0.0,
                "cores": stage["busy_s"] / stage["wall_s"] if stage["wall_s"] else 0.0,
                "speed": input_s / stage["wall_s"] if stage["wall_s"] else 0.0,
            }
            for stage in stages or ()
        ],
        "analysis_s": analysis_s,
        "analysis_speed": input_s / analysis_s if analysis_s else 0.0,
        "speed": input_s / wall_s if wall_s else 0.0,
        "slowest": [
            {
                **row,
                "uri": shortened(row["uri"]),
                "speed": row["seconds"] / row["analysis_s"] if row["analysis_s"] else 0.0,
            }
            for row in slowest
            if row["analysis_s"] > 0
        ],
    }
