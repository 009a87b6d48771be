"""Manifests: tables that name sources, their captions, the stretches that are wanted, and labels.

A .csv (with a header), .jsonl (an object a line) or .parquet with a column ``uri``. ``caption``, and ``start`` and
``end`` in seconds, are known; every further column is a label. A broken row is an error that names it: a manifest is
written by whoever runs this, and half of it is not what they asked for.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from kineograph.errors import UserError
from pipelines.data.inputs.sidecars import clean

MANIFEST_EXTENSIONS = frozenset((".csv", ".jsonl", ".parquet"))
KNOWN_COLUMNS = ("uri", "caption", "start", "end")

Label = str | int | float | bool


@dataclass(frozen=True)
class Row:
    """A source, or a stretch of one, as a manifest names it."""

    uri: str
    """As written."""
    where: str
    """File and line, for messages."""
    caption: str = ""
    start_s: float = 0.0
    end_s: float | None = None
    labels: dict[str, Label] = field(default_factory=dict)


def read_manifest(stream: BinaryIO, name: str) -> Iterator[Row]:
    """The rows of a manifest called ``name``, in order.

    Raises UserError with the file and the line (of a .parquet, the row from 1) where it is broken.
    """
    extension = name[name.rfind(".") :].lower()
    reader: Callable[[BinaryIO, str], Iterable[tuple[str, dict[str, Any]]]]
    reader = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}[extension]
    for where, cells in reader(stream, name):
        try:
            yield _row(cells, where)
        except (ValueError, TypeError) as error:
            raise UserError(f"{where}: {' '.join(str(error).split())}") from error


def _csv(stream: BinaryIO, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.reader(_text(stream), strict=True)
    try:
        columns = [column.strip() for column in next(reader, [])]
        _check_columns(columns, name)
        for cells in reader:
            where = f"{name}, line {reader.line_num}"
            if not cells:
                continue
            if len(cells) != len(columns):
                raise UserError(f"{where}: {len(cells)} cells, the header has {len(columns)}")
            yield where, dict(zip(columns, cells, strict=True))
    except csv.Error as error:
        raise UserError(f"{name}, line {reader.line_num}: {error}") from error


def _jsonl(stream: BinaryIO, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_text(stream), 1):
        where = f"{name}, line {number}"
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: no JSON: {error}") from error
        if not isinstance(value, dict):
            raise UserError(f"{where}: an object with 'uri' is wanted, this is a {type(value).__name__}")
        yield where, value


def _parquet(stream: BinaryIO, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(stream)
        _check_columns(file.schema_arrow.names, name)
        number = 0
        for batch in file.iter_batches(batch_size=4096):
            for cells in batch.to_pylist():
                number += 1
                yield f"{name}, row {number}", cells
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{name} cannot be read as Parquet: {' '.join(str(error).split())[:200]}") from error


def _text(stream: BinaryIO) -> io.TextIOWrapper:
    # Names of files may be no UTF-8: their bytes come through as surrogates, as everywhere in Python.
    return io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")


def _check_columns(columns: list[str], name: str) -> None:
    if "uri" not in columns:
        has = ", ".join(c for c in columns if c)[:200] or "none"
        raise UserError(f"{name} has no column 'uri' (it has: {has}); 'uri' names the source of each row")
    twice = {column for column in columns if column and columns.count(column) > 1}
    if twice:
        raise UserError(f"{name}: column {min(twice)!r} is there twice")


def _row(cells: dict[str, Any], where: str) -> Row:
    uri = cells.get("uri")
    if not isinstance(uri, str) or not uri.strip():
        raise ValueError("'uri' is empty" if not uri else f"'uri' is text, not {type(uri).__name__}")
    if any(character in uri for character in "\0\r\n"):
        raise ValueError("'uri' has a line break or a NUL in it")
    uri.encode("utf-8", "surrogateescape")
    start = _seconds(cells.get("start"), "start")
    end = _seconds(cells.get("end"), "end")
    if end is not None and end <= (start or 0.0):
        raise ValueError(f"'end' ({end:g}) is not after 'start' ({start or 0.0:g})")
    caption = cells.get("caption")
    caption = "" if caption is None or _is_nan(caption) else clean(caption)
    labels = {
        clean(name): label
        for name, value in cells.items()
        if name and name not in KNOWN_COLUMNS and (label := _label(value, name)) is not None
    }
    return Row(uri.strip(), where, caption, start or 0.0, end, labels)


def _seconds(value: Any, column: str) -> float | None:
    if value is None or (isinstance(value, str) and not value.strip()) or _is_nan(value):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"{column!r} is a number of seconds, not {type(value).__name__}")
    try:
        seconds = float(value)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{column!r} is a number of seconds, not {str(value)[:40]!r}") from error
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"{column!r} is a number of seconds from 0, not {str(value)[:40]!r}")
    return seconds


def _label(value: Any, column: str) -> Label | None:
    """``value`` as a JSON scalar; None when there is none. What JSON lacks (dates, decimals) becomes text."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (list, tuple, dict, bytes)):
        raise ValueError(f"column {column!r}: a label is one text, number or truth value, not {type(value).__name__}")
    return clean(str(value)) or None


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
