"""What a micro-batch costs on one worker: seconds and memory, linear in its clips, with numbers of its own for each bucket.

They come from a count of floating-point operations, from measurements that a few unknowns are fitted to, or from the
recipe. Nothing is run here.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from pydantic import Field

from kineograph.config import Config
from kineograph.errors import UserError
from kineograph.media.geometry import Bucket

GIB = 2**30
NOMINAL_RATE = 1e14
"""FLOP/s of a worker where nobody has said better: what large models reach on one GPU, about."""


class KnownCost(Config):
    """What a recipe says of a bucket."""

    seconds: float = Field(gt=0)
    """Of one clip, forward and backward, on one worker."""
    overhead_s: float | None = Field(None, ge=0)
    """Seconds that a micro-batch takes besides its clips'; none: as the source says."""
    gib: float | None = Field(None, gt=0)
    """What one clip keeps for the backward pass; none: as the source says."""


class CostConfig(Config):
    """Where the costs of buckets come from. A run keeps those that it was started with."""

    source: Literal["flops", "measured"] = "flops"
    """flops: counted, and in proportion right for a model that keeps its device busy. measured: some buckets are run before
    the first step, and the rest follows from their operations and tokens."""
    table: dict[str, KnownCost] = Field(default_factory=dict)
    """Numbers for buckets by their name, HEIGHTxWIDTHxFRAMES, in place of those of the source."""


@dataclass(frozen=True)
class Measurement:
    """A micro-batch that was run."""

    bucket: Bucket
    clips: int
    seconds: float
    """Forward and backward."""
    bytes: float = 0.0
    """Kept for the backward pass; 0 where that was not measured."""


@dataclass(frozen=True)
class BucketCost:
    """Of a micro-batch of one bucket."""

    overhead_s: float
    """Seconds whatever its clips are."""
    clip_s: float
    """Seconds of each clip; above 0."""
    overhead_bytes: float = 0.0
    """Bytes for the backward pass whatever its clips are."""
    clip_bytes: float = 0.0
    """Bytes of each clip; 0 where they are not known."""


@dataclass(frozen=True)
class CostModel:
    """The costs of every bucket of a run."""

    buckets: Mapping[Bucket, BucketCost]

    @classmethod
    def from_flops(
        cls, flops_per_clip: Mapping[Bucket, float], rate: float = NOMINAL_RATE, overhead_s: float = 0.0
    ) -> CostModel:
        """Seconds of so many operations at ``rate`` (FLOP/s), and ``overhead_s`` for each micro-batch; no memory."""
        return cls({bucket: BucketCost(overhead_s, flops / rate) for bucket, flops in flops_per_clip.items()})

    def seconds(self, bucket: Bucket, clips: int) -> float:
        """Forward and backward of ``clips`` clips at once."""
        cost = self.buckets[bucket]
        return cost.overhead_s + cost.clip_s * clips

    def bytes(self, bucket: Bucket, clips: int) -> float:
        """What ``clips`` clips at once keep for the backward pass; 0 where it is not known."""
        cost = self.buckets[bucket]
        return cost.overhead_bytes + cost.clip_bytes * clips

    def clips_in(self, bucket: Bucket, seconds: float) -> int:
        """How many clips at once take ``seconds``, to the nearest; perhaps 0."""
        cost = self.buckets[bucket]
        return max(0, round((seconds - cost.overhead_s) / cost.clip_s))

    def clips_within(self, bucket: Bucket, bytes: float) -> int:
        """How many clips at once keep no more than ``bytes``; their bytes must be known. Perhaps 0."""
        cost = self.buckets[bucket]
        return max(0, int((bytes - cost.overhead_bytes) / cost.clip_bytes))

    def with_table(self, table: Mapping[str, KnownCost]) -> CostModel:
        """These costs with what a recipe says in their place. Raises UserError for a name that is no bucket's."""
        names = {bucket.name: bucket for bucket in self.buckets}
        buckets = dict(self.buckets)
        for name, known in table.items():
            if name not in names:
                nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
                raise UserError(f"costs.table: no bucket is called {name!r}; did you mean {nearest[0]!r}?")
            cost = replace(buckets[names[name]], clip_s=known.seconds)
            if known.overhead_s is not None:
                cost = replace(cost, overhead_s=known.overhead_s)
            if known.gib is not None:
                cost = replace(cost, overhead_bytes=0.0, clip_bytes=known.gib * GIB)
            buckets[names[name]] = cost
        return CostModel(buckets)

    def to_json(self) -> dict[str, Any]:
        """For JSON, which keeps every bit of a float."""
        return {bucket.name: asdict(cost) for bucket, cost in self.buckets.items()}

    @classmethod
    def from_json(cls, costs: Mapping[str, Any]) -> CostModel:
        """What :meth:`to_json` gave."""
        return cls({Bucket.parse(name): BucketCost(**cost) for name, cost in costs.items()})


def fit(
    measurements: Sequence[Measurement],
    flops_per_clip: Mapping[Bucket, float],
    tokens: Mapping[Bucket, int],
    rate: float = NOMINAL_RATE,
) -> CostModel:
    """Costs of all buckets from measurements of some.

    Seconds are fitted as a + clips·(b·FLOPs + c·tokens), the last for what memory bounds, and bytes as m + clips·k·tokens,
    no unknown below 0, by least squares of the relative errors. A bucket that was measured with two numbers of clips or
    more has numbers of its own, where they make sense. Without measurements it is FLOPs at ``rate`` (FLOP/s).
    """
    if not measurements:
        return CostModel.from_flops(flops_per_clip, rate)
    time = _fit_line(
        [(1.0, m.clips * flops_per_clip[m.bucket], m.clips * tokens[m.bucket]) for m in measurements],
        [m.seconds for m in measurements],
    )
    kept = [m for m in measurements if m.bytes > 0]
    memory = _fit_line([(1.0, m.clips * tokens[m.bucket]) for m in kept], [m.bytes for m in kept])
    buckets = {}
    for bucket, flops in flops_per_clip.items():
        clip_s = time[1] * flops + time[2] * tokens[bucket]
        overhead_s, clip_s = _own_line([(m.clips, m.seconds) for m in measurements if m.bucket == bucket]) or (
            time[0],
            clip_s,
        )
        overhead_bytes, clip_bytes = _own_line([(m.clips, m.bytes) for m in kept if m.bucket == bucket]) or (
            memory[0],
            memory[1] * tokens[bucket],
        )
        buckets[bucket] = BucketCost(overhead_s, clip_s, overhead_bytes, clip_bytes)
    return CostModel(buckets)


def _own_line(points: Sequence[tuple[int, float]]) -> tuple[float, float] | None:
    """Overhead and slope of a bucket's own points (clips, value); None where they are too few."""
    if len({clips for clips, _ in points}) < 2:
        return None
    overhead, slope = _fit_line([(1.0, clips) for clips, _ in points], [value for _, value in points])
    return overhead, slope


def _fit_line(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """Coefficients of ``rows``, the first being the overhead's, that give about ``values`` (above 0); zeros without any.

    Where the overhead would explain all, so that clips were free, there is none.
    """
    if not rows:
        return [0.0, 0.0]
    relative = np.array(rows) / np.array(values)[:, None]
    found = _non_negative(relative)
    if not found[1:].any():
        found = np.concatenate([np.zeros(1), _non_negative(relative[:, 1:])])
    return [float(coefficient) for coefficient in found]


def _non_negative(columns: np.ndarray) -> np.ndarray:
    """The x >= 0 with the least |columns·x - 1|²: the best of all choices of columns whose own solution has no negative."""
    size = columns.shape[1]
    norms = np.linalg.norm(columns, axis=0)
    scale = np.where(norms > 0, norms, 1.0)
    best, least = np.zeros(size), float(len(columns))
    for chosen in _subsets(size):
        part = columns[:, chosen] / scale[chosen]
        if np.linalg.matrix_rank(part) < len(chosen):
            continue
        solution = np.linalg.lstsq(part, np.ones(len(columns)), rcond=None)[0]
        error = float(((part @ solution - 1) ** 2).sum())
        if (solution >= 0).all() and error < least:
            best, least = np.zeros(size), error
            best[chosen] = solution / scale[chosen]
    return best


def _subsets(size: int) -> Iterable[list[int]]:
    """All choices of some of ``size`` things, small ones first."""
    for count in range(1, size + 1):
        yield from (list(chosen) for chosen in itertools.combinations(range(size), count))
