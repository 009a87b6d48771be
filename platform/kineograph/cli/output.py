"""What commands share: the --json and --set options, and facts as one JSON object or as lines for people."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def json_option(command: F) -> F:
    """Add ``--json``: one JSON object on stdout; logs and progress stay on stderr."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")(command)


def set_option(command: F) -> F:
    """Add ``--set key=value``, repeatable: overrides of the recipe."""
    return click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a key of the recipe; repeatable.",
    )(command)


def emit(facts: dict[str, Any], as_json: bool, text: str) -> None:
    """Print ``facts`` as JSON, or ``text`` for a person."""
    click.echo(json.dumps(facts, ensure_ascii=False) if as_json else text)
