"""Gradual transitions of each source: scored once from the tiny frames of the one pass, found again at any threshold."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from kineograph.config import digest
from kineograph.store.commit import write_text
from pipelines.data import signals
from pipelines.data.config import CurateConfig
from pipelines.data.measures import to_json
from pipelines.data.transitions import TRAINED_FPS, Transitions, TransitionScorer, find_transitions
from pipelines.data.work import analysis_path, tiny_path

Item = dict[str, Any]


def scores_path(analysis: Path, settings: Transitions) -> Path:
    """Where the probabilities of an analysed source are kept."""
    key = digest([settings.model])[:8]
    return analysis.with_name(analysis.name.replace(".json.gz", f".transitions-{key}.json"))


def score_transitions(item: Item, *, run: str, config: CurateConfig) -> Item:
    """Commit the probabilities of transition of the frames of one source: ``item`` has its source_id and fps."""
    settings = config.transitions
    assert settings is not None
    path = analysis_path(Path(run), item["source_id"], config)
    step = max(1, round(item["fps"] / TRAINED_FPS))
    single, many = _scorer(settings.model_dump_json())(tiny_path(path).read_bytes(), step)
    text = json.dumps({"step": step, "single": to_json(single), "many": to_json(many)})
    write_text(scores_path(path, settings), text)
    return {"frames": len(single)}


def load_transitions(analysis: Path, settings: Transitions) -> list[tuple[int, int]]:
    """Frames [start, end) of each gradual transition. Raises OSError, ValueError or KeyError when they were not
    scored."""
    stored = json.loads(scores_path(analysis, settings).read_text(encoding="utf-8"))
    found = find_transitions(signals.array(stored["single"]), signals.array(stored["many"]), settings.threshold)
    return [(start * stored["step"], end * stored["step"]) for start, end in found]


@lru_cache(maxsize=1)
def _scorer(settings: str) -> TransitionScorer:
    import torch

    torch.set_num_threads(1)
    return TransitionScorer(Transitions.model_validate_json(settings))
