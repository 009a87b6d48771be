"""The gate: what the recipe demands of the scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.eval.config import Gate
from pipelines.eval.grade import Score

LOWER_IS_BETTER = frozenset({"validation_loss"})


def judge(gate: Gate, scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Each condition of ``gate`` with the score that it is about: name, bound, limit, value, text, met."""
    by_name = {score["name"]: score for score in scores}
    conditions = []
    for name, limit in gate.model_dump().items():
        if limit is None:
            continue
        score = by_name.get(name)
        value = None if score is None else score["value"]
        lower = name in LOWER_IS_BETTER
        met = value is not None and (value <= limit if lower else value >= limit)
        conditions.append(
            {
                "name": name,
                "bound": "at most" if lower else "at least",
                "limit": limit,
                "value": value,
                "met": met,
                "text": _text(name, limit, score, lower),
            }
        )
    return conditions


def missed(conditions: Sequence[dict[str, Any]]) -> list[str]:
    """What does not hold, in words: ``direction_accuracy is 0.42 [0.31, 0.55], at least 0.5 is asked``."""
    return [condition["text"] for condition in conditions if not condition["met"]]


def _text(name: str, limit: float, score: Score | None, lower: bool) -> str:
    asked = f"{'at most' if lower else 'at least'} {limit:g} is asked"
    if score is None:
        return f"{name} was not measured, {asked}"
    return f"{name} is {score['value']:.3f} [{score['ci_low']:.3f}, {score['ci_high']:.3f}], {asked}"
