"""Which of a clip's sampled frames a model looks at, and how what a library said becomes one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def choose_evenly(items: Sequence[T], count: int) -> list[T]:
    """``count`` of ``items`` in order, each the middle of its equal share; an item repeats where there are fewer."""
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def choose_most(items: Sequence[T], most: int) -> list[T]:
    """All of ``items``, or ``most`` of them chosen evenly where there are more."""
    return list(items) if len(items) <= most else choose_evenly(items, most)


def one_line(error: BaseException) -> str:
    """What ``error`` says on one line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:199]}…"
