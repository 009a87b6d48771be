"""The part of the exam that is about duplicates. Originals and copies that the truth names are a cluster.

- ``exact_duplicate``: of the files with the same bytes all but one are found. A source that is rejected so is
  right when the one it names has the same bytes and was not rejected so itself.
- ``perceptual_duplicate``, precision: what a source or clip names, by a source_id or a clip_id, is of its
  cluster; and of a clip, it overlaps in the original's time, or looks the same because the scene repeats: the
  world is a torus, and what stands still is always the same.
- ``perceptual_duplicate``, recall: after which copies is nothing doubled? Doubled are two clips of two files
  of a cluster that overlap, in the original's time, by half of the shorter or more. A copy counts when
  something of it would be doubled if no duplicate had been rejected: what other filters took cannot be. Which
  of a cluster is kept is up to the run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from kineograph.store.schema import Reason
from pipelines.data.exam.tally import Exam, Row, Tally, number

_EXACT, _PERCEPTUAL = Reason.EXACT_DUPLICATE.value, Reason.PERCEPTUAL_DUPLICATE.value
_DUPLICATE_REASONS = {_PERCEPTUAL, Reason.SEMANTIC_DUPLICATE.value}
_DOUBLED = 0.5  # share of the shorter of two clips
_LEAST_OVERLAP_S = 0.05


@dataclass(frozen=True)
class Stretch:
    """A clip, or a whole source, in the time of the original of its cluster, seconds."""

    uri: str
    cluster: str
    start_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s

    def overlap(self, other: Stretch, shift: float = 0.0) -> float:
        return min(self.end_s, other.end_s + shift) - max(self.start_s, other.start_s + shift)

    def doubles(self, other: Stretch, shift: float = 0.0) -> bool:
        """Whether the two share half of the shorter."""
        shorter = min(self.seconds, other.seconds)
        return shorter > 0 and self.overlap(other, shift) >= _DOUBLED * shorter - 1e-6


def grade_exact(exam: Exam) -> Tally:
    """Sources that are rejected as exact duplicates, against files with the same bytes."""
    tally, groups = Tally(_EXACT), defaultdict(list)
    for uri, file in sorted(exam.files.items()):
        groups[_bytes_of(file)].append(uri)
    for uris in groups.values():
        rejected = [uri for uri in uris if exam.sources[uri]["reason"] == _EXACT]
        others = [uri for uri in uris if uri not in rejected]
        for place, uri in enumerate([*rejected, *others][: len(uris) - 1]):
            seconds = exam.sources[uri]["seconds"]
            tally.judge(True, place < len(rejected), uri, 0.0, seconds, detail="its bytes are kept twice", claims=False)
        for uri in rejected:
            named = exam.sources[uri]["duplicate_of"]
            right = any(exam.sources[other]["source_id"] == named for other in others)
            tally.claim(right, uri, 0.0, exam.sources[uri]["seconds"], detail=f"names source {named[:12]}")
    return tally


def _bytes_of(file: Row) -> str:
    return str(file["duplicate_of"] if file["kind"] == "exact_duplicate" else file["path"])


def grade_perceptual(exam: Exam) -> Tally:
    """Sources and clips that are rejected as perceptual duplicates, against the clusters."""
    tally = Tally(_PERCEPTUAL)
    for uri, file in sorted(exam.files.items()):
        if file["kind"] == "reencoded_duplicate":
            _judge_copy(exam, uri, tally)
    named = _stretches(exam)
    for uri, source in sorted(exam.sources.items()):
        if source["reason"] == _PERCEPTUAL:
            row = {**source, "start_s": 0.0, "end_s": source["seconds"], "value": None}
            _judge_claim(exam, uri, row, named, tally, whole=True)
        for clip in exam.clips.get(uri, []):
            if _PERCEPTUAL in clip["failed"]:
                _judge_claim(exam, uri, clip, named, tally, whole=False)
    return tally


def _judge_claim(exam: Exam, uri: str, row: Row, named: dict[str, list[Stretch]], tally: Tally, *, whole: bool) -> None:
    mine, there = _stretch(exam, uri, row), named.get(row["duplicate_of"], [])
    there = [other for other in there if other != mine]
    if whole:
        right = any(other.cluster == mine.cluster and other.uri != uri for other in there)
    else:
        right = any(_looks_same(exam, mine, other) for other in there)
    what = "; ".join(f"{o.uri} {o.start_s:.2f}-{o.end_s:.2f} s of {o.cluster}" for o in there) or "nothing known"
    tally.claim(right, uri, row["start_s"], row["end_s"], number(row["value"]), f"names {what}")


def _looks_same(exam: Exam, mine: Stretch, other: Stretch) -> bool:
    if mine.cluster != other.cluster:
        return False
    file = exam.by_name[mine.cluster]
    if not file["fps"] or mine.overlap(other) > _LEAST_OVERLAP_S:
        return True
    scenes = [_scene_at(file, (stretch.start_s + stretch.end_s) / 2) for stretch in (mine, other)]
    period = scenes[0]["repeats_s"]
    if scenes[0] is not scenes[1] or period is None:
        return False
    # Both in one scene: turn by turn of the torus back to where the other is.
    shift = round((mine.start_s - other.start_s) / period) * period if period else mine.start_s - other.start_s
    return mine.doubles(other, shift)


def _scene_at(file: Row, time: float) -> Row:
    scene: Row = next((s for s in reversed(file["scenes"]) if s["start_s"] <= time), file["scenes"][0])
    return scene


def _stretches(exam: Exam) -> dict[str, list[Stretch]]:
    """By what a row can name: clip_id -> its stretch, source_id -> those of the files with these bytes."""
    named: dict[str, list[Stretch]] = defaultdict(list)
    for uri, source in exam.sources.items():
        named[source["source_id"]].append(_stretch(exam, uri, {"start_s": 0.0, "end_s": source["seconds"]}))
        for clip in exam.clips.get(uri, []):
            named[clip["clip_id"]].append(_stretch(exam, uri, clip))
    return named


def _stretch(exam: Exam, uri: str, row: Row) -> Stretch:
    file = exam.files[uri]
    offset = file["offset_s"] or 0.0
    return Stretch(uri, file["duplicate_of"] or file["path"], row["start_s"] + offset, row["end_s"] + offset)


def _judge_copy(exam: Exam, uri: str, tally: Tally) -> None:
    cluster = exam.files[uri]["duplicate_of"]
    others = [u for u, f in exam.files.items() if u != uri and cluster in (f["duplicate_of"], f["path"])]
    if next(_pairs(exam, uri, others, kept=False), None) is None:
        return
    pair = next(_pairs(exam, uri, others, kept=True), None)
    seconds = exam.sources[uri]["seconds"]
    detail = f"{exam.files[uri]['detail'] or 'copy'}; {_told(pair)}" if pair else ""
    start, end = (pair[0]["start_s"], pair[0]["end_s"]) if pair else (0.0, seconds)
    tally.judge(True, pair is None, uri, start, end, detail=detail, claims=False)


def _told(pair: tuple[Row, Row]) -> str:
    return f"kept, and so is {pair[1]['uri']} {pair[1]['start_s']:.2f}-{pair[1]['end_s']:.2f} s"


def _pairs(exam: Exam, uri: str, others: list[str], *, kept: bool) -> Iterator[tuple[Row, Row]]:
    """Clips of ``uri`` and of ``others`` that double each other, of those that are kept or would be."""
    for mine in _contenders(exam, uri, kept):
        for other in others:
            for theirs in _contenders(exam, other, kept):
                if _stretch(exam, uri, mine).doubles(_stretch(exam, other, theirs)):
                    yield mine, theirs


def _contenders(exam: Exam, uri: str, kept: bool) -> list[Row]:
    """The clips that are kept; unless ``kept``, also those that duplicates alone took."""
    clips = exam.clips.get(uri, [])
    if kept:
        return [clip for clip in clips if clip["decision"] == "keep"]
    source = exam.sources[uri]
    if source["reason"] == _PERCEPTUAL and not clips:
        return [{"uri": uri, "start_s": 0.0, "end_s": source["seconds"]}]
    return [clip for clip in clips if clip["decision"] == "keep" or clip["reason"] in _DUPLICATE_REASONS]
