"""Shots, and the clips that part a source exactly: every frame is in one clip, also those that will be
rejected."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from pipelines.data.config import Clips, Cuts
from pipelines.data.signals import Analysis


@dataclass(frozen=True)
class Span:
    """Frames [start, end) of shot number ``shot``."""

    shot: int
    start: int
    end: int


def find_cuts(analysis: Analysis, cuts: Cuts) -> np.ndarray:
    """Indices of the frames that start a new shot, ascending, without 0.

    A cut is a frame whose difference, or the part of it that no motion explains, passes the floor and is a
    multiple of its neighbours': fast motion is large in the neighbours too.
    """
    is_cut = _peaks(analysis.difference, cuts) | _peaks(analysis.palette, cuts)
    return np.flatnonzero(is_cut)


def _peaks(scores: np.ndarray, cuts: Cuts) -> np.ndarray:
    """Which of ``scores`` (frames,) pass the floor and the ratio to their neighbours; never the first."""
    scores = scores.astype(np.float64)
    count, window = len(scores), cuts.window
    scores[0] = np.nan  # it has no frame before
    padded = np.pad(scores, window, constant_values=np.nan)
    around = np.stack([padded[window + k : window + k + count] for k in range(-window, window + 1) if k])
    present = ~np.isnan(around)
    neighbours = np.where(present, around, 0).sum(axis=0) / np.maximum(present.sum(axis=0), 1)
    return (scores >= cuts.floor) & (scores >= cuts.ratio * neighbours)


def split(analysis: Analysis, cuts: Cuts, clips: Clips) -> list[Span]:
    """The spans that part the source, in order. An image is one span."""
    if analysis.is_image:
        return [Span(0, 0, 1)]
    edges = [0, *find_cuts(analysis, cuts).tolist(), analysis.frames]
    spans = []
    for shot in range(len(edges) - 1):
        for start, end in windows(analysis.times, edges[shot], edges[shot + 1], clips):
            spans.append(Span(shot, start, end))
    return spans


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
