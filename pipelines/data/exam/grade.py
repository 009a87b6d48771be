"""The exam: what a run decided about a synthetic corpus, against the corpus' truth.

A check is graded by precision (of what it rejected or claimed, the share that the truth confirms) and recall
(of what the truth holds, the share that it found), each with the number it is of and a 95 % interval. What can
be judged fairly is fixed here:

- Clips are judged by ``failed``, every check that they fail, and not by the first of them alone. A clip is of
  a scene's kind when half of it or more lies in such scenes, and of another when less than a tenth does; what
  lies between is left out, as is what lies in a dissolve. Files that decode partly have no known scenes.
- ``cuts``: a change of shot within one frame of a cut finds it, one for one. A change of shot at a dissolve is
  neither right nor wrong.
- ``static`` and ``flashing`` ask nothing of images, nor of clips of one frame. Black does not move and is not
  sharp: black clips are left out of ``static`` and ``blur``.
- ``flashing``: a clip needs a second and a half of more than three flashes a second. One that has less counts
  only where a false cut made it so.
- A clip that is rejected anyway and did not have the signal measured, being too short for a sample or not worth
  a model's time, is left out. ``text`` is graded where any clip has ``text_area``.
- ``letterbox``: the clip's ``content`` has an IoU of 0.9 or more with the picture within the bars. A box that
  leaves out over 3 % of an axis claims bars. Black clips are left out.
- ``corrupt`` is a cut file without its index, ``not_media`` a foreign one. ``partial``, a file cut behind its
  index, is accepted with a warning in ``detail``. Other valid files that a machine's trouble rejected, or that
  the ledger lacks, are ``lost``.
- Duplicates: see :mod:`pipelines.data.exam.copies`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from kineograph.errors import UserError
from kineograph.store.schema import Reason
from pipelines.data.exam.copies import grade_exact, grade_perceptual
from pipelines.data.exam.tally import Exam, Row, Tally, number, overlap

__all__ = ["grade", "grade_rows", "grade_text", "read_truth"]

TRUTH_VERSION = 2
FILTERS = {
    "black": ("black", "black"),
    "static": ("static", "static"),
    "blur": ("blurred", "blur"),
    "flashing": ("flashing", "flashing"),
    "text": ("text", "text_area"),
}
"""Check -> the kind of scene that it is there for, and the signal that it compares."""

_OF_A_KIND, _OF_ANOTHER = 0.5, 0.1  # share of a clip in scenes of a kind
_CUT_FRAMES = 1
_LEAST_FLASHES, _LEAST_FLASHING_S = 3.0, 1.5
_LEAST_IOU, _MOST_CROPPED = 0.9, 0.03
_TROUBLE = {Reason.UNREADABLE.value, Reason.TIMEOUT.value, Reason.CRASHED.value, Reason.FETCH_FAILED.value}


def grade(run: Path, truth: Path) -> dict[str, Any]:
    """Grade the run at ``run`` by the ``truth.json`` of the corpus it is of.

    Returns run, truth, files (of the truth that are in the ledger), clips (of those), lost (uris), checks (a
    list of what :meth:`Tally.facts` gives), holds (nothing falls short and nothing is lost) and short (a line
    for each thing that does). Raises UserError when either cannot be read or they do not belong together.
    """
    from pipelines.data.ledger import read_ledger

    return {"run": str(run), "truth": str(truth), **grade_rows(*read_ledger(run), read_truth(truth))}


def read_truth(path: Path) -> list[Row]:
    """The files that the truth lists. Raises UserError when ``path`` is no truth of this version."""
    try:
        truth = json.loads(Path(path).read_text(encoding="utf-8"))
        version, files = truth["schema_version"], truth["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no truth.json of 'kineo data synth': {error}") from error
    if version != TRUTH_VERSION:
        raise UserError(
            f"{path} is of version {version}, not {TRUTH_VERSION}: write the corpus again with 'kineo data synth'"
        )
    return list(files)


def grade_rows(sources: list[Row], clips: list[Row], files: list[Row]) -> dict[str, Any]:
    """As :func:`grade`, of the rows of a ledger and of a truth."""
    exam = Exam.of(sources, clips, files)
    if not exam.files:
        raise UserError("none of the truth's files is in the ledger: this run is of another corpus")
    tallies = [
        grade_cuts(exam),
        grade_transitions(exam),
        *(grade_filter(exam, check) for check in FILTERS),
        grade_letterbox(exam),
        *grade_sources(exam),
        grade_exact(exam),
        grade_perceptual(exam),
    ]
    checks = [tally.facts() for tally in tallies]
    lost = sorted([*exam.missing, *_in_trouble(exam)])
    short = [line for tally in tallies for line in tally.short()]
    if lost:
        short.append(f"{len(lost)} files are lost: {', '.join(lost[:5])}{' …' if len(lost) > 5 else ''}")
    return {
        "files": len(exam.files),
        "clips": sum(len(rows) for rows in exam.clips.values()),
        "lost": lost,
        "checks": checks,
        "holds": not short,
        "short": short,
    }


def _in_trouble(exam: Exam) -> list[str]:
    return [uri for uri, file in exam.files.items() if file["valid"] and exam.sources[uri]["reason"] in _TROUBLE]


def grade_cuts(exam: Exam) -> Tally:
    """Shot changes of whole videos that have clips, against hard cuts."""
    tally = Tally("cuts")
    for uri, file, clips in exam.videos():
        changes = [b["start_frame"] for a, b in pairwise(clips) if a["shot"] != b["shot"]]
        left = list(changes)
        for cut in file["cuts"]:
            near = [change for change in left if abs(change - cut) <= _CUT_FRAMES]
            found = min(near, key=lambda change: abs(change - cut), default=None)
            if found is not None:
                left.remove(found)
            tally.judge(True, found is not None, uri, cut / file["fps"], detail=f"frame {cut}")
        for change in left:
            if not any(_touches(change, change, span) for span in file["transitions"]):
                tally.judge(False, True, uri, change / file["fps"], detail=f"frame {change}")
    return tally


def grade_transitions(exam: Exam) -> Tally:
    """Clips that fail ``transition``, against dissolves."""
    tally = Tally(Reason.TRANSITION.value)
    for uri, file, clips in exam.videos():
        claimed = [clip for clip in clips if Reason.TRANSITION.value in clip["failed"]]
        for span in file["transitions"]:
            hit = any(_touches(clip["start_frame"], clip["end_frame"], span) for clip in claimed)
            tally.judge(True, hit, uri, span["start_s"], span["end_s"], claims=False)
        for clip in claimed:
            right = any(_touches(clip["start_frame"], clip["end_frame"], span) for span in file["transitions"])
            tally.claim(right, uri, clip["start_s"], clip["end_s"])
    return tally


def _touches(start: int, end: int, span: Row) -> bool:
    """Whether frames ``start`` to ``end`` come within a frame of the ``span`` of a dissolve."""
    return bool(start <= span["end_frame"] + _CUT_FRAMES and end >= span["start_frame"] - _CUT_FRAMES)


def grade_filter(exam: Exam, check: str) -> Tally:
    """Clips that fail ``check``, against the scenes that it is there for."""
    kind, column = FILTERS[check]
    tally, measured = Tally(check), False
    for uri, file, clips in exam.known():
        for clip in clips:
            value = number(clip[column])
            measured = measured or value is not None
            wanted = _is_of(kind, clip, file, clips)
            if wanted is None or _unfair(check, clip, file, value):
                continue
            tally.judge(wanted, check in clip["failed"], uri, clip["start_s"], clip["end_s"], value)
    return Tally(check, state="not measured") if check == "text" and not measured else tally


def _is_of(kind: str, clip: Row, file: Row, clips: list[Row]) -> bool | None:
    """Whether ``clip`` lies in a scene of ``kind``; None where that cannot be said."""
    if _in_dissolve(clip, file):
        return None
    share = _share(kind, clip, file)
    if share < _OF_ANOTHER:
        return False
    if share < _OF_A_KIND:
        return None
    return True if kind != "flashing" else _flashes(clip, file, clips)


def _flashes(clip: Row, file: Row, clips: list[Row]) -> bool | None:
    scene = max((s for s in file["scenes"] if s["kind"] == "flashing"), key=lambda s: overlap(s, clip))
    if scene["flashes_per_s"] <= _LEAST_FLASHES or scene["end_s"] - scene["start_s"] < _LEAST_FLASHING_S:
        return None
    of_shot = sum(overlap(scene, other) for other in clips if other["shot"] == clip["shot"])
    # The rest of a long shot has too few flashes of its own; a splinter that a false cut made is a mistake.
    return None if overlap(scene, clip) < _LEAST_FLASHING_S <= of_shot else True


def _in_dissolve(clip: Row, file: Row) -> bool:
    inside = sum(overlap(span, clip) for span in file["transitions"])
    return bool(inside > 0.5 * (clip["end_s"] - clip["start_s"]))


def _share(kind: str, clip: Row, file: Row) -> float:
    """Share of ``clip`` in scenes of ``kind``, 0..1."""
    if clip["media_type"] == "image":
        return float(file["scenes"][0]["kind"] == kind)
    seconds = clip["end_s"] - clip["start_s"]
    inside = sum(overlap(scene, clip) for scene in file["scenes"] if scene["kind"] == kind)
    return inside / seconds if seconds > 0 else 0.0


def _unfair(check: str, clip: Row, file: Row, value: float | None) -> bool:
    """Whether ``check`` asks of ``clip`` what it cannot have."""
    one_frame = clip["end_frame"] - clip["start_frame"] <= 1
    if check in ("static", "flashing") and one_frame:
        return True
    if check in ("static", "blur") and _share("black", clip, file) >= _OF_ANOTHER:
        return True
    return value is None and bool(clip["failed"])


def grade_letterbox(exam: Exam) -> Tally:
    """The clips' ``content``, against the picture within the bars."""
    tally = Tally("letterbox")
    for uri, file, clips in exam.known():
        whole = [0, 0, file["width"], file["height"]]
        for clip in clips:
            if _share("black", clip, file) >= _OF_ANOTHER:
                continue
            box = clip["content"] or whole
            cropped = max(1 - box[2] / file["width"], 1 - box[3] / file["height"])
            iou = _iou(box, file["active"])
            wanted = file["active"] != whole
            where = (uri, clip["start_s"], clip["end_s"])
            detail = f"content {list(box)}, picture {file['active']}"
            tally.judge(wanted, cropped > _MOST_CROPPED, *where, iou, detail, right=wanted and iou >= _LEAST_IOU)
    return tally


def _iou(a: list[int], b: list[int]) -> float:
    """Intersection over union of two boxes [x, y, width, height]."""
    across = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    down = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = max(0, across) * max(0, down)
    return both / (a[2] * a[3] + b[2] * b[3] - both)


def grade_sources(exam: Exam) -> Iterator[Tally]:
    """``corrupt``, ``not_media`` and ``partial``."""
    rows = [(uri, file, exam.sources[uri]) for uri, file in exam.files.items()]
    for check, is_one in ((Reason.CORRUPT.value, _has_no_frames), (Reason.NOT_MEDIA.value, _is_foreign)):
        tally = Tally(check)
        for uri, file, source in rows:
            if file["detail"] != "partial":
                detail = f"a {file['kind']} file is {source['reason'] or 'ok'}"
                tally.judge(is_one(file), source["reason"] == check, uri, 0.0, source["seconds"], detail=detail)
        yield tally
    partial = Tally("partial")
    for uri, file, source in rows:
        if file["detail"] == "partial":
            accepted = source["status"] == "ok" and bool(source["detail"])
            detail = f"{source['reason'] or 'ok'}: {source['detail'] or 'no warning'}"
            partial.judge(True, accepted, uri, 0.0, source["seconds"], detail=detail, claims=False)
    yield partial


def _has_no_frames(file: Row) -> bool:
    return bool(file["kind"] == "truncated")


def _is_foreign(file: Row) -> bool:
    return bool(file["kind"] == "foreign")


def grade_text(facts: dict[str, Any]) -> str:
    """``facts`` of :func:`grade` as a table of the checks, the worst mistakes, and what falls short."""
    lines = [f"{'check':<22}{'precision, 95 %, of':<26}{'recall, 95 %, of':<26}".rstrip()]
    for check in facts["checks"]:
        if check["state"] == "graded":
            shown = [f"{_score(check[name]):<26}" for name in ("precision", "recall")]
            lines.append(f"{check['check']:<22}{''.join(shown)}".rstrip())
        else:
            lines.append(f"{check['check']:<22}{check['state']}")
    for check in facts["checks"]:
        if check["mistakes"]:
            lines.append(f"\n{check['check']}: {check['missed']} missed, {check['false']} false")
            lines += [f"  {mistake['mistake']:<8}{_place(mistake)}" for mistake in check["mistakes"]]
    verdict = "holds" if facts["holds"] else "falls short:\n" + "\n".join(f"  {line}" for line in facts["short"])
    return "\n".join([*lines, "", f"{facts['files']} files, {facts['clips']} clips: {verdict}"])


def _score(score: Row | None) -> str:
    return f"{score['value']:.3f} [{score['low']:.2f}, {score['high']:.2f}] {score['n']}" if score else "-"


def _place(mistake: Row) -> str:
    start, end = mistake["start_s"], mistake["end_s"]
    span = f"{start:.2f} s" if math.isclose(start, end) else f"{start:.2f}-{end:.2f} s"
    value = "" if mistake["value"] is None else f"  value {mistake['value']:.3g}"
    detail = f"  {mistake['detail']}" if mistake["detail"] else ""
    return f"{mistake['uri']}  {span}{value}{detail}"
