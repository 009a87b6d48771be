"""Shots, and the clips that part a source exactly: every frame is in one clip, also those that will be
rejected."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from kineograph.store.schema import Reason
from pipelines.data.config import Clips, Cuts
from pipelines.data.signals import FLASH_STEP, Analysis


@dataclass(frozen=True)
class Span:
    """Frames [start, end) of shot number ``shot``, or of what lies between or beyond shots."""

    shot: int
    start: int
    end: int
    reason: Reason | None = None
    """Why it can be no clip: ``transition`` or ``outside_span``."""


def find_cuts(analysis: Analysis, cuts: Cuts) -> np.ndarray:
    """Indices of the frames that start a new shot, ascending, without 0.

    A cut is a frame whose difference, or the part of it that no motion explains, passes the floor and is a
    multiple of its neighbours': fast motion is large in the neighbours too. A picture that is back at once was a
    flash; its edges are neither cuts nor neighbours that a cut is held against.
    """
    layout = analysis.layout.astype(np.int16)
    jumps = np.abs(np.diff(analysis.luma.astype(np.float32), prepend=analysis.luma[:1])) >= FLASH_STEP
    flashed = np.zeros(analysis.frames, bool)
    for frame in np.flatnonzero(jumps & (analysis.difference >= cuts.floor)).tolist():
        flashed[frame] = _is_flash(frame, layout, analysis.times, cuts)
    is_cut = _peaks(analysis.difference, flashed, cuts) | _peaks(analysis.palette, flashed, cuts)
    found = [frame for frame in np.flatnonzero(is_cut).tolist() if not _is_flash(frame, layout, analysis.times, cuts)]
    return np.array(found, np.int64)


def _is_flash(frame: int, layout: np.ndarray, times: np.ndarray, cuts: Cuts) -> bool:
    """Whether the picture before ``frame`` is there again soon after it, or the picture at it was there shortly
    before. ``layout``: int16 (frames, cells)."""
    if not cuts.flash_seconds:
        return False
    since, until = np.searchsorted(times, times[frame] + cuts.flash_seconds * np.array([-1.0, 1.0]))
    later, earlier = layout[frame : int(until) + 1], layout[int(since) : frame][::-1]
    for others, picture in ((later, layout[frame - 1]), (earlier, layout[frame])):
        away = np.abs(others - picture).mean(axis=1) > cuts.flash_level
        if len(away) and away[0] and not away.all():
            return True
    return False


def _peaks(scores: np.ndarray, flashed: np.ndarray, cuts: Cuts) -> np.ndarray:
    """Which of ``scores`` (frames,) pass the floor and the ratio to their neighbours that are no flashes; never the
    first."""
    scores = scores.astype(np.float64)
    count, window = len(scores), cuts.window
    scores[0] = np.nan  # it has no frame before
    padded = np.pad(np.where(flashed, np.nan, scores), window, constant_values=np.nan)
    around = np.stack([padded[window + k : window + k + count] for k in range(-window, window + 1) if k])
    present = ~np.isnan(around)
    neighbours = np.where(present, around, 0).sum(axis=0) / np.maximum(present.sum(axis=0), 1)
    return (scores >= cuts.floor) & (scores >= cuts.ratio * neighbours)


def split(
    analysis: Analysis,
    cuts: Cuts,
    clips: Clips,
    transitions: Sequence[tuple[int, int]] = (),
    spans: Sequence[tuple[float, float | None]] = (),
) -> list[Span]:
    """The spans that part the source, in order. An image is one span.

    Args:
        transitions: frames [start, end) of gradual transitions; what lies before and after is in different shots.
        spans: the seconds that may be used; none means all.
    """
    if analysis.is_image:
        return [Span(0, 0, 1)]
    frames = analysis.frames
    fate = np.zeros(frames, np.int8)  # of each frame: 0 in a shot, 1 transition, 2 outside the spans
    for start, end in transitions:
        fate[start:end] = 1
    fate[_outside(analysis.times, spans)] = 2
    starts = np.zeros(frames, bool)
    starts[0] = True
    starts[find_cuts(analysis, cuts)] = True
    starts[1:] |= fate[1:] != fate[:-1]
    for begin_s, _ in spans:  # neighbouring spans of a manifest stay apart
        starts[min(int(np.searchsorted(analysis.times, begin_s - 1e-6)), frames - 1)] = True
    edges = [*np.flatnonzero(starts).tolist(), frames]
    parts: list[Span] = []
    shot = 0
    for start, end in pairwise(edges):
        if fate[start]:
            parts.append(Span(shot, start, end, Reason.TRANSITION if fate[start] == 1 else Reason.OUTSIDE_SPAN))
            continue
        parts.extend(Span(shot, a, b) for a, b in windows(analysis.times, start, end, clips))
        shot += 1
    return parts


def _outside(times: np.ndarray, spans: Sequence[tuple[float, float | None]]) -> np.ndarray:
    """Which frames do not lie in any of ``spans`` by the middle of their time: bool (frames,)."""
    middles = (times[:-1] + times[1:]) / 2
    outside = np.full(len(middles), bool(spans))
    for start, end in spans:
        outside[(middles >= start) & (middles < (np.inf if end is None else end))] = False
    return outside


def windows(times: np.ndarray, start: int, end: int, clips: Clips) -> list[tuple[int, int]]:
    """Part the frames [start, end) of a shot into windows of at most about max_seconds.

    Equal windows when each of them is min_seconds long, else whole windows of max_seconds and what is left
    over. ``times`` (frames + 1,) are in seconds.
    """
    seconds = times[end] - times[start]
    count = max(1, math.ceil(seconds / clips.max_seconds - 1e-6))
    length = seconds / count
    longest_frame = float(np.diff(times[start : end + 1]).max())
    if count > 1 and length < clips.min_seconds + longest_frame:
        length = clips.max_seconds
    edges = [start]
    for number in range(1, count):
        # The first frame that starts no earlier: a window is never shorter than asked for because of
        # rounding.
        edge = int(np.searchsorted(times[:end], times[start] + number * length - 1e-6))
        if edges[-1] < edge < end:
            edges.append(edge)
    return list(zip(edges, [*edges[1:], end], strict=True))


def clip_id(source_id: str, span: Span) -> str:
    """Hash of the source's bytes and the span: 32 hex digits."""
    return hashlib.sha256(f"{source_id}:{span.start}:{span.end}".encode()).hexdigest()[:32]
