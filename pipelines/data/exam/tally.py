"""What an exam is made of: the rows and the truth of the same files, side by side, and the count of what is
right and wrong."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kineograph.metrics.bootstrap import bootstrap_share
from kineograph.store.schema import Reason

Row = dict[str, Any]

LEAST = 0.95
EXACT = {Reason.EXACT_DUPLICATE.value: 1.0, Reason.PERCEPTUAL_DUPLICATE.value: 1.0}
"""Least precision of the checks that must never be wrong; all else holds at LEAST."""
MOST_MISTAKES = 5
"""Of each sort that are listed, worst first."""


@dataclass(frozen=True)
class Exam:
    """A ledger beside the truth. Keys are the ledger's uris; files that the truth does not know are left out."""

    files: dict[str, Row]
    """Truth by uri."""
    sources: dict[str, Row]
    """Source row by uri."""
    clips: dict[str, list[Row]]
    """Clip rows by uri, in the order of time."""
    missing: list[str]
    """Names of files of the truth that the ledger lacks."""
    by_name: dict[str, Row]
    """Truth by name, also of the missing."""

    @classmethod
    def of(cls, sources: list[Row], clips: list[Row], files: list[Row]) -> Exam:
        """Match by name: the corpus may be a folder below the run's input, the one that fits best."""
        by_name = {file["path"]: file for file in files}
        split = [source["uri"].rpartition("/") for source in sources]
        folders = Counter(head + slash for head, slash, name in split if name in by_name)
        folder = min(folders, key=lambda f: (-folders[f], f), default="")
        matched = {folder + name: file for name, file in by_name.items()}
        rows = {source["uri"]: source for source in sources if source["uri"] in matched}
        by_uri: dict[str, list[Row]] = defaultdict(list)
        for clip in sorted(clips, key=lambda clip: clip["start_frame"]):
            if clip["uri"] in rows:
                by_uri[clip["uri"]].append({**clip, "failed": clip["failed"] or []})
        return cls(
            files={uri: matched[uri] for uri in rows},
            sources=rows,
            clips=dict(by_uri),
            missing=sorted(uri for uri in matched if uri not in rows),
            by_name=by_name,
        )

    def known(self) -> Iterator[tuple[str, Row, list[Row]]]:
        """(uri, truth, clips) of the files that have clips and whose scenes are known."""
        for uri, clips in sorted(self.clips.items()):
            if self.files[uri]["valid"]:
                yield uri, self.files[uri], clips

    def videos(self) -> Iterator[tuple[str, Row, list[Row]]]:
        """Of :meth:`known` those with more than one moment."""
        return (item for item in self.known() if item[1]["fps"])


@dataclass
class Tally:
    """Right and wrong of one check. ``found`` is of what the truth holds, ``right`` of what was claimed."""

    check: str
    found: list[bool] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    mistakes: list[Row] = field(default_factory=list)
    state: str = ""

    def judge(
        self,
        wanted: bool,
        given: bool,
        uri: str,
        start_s: float,
        end_s: float | None = None,
        value: float | None = None,
        detail: str = "",
        *,
        right: bool | None = None,
        claims: bool = True,
    ) -> None:
        """Count one case: ``wanted`` by the truth, ``given`` by the run.

        ``right`` is whether a case that is given is given rightly, where that is more than that it is wanted.
        Without ``claims`` it counts for recall alone.
        """
        right = wanted if right is None else right
        if wanted:
            self.found.append(given and right)
        if given and claims:
            self.right.append(right)
        if (wanted and not given) or (given and not right):
            self._note("missed" if wanted else "false", uri, start_s, end_s, value, detail)

    def claim(
        self, right: bool, uri: str, start_s: float, end_s: float, value: float | None = None, detail: str = ""
    ) -> None:
        """Count a case that is given for precision alone."""
        self.right.append(right)
        if not right:
            self._note("false", uri, start_s, end_s, value, detail)

    def _note(
        self, mistake: str, uri: str, start_s: float, end_s: float | None, value: float | None, detail: str
    ) -> None:
        end_s = start_s if end_s is None else end_s
        row = {"mistake": mistake, "uri": uri, "start_s": start_s, "end_s": end_s, "value": value, "detail": detail}
        self.mistakes.append(row)

    def facts(self) -> Row:
        """check, state (graded, not measured, or nothing to grade), positives and predicted (numbers of which
        recall and precision are), missed, false, precision and recall ({value, n, low, high, least} or None)
        and the worst mistakes."""
        state = self.state or ("graded" if self.found or self.right else "nothing to grade")
        return {
            "check": self.check,
            "state": state,
            "positives": len(self.found),
            "predicted": len(self.right),
            "missed": self.found.count(False),
            "false": self.right.count(False),
            "precision": _share(self.right, self.least_precision),
            "recall": _share(self.found, LEAST),
            "mistakes": self.worst(),
        }

    @property
    def least_precision(self) -> float:
        return EXACT.get(self.check, LEAST)

    def worst(self) -> list[Row]:
        """The mistakes furthest on the wrong side: misses of low value, false alarms of high value."""

        def far(mistake: Row) -> tuple[float, str, float]:
            value = -math.inf if mistake["value"] is None else mistake["value"]
            sign = 1 if mistake["mistake"] == "missed" else -1
            return (sign * value, mistake["uri"], mistake["start_s"])

        sorts = [[m for m in self.mistakes if m["mistake"] == sort] for sort in ("missed", "false")]
        return [mistake for sort in sorts for mistake in sorted(sort, key=far)[:MOST_MISTAKES]]

    def short(self) -> list[str]:
        """A line for precision and for recall when it falls short."""
        lines = []
        for name, cases, least in (("precision", self.right, self.least_precision), ("recall", self.found, LEAST)):
            if cases and sum(cases) < least * len(cases):
                share = f"{sum(cases) / len(cases):.3f} ({sum(cases)} of {len(cases)})"
                lines.append(f"{self.check}: {name} {share} is under {least:.2f}")
        return lines


def _share(cases: list[bool], least: float) -> Row | None:
    if not cases:
        return None
    estimate = bootstrap_share(cases)
    low, high = round(estimate.low, 4), round(estimate.high, 4)
    return {"value": estimate.value, "n": estimate.n, "low": low, "high": high, "least": least}


def number(value: float | None) -> float | None:
    """``value``; None where it was not measured."""
    return None if value is None or math.isnan(value) else float(value)


def overlap(a: Row, b: Row) -> float:
    """Seconds that two rows with start_s and end_s share, 0 or more."""
    return max(0.0, min(a["end_s"], b["end_s"]) - max(a["start_s"], b["start_s"]))
