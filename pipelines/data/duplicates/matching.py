"""Whether two sources show the same content, and in which seconds: their layouts side by side.

Pictures that look alike are no proof: two takes of one stage, two scenes of one world. Where the picture
moves, the layouts must move together as well; where it stands still, they must be much nearer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipelines.data.duplicates.distance import contrasts, layout_distance
from pipelines.data.duplicates.fingerprint import FingerprintArrays, is_flat

# Seconds on each side over which motion is compared.
MOTION_WINDOW_S = 1.0
# Motion, levels, under which a picture stands still: encoding moves cells by about 1.
STILL_LEVEL = 1.0
# Share of two motions' energy that their difference may have: 0 is the same motion, 1 one that has nothing
# to do with the other.
MAX_DISAGREEMENT = 0.5
# Longest gap that a match bridges, seconds: a cut that falls between two samples.
BRIDGE_S = 0.4
# Samples that a match needs, where the overlap has so many.
LEAST_SAMPLES = 4
# Seconds from which a match needs no strictness: for shorter ones scenes of the synthetic world meet by chance,
# at distances of 3.5 and more (measured on 2100 sources).
CERTAIN_S = 2.0
# Multiple of the limit that a single sample may reach when the mean of its match stays within it.
_SAMPLE_SLACK = 1.5
# Offsets tried around the one voted for, then around the best of these, seconds; and samples tried with.
_SHIFTS = (np.arange(-3, 4) / 8, np.arange(-3, 4) / 32)
_TRIAL_SAMPLES = 32
# Multiple of the limit from which a sample is no match at any offset near the one voted for. At that one the
# fourth best sample of copies has 3.8 at most, that of 99 % of other candidates 13 and more (456 sources).
_TRIAL_SLACK = 2.5


@dataclass(frozen=True)
class Timeline:
    """The fingerprint of a source that lasts ``seconds``, ready to be compared."""

    prints: FingerprintArrays
    seconds: float

    @cached_property
    def contrast(self) -> np.ndarray:
        """Contrast of each sample, levels (n,)."""
        return contrasts(self.prints.layout)

    @property
    def rate(self) -> float:
        """Samples per second."""
        return len(self.prints.frame) / max(self.seconds, 1e-3)


@dataclass(frozen=True)
class Shared:
    """Content that two sources share: seconds [start, end) of ``a`` are [start + offset, end + offset) of ``b``."""

    start: float
    end: float
    offset: float
    distance: float
    """Mean distance of the layouts, levels of 0..255."""

    def reversed(self) -> Shared:
        """The same, seen from ``b``."""
        return Shared(self.start + self.offset, self.end + self.offset, -self.offset, self.distance)


def shared_content(
    a: Timeline, b: Timeline, offsets: Iterable[float], max_distance: float, strict_distance: float
) -> list[Shared]:
    """What ``a`` and ``b`` share at one of ``offsets`` (seconds from a's time to b's), in a's time.

    ``max_distance`` bounds the mean root mean square difference of the layouts, in levels; for images, where nothing
    moves and in matches shorter than CERTAIN_S ``strict_distance`` does.
    """
    if a.rate > b.rate:  # the finer one is interpolated
        found = shared_content(b, a, [-offset for offset in offsets], max_distance, strict_distance)
        return [one.reversed() for one in found]
    shared: list[Shared] = []
    for offset in offsets:
        if shared and covered_seconds([(s.start, s.end) for s in shared]) > 0.95 * min(a.seconds, b.seconds):
            break
        refined = _refine(a, b, offset, max_distance)
        if refined is not None:
            shared += _runs(a, b, refined, max_distance, strict_distance)
    return shared


def covered_seconds(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of ``spans`` (start, end)."""
    total, reached = 0.0, -np.inf
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _refine(a: Timeline, b: Timeline, offset: float, max_distance: float) -> float | None:
    """The best offset near ``offset``, None where the pictures are far apart at it."""
    inside = _overlap(a, b, offset)
    if not len(inside):
        return None
    distance, _ = _compare(a, b, inside, offset)
    evidence = ~a.prints.flat[inside]
    near = inside[(distance <= _TRIAL_SLACK * max_distance) & evidence]
    if len(near) < max(1, min(LEAST_SAMPLES, int(evidence.sum()))):
        return None
    some = near[np.unique(np.linspace(0, len(near) - 1, _TRIAL_SAMPLES).round().astype(int))]
    for shifts in _SHIFTS:
        trials = np.tile(some, len(shifts))
        distance, _ = _compare(a, b, trials, np.repeat(offset + shifts, len(some)))
        score = np.minimum(distance, _TRIAL_SLACK * max_distance).reshape(len(shifts), len(some)).mean(axis=1)
        offset += float(shifts[np.lexsort((np.abs(shifts), score.round(3)))[0]])
    return offset


def _overlap(a: Timeline, b: Timeline, offset: float) -> np.ndarray:
    """The samples of ``a`` that fall within ``b``."""
    there = a.prints.seconds + offset
    slack = 0.5 / min(a.rate, b.rate, 8.0)
    return np.flatnonzero((there >= b.prints.seconds[0] - slack) & (there <= b.prints.seconds[-1] + slack))


def _compare(a: Timeline, b: Timeline, at: np.ndarray, offset: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance of samples ``at`` (m,) of ``a`` from ``b`` at their time, and what b shows there (m, K).

    What ``b`` shows between two samples is the nearest of both and their mixture: a copy at another rate
    repeats and drops frames.
    """
    there = a.prints.seconds[at] + offset
    times = b.prints.seconds
    after = np.searchsorted(times, there).clip(min(1, len(times) - 1), len(times) - 1)
    before = np.maximum(after - 1, 0)
    gap = np.maximum(times[after] - times[before], 1e-6)
    share = ((there - times[before]) / gap).clip(0, 1).astype(np.float32)[:, None]
    mine = a.prints.layout[at].astype(np.float32)
    first, second = b.prints.layout[before].astype(np.float32), b.prints.layout[after].astype(np.float32)
    options = np.stack([first + (second - first) * share, first, second])  # 3 m K
    contrast = np.minimum(a.contrast[at], np.minimum(b.contrast[before], b.contrast[after]))
    distance = layout_distance(options - mine, contrast)
    best, every = distance.argmin(axis=0), np.arange(len(at))
    return distance[best, every], options[best, every]


def _runs(a: Timeline, b: Timeline, offset: float, max_distance: float, strict_distance: float) -> list[Shared]:
    """The stretches of ``a`` that ``b`` shows at ``offset``."""
    at = _overlap(a, b, offset)
    if not len(at):
        return []
    distance, theirs = _compare(a, b, at, offset)
    times, flat = a.prints.seconds[at], a.prints.flat[at]
    motion, disagreement = _motion(times, a.prints.layout[at].astype(np.float64), theirs)
    limit = np.where(motion < STILL_LEVEL, strict_distance, max_distance)
    proof = (distance <= _SAMPLE_SLACK * limit) & ((motion < STILL_LEVEL) | (disagreement <= MAX_DISAGREEMENT)) & ~flat
    agree = np.flatnonzero(proof | (flat & is_flat(theirs)))
    if not len(agree):
        return []
    bridge = max(BRIDGE_S, 1.5 / a.rate)
    parts = np.split(agree, np.flatnonzero(np.diff(times[agree]) > bridge) + 1)
    need = min(LEAST_SAMPLES, int((~flat).sum()))
    edges = np.concatenate([[0.0], (a.prints.seconds[1:] + a.prints.seconds[:-1]) / 2, [a.seconds]])
    found = []
    for part in parts:
        start, end = float(edges[at[part[0]]]), float(edges[at[part[-1]] + 1])
        sure = part[proof[part]]
        if len(sure) < max(1, need):
            continue
        mean = float(distance[sure].mean())
        if mean <= (float(limit[sure].mean()) if end - start >= CERTAIN_S else strict_distance):
            found.append(Shared(start, end, offset, mean))
    return found


def _motion(times: np.ndarray, mine: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much each sample's surroundings move (levels) and the share of it in which the two differ.

    Both are variances over a window of time, so that what stands still in the picture has no say:
    var(mine - theirs) / (var(mine) + var(theirs)).
    """
    count = np.arange(len(times))
    low = np.minimum(np.searchsorted(times, times - MOTION_WINDOW_S), np.maximum(count - 2, 0))
    high = np.maximum(np.searchsorted(times, times + MOTION_WINDOW_S, "right"), np.minimum(count + 3, len(times)))
    both = _variance(mine, low, high) + _variance(theirs, low, high)
    change = _variance(mine - theirs, low, high)
    return np.sqrt(both / 2), change / np.maximum(both, 1e-9)


def _variance(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Mean over the cells of the variance of ``values`` (m, K) over samples [low, high) of each: (m,)."""
    values = values - values.mean(axis=0)
    sums = np.concatenate([np.zeros((1, values.shape[1])), values.cumsum(axis=0)])
    squares = np.concatenate([[0.0], (values**2).mean(axis=1).cumsum()])
    number = (high - low).astype(np.float64)
    mean = (sums[high] - sums[low]) / number[:, None]
    variance: np.ndarray = np.maximum((squares[high] - squares[low]) / number - (mean**2).mean(axis=1), 0)
    return variance
