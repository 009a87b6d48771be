"""Class labels of clips: from a column of the manifest that curation read, or from what a synthetic caption says."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import model_validator

from kineograph.config import Config
from kineograph.errors import UserError
from kineograph.synth.oracle import expected

COLUMNS = ("caption", "labels")
"""The shards' columns that :func:`labels_of` reads."""


class LabelSource(Config):
    """Where a clip's label is found: one of the two."""

    column: str | None = None
    """A further column of the curation's manifest, such as "category"."""
    truth: Literal["colour", "shape", "direction", "speed"] | None = None
    """What the caption says of the objects of the synthetic world. Where it says nothing, or different things of two
    objects, the clip has no label."""

    @model_validator(mode="after")
    def _check(self) -> LabelSource:
        if (self.column is None) == (self.truth is None):
            raise ValueError("give either column or truth, such as {column: category} or {truth: shape}")
        return self

    @property
    def name(self) -> str:
        """What the labels tell apart."""
        return self.column or self.truth or ""


@dataclass(frozen=True)
class Labels:
    """The labels of a sequence of clips."""

    names: tuple[str, ...]
    """The classes, sorted."""
    ids: tuple[int | None, ...]
    """A place in ``names`` for every clip, in order; None where it has no label."""

    @property
    def unlabelled(self) -> int:
        """Clips without a label, which training leaves out."""
        return self.ids.count(None)


def labels_of(rows: Iterable[Mapping[str, Any]], source: LabelSource) -> Labels:
    """The labels of ``rows``, which have the columns COLUMNS of the shards.

    Raises UserError, one line, when they tell fewer than two classes apart.
    """
    rows = list(rows)
    found = [_truth(row, source.truth) if source.truth else _column(row, source.name) for row in rows]
    names = tuple(sorted({name for name in found if name is not None}))
    if len(names) < 2:
        raise UserError(_too_few(rows, names, source))
    place = {name: index for index, name in enumerate(names)}
    return Labels(names, tuple(None if name is None else place[name] for name in found))


def _column(row: Mapping[str, Any], column: str) -> str | None:
    value = _manifest_labels(row).get(column)
    if isinstance(value, (list, dict)):
        raise UserError(f"the labels in column {column!r} are lists: a clip can be of one class only")
    return str(value).strip() or None if value is not None else None


def _manifest_labels(row: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(row["labels"]) if row["labels"] else {}


def _truth(row: Mapping[str, Any], attribute: str) -> str | None:
    said = {getattr(item, attribute) for item in expected(row["caption"]) or ()}
    return said.pop() if len(said) == 1 else None


def _too_few(rows: list[Mapping[str, Any]], names: tuple[str, ...], source: LabelSource) -> str:
    found = f"all labelled clips are {names[0]!r}" if names else f"none of {len(rows)} clips has a label"
    if source.truth:
        return f"{found} by {{truth: {source.truth}}}: train on a corpus of 'kineo data synth', or use {{column: NAME}}"
    columns = ", ".join(sorted({name for row in rows for name in _manifest_labels(row)}))
    return f"{found} in column {source.column!r}; columns of the dataset's manifest: {columns or 'none'}"
