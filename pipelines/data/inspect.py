"""Look at a curation run: its summary in words, its report written again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kineograph.progress import duration
from kineograph.store.manifest import MANIFEST_NAME
from pipelines.data.ledger import read_ledger, read_thumbnails, totals
from pipelines.data.report import losses, write_report
from pipelines.data.state import load_config
from pipelines.data.times import stage_times

Row = dict[str, Any]


def rewrite_report(run: str | Path) -> Row:
    """Write the report again from the ledger. Raises UserError when there is no ledger."""
    run = Path(run)
    sources, clips = read_ledger(run)
    try:
        digest = json.loads((run / MANIFEST_NAME).read_text(encoding="utf-8"))["digest"]
    except (OSError, ValueError, KeyError):
        digest = ""
    summary = {"run": str(run), "digest": digest, "totals": totals(sources, clips), "wall_s": None}
    path = write_report(
        run,
        summary,
        sources,
        clips,
        filters=load_config(run).filters.model_dump(mode="json"),
        stages=stage_times(run),
        thumbnails=lambda some: read_thumbnails(run, some),
    )
    return {"run": str(run), "report": str(path)}


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
