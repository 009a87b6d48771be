"""Prompts from the command line and from files, and the names of their videos."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from kineograph.config import Config, parse_config
from kineograph.errors import UserError

MAX_SLUG = 40


class PromptRow(Config):
    """A line of a file of prompts."""

    prompt: str
    seed: int | None = None
    """Of its first video; none: as on the command line."""
    negative_prompt: str | None = None
    out: str | None = Field(None, max_length=200, pattern=r"^[^/\\\x00-\x1f]+$")
    """Name of its video in the folder; none: number, words of the prompt and seed."""


class Take(NamedTuple):
    """One video that is asked for."""

    prompt: str
    negative_prompt: str | None
    seed: int
    name: str
    """Of its file."""


def read_prompts(path: Path) -> list[PromptRow]:
    """The prompts of a file: ``.txt`` has one per line, and comments after #; ``.jsonl`` an object per line and ``.csv`` a
    header, with the fields of :class:`PromptRow`. Raises UserError with the line that is wrong."""
    readers = {".txt": _read_text, ".jsonl": _read_json_lines, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise UserError(f"--prompts {path}: give a .txt, .jsonl or .csv file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(f"--prompts {path} cannot be read: {reason}") from error
    rows = [
        parse_config(raw, PromptRow, name=f"{path.name}, {where}") for where, raw in readers[path.suffix.lower()](text)
    ]
    if not rows:
        raise UserError(f"--prompts {path} has no prompt")
    return rows


def _read_text(text: str) -> Iterator[tuple[str, dict[str, object]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield f"line {number}", {"prompt": line.strip()}


def _read_json_lines(text: str) -> Iterator[tuple[str, dict[str, object]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line)
        except (ValueError, RecursionError):
            raw = None
        if not isinstance(raw, dict):
            raise UserError(f'line {number} of the prompts is no JSON object: write {{"prompt": "…", "seed": 7}}')
        yield f"line {number}", raw


def _read_csv(text: str) -> Iterator[tuple[str, dict[str, object]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="more cells than the header")
    try:
        for row in reader:
            yield f"line {reader.line_num}", {key: value for key, value in row.items() if value or key == "prompt"}
    except csv.Error as error:
        raise UserError(f"line {reader.line_num} of the prompts is not valid CSV: {error}") from error


def takes(rows: Sequence[PromptRow], seeds: Sequence[int]) -> list[Take]:
    """A video for each row and seed, in order. A row's own seed is that of its first video, and the others follow it.

    Raises UserError when two would have one name.
    """
    found = []
    for number, row in enumerate(rows):
        for seed in seeds if row.seed is None else range(row.seed, row.seed + len(seeds)):
            if row.out is None:
                name = f"{number:03d}-{slug(row.prompt)}-{seed}.mp4"
            else:
                name = row.out.removesuffix(".mp4") + (f"-{seed}" if len(seeds) > 1 else "") + ".mp4"
            found.append(Take(row.prompt, row.negative_prompt, seed, name))
    name, count = Counter(take.name for take in found).most_common(1)[0]
    if count > 1:
        raise UserError(f"{count} videos would be called {name}: give seeds and names that differ")
    return found


def slug(prompt: str) -> str:
    """The words of a prompt as part of a file name: a-z, 0-9 and hyphens, at most MAX_SLUG."""
    ascii_text = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", ascii_text).strip("-")
    return words[:MAX_SLUG].rstrip("-") or "video"
