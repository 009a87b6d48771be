"""Look at a curation run: its plan, its summary in words, its report written again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kineograph.progress import duration
from kineograph.store.manifest import MANIFEST_NAME
from pipelines.data.ledger import Row, read_ledger, totals
from pipelines.data.report import bucket_plan, losses, lost, write_report


def rewrite_report(run: str | Path) -> Row:
    """Write the report again from the ledger. Raises UserError when there is no ledger."""
    run = Path(run)
    sources, clips = read_ledger(run)
    try:
        digest = json.loads((run / MANIFEST_NAME).read_text(encoding="utf-8"))["digest"]
    except (OSError, ValueError, KeyError):
        digest = ""
    summary = {"run": str(run), "digest": digest, "totals": totals(sources, clips), "wall_s": None}
    return {"run": str(run), "report": str(write_report(run, summary, sources, clips))}


def plan_facts(run: str | Path) -> Row:
    """Buckets with clips, seconds and share; reasons with what they cost. Raises UserError without a
    ledger."""
    sources, clips = read_ledger(run)
    return {
        "run": str(run),
        "buckets": bucket_plan(clips),
        "lost": lost(sources, clips),
        "seconds": totals(sources, clips)["seconds"],
    }


def plan_text(facts: Row) -> str:
    """The plan as two tables."""
    lines = _table(
        ("bucket", "clips", "seconds", "share"),
        [(b["bucket"], b["clips"], f"{b['seconds']:.1f}", f"{100 * b['share']:.1f}%") for b in facts["buckets"]],
    )
    if facts["lost"]:
        rows = [(r["reason"], r["sources"], r["clips"], f"{r['seconds']:.1f}") for r in facts["lost"]]
        lines += ["", *_table(("lost", "sources", "clips", "seconds"), rows)]
    seconds = facts["seconds"]
    lines += [
        "",
        f"of {seconds['input']:.1f} s: {seconds['kept']:.1f} s kept, {seconds['unused']:.1f} s beyond "
        f"their buckets' length, {sum(seconds['rejected'].values()):.1f} s rejected",
    ]
    return "\n".join(lines)


def summary_text(summary: Row) -> str:
    """What a run came to, in three lines."""
    counts, seconds = summary["totals"], summary["totals"]["seconds"]
    buckets = ", ".join(f"{name} {count}" for name, count in counts["buckets"].items())
    return "\n".join(
        [
            losses(counts),
            f"kept {counts['clips_kept']} clips, {seconds['kept']:.1f} of {seconds['input']:.1f} s, "
            f"in {duration(summary['wall_s'])}: {buckets}",
            f"dataset {summary['digest'][:12]} in {summary['run']}; see {summary['run']}/report.html",
        ]
    )


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    """Left-aligned names, right-aligned numbers."""
    cells = [head, *[tuple(str(cell) for cell in row) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
