"""Find the runs under a directory and say in a few numbers what each one is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeGuard

RunKind = Literal["curation", "training", "evaluation"]

# What a browser may ask for inside a run, in the order of the links.
SERVED_FILES = ("report.html", "metrics.json", "manifest.json", "train.json", "recipe.yaml")

# What to show first of a manifest's totals.
_TOTALS = ("sources", "sources ok", "clips", "clips kept", "seconds input", "seconds kept")
_MAX_DEPTH = 5
_MAX_NUMBERS = 6
_MAX_JSON_BYTES = 8 << 20
# Folders of bulk that hold no run of their own.
_INNER = {"sources", "clips", "shards", "checkpoints", "samples", "mlartifacts", "mlruns", "jobs", "videos"}


@dataclass(frozen=True)
class Run:
    """One run as the start page shows it."""

    kind: RunKind
    path: str
    """Relative to the runs directory, with forward slashes; "." when the directory is the run itself."""
    modified: float
    """Seconds since the epoch, of its newest summary file."""
    finished: bool
    numbers: tuple[tuple[str, str], ...]
    """Headline numbers: label and value as text."""
    files: tuple[str, ...]
    """Which of SERVED_FILES it has."""

    @property
    def when(self) -> str:
        return datetime.fromtimestamp(self.modified).strftime("%Y-%m-%d %H:%M")


def find_runs(root: Path) -> list[Run]:
    """Every run under ``root``, newest first. Symbolic links to folders are not followed."""
    found = (_describe(folder, names, root) for folder, names in _folders(root))
    return sorted((run for run in found if run), key=lambda run: (-run.modified, run.path))


def _folders(root: Path) -> Iterator[tuple[Path, set[str]]]:
    """Each folder that may be a run, with the names in it."""
    for current, folders, files in os.walk(root, followlinks=False):
        folder = Path(current)
        yield folder, {*folders, *files}
        depth = len(folder.relative_to(root).parts)
        keep = [f for f in folders if f not in _INNER and not f.startswith(".")]
        folders[:] = sorted(keep) if depth < _MAX_DEPTH else []


def _describe(folder: Path, names: set[str], root: Path) -> Run | None:
    files = tuple(name for name in SERVED_FILES if name in names)
    kind: RunKind
    if "metrics.json" in names and "report.html" in names:
        kind, numbers = "evaluation", _metrics(_read_json(folder / "metrics.json"))
        finished = "_SUCCESS" in names
    elif "checkpoints" in names and "train.json" in names:
        train = _read_json(folder / "train.json")
        kind, numbers = "training", _scalars(train)
        finished = train.get("status") == "finished"
    elif "recipe.yaml" in names and ({"manifest.json", "report.html"} & names):
        totals = _read_json(folder / "manifest.json").get("totals")
        kind, numbers = "curation", _first(_scalars(totals), _TOTALS)
        finished = "_SUCCESS" in names
    else:
        return None
    stamps = [path.stat().st_mtime for path in (folder / name for name in files) if path.is_file()]
    return Run(
        kind=kind,
        path=folder.relative_to(root).as_posix(),
        modified=max(stamps, default=0.0),
        finished=finished,
        numbers=tuple(numbers[:_MAX_NUMBERS]),
        files=files,
    )


def _read_json(path: Path) -> dict[str, Any]:
    """The object in ``path``; empty when missing or damaged: the page must still open."""
    try:
        if path.is_symlink() or path.stat().st_size > _MAX_JSON_BYTES:
            return {}
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _scalars(values: object) -> list[tuple[str, str]]:
    """The numbers in ``values`` and in the objects right below it."""
    if not isinstance(values, dict):
        return []
    shown = []
    for name, value in values.items():
        below = value.items() if isinstance(value, dict) else [("", value)]
        shown += [(_label(f"{name} {key}".strip()), _number(number)) for key, number in below if _is_number(number)]
    return shown


def _first(numbers: list[tuple[str, str]], labels: tuple[str, ...]) -> list[tuple[str, str]]:
    """``numbers`` with those of ``labels`` in front, in their order."""
    rank = {label: position for position, label in enumerate(labels)}
    return sorted(numbers, key=lambda number: rank.get(number[0], len(rank)))


def _metrics(raw: dict[str, Any]) -> list[tuple[str, str]]:
    """The scores of an evaluation's metrics.json as ``value [low, high]``."""
    scores = raw.get("metrics")
    shown = []
    for score in scores if isinstance(scores, list) else []:
        if isinstance(score, dict) and _is_number(score.get("value")):
            low, high = score.get("ci_low"), score.get("ci_high")
            interval = f" [{_number(low)}, {_number(high)}]" if _is_number(low) and _is_number(high) else ""
            shown.append((_label(str(score.get("name"))), f"{_number(score['value'])}{interval}"))
    return shown


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: float) -> str:
    if isinstance(value, int) or (abs(value) >= 1000 and value == value):
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 0.1 else f"{value:.2f}"


def _label(name: object) -> str:
    return str(name).replace("_", " ")
