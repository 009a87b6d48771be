"""The true times of a run's stages, added up over all the sessions that it took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kineograph.store.commit import write_json

TIMES_NAME = "work/stages.json"

Item = dict[str, Any]


def add_times(run: Path, stage: str, items: int, wall_s: float, busy_s: float) -> None:
    """Add to the true times of a stage of ``run``, over all its sessions: work/stages.json."""
    stages = {entry["stage"]: entry for entry in stage_times(run)}
    entry = stages.setdefault(stage, {"stage": stage, "items": 0, "wall_s": 0.0, "busy_s": 0.0})
    entry["items"] += items
    entry["wall_s"] = round(entry["wall_s"] + wall_s, 3)
    entry["busy_s"] = round(entry["busy_s"] + busy_s, 3)
    write_json(run / TIMES_NAME, list(stages.values()))


def stage_times(run: Path) -> list[Item]:
    """The stages of ``run`` in the order in which they first ran: stage, items, wall_s, busy_s (of all workers)."""
    try:
        times: list[Item] = json.loads((run / TIMES_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return times
