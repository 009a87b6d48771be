"""What a whole run will take, from a sample of its sources that went through the real pipeline.

Which sources: images and videos apart, one source of each stretch of equal √bytes, drawn with a chance in proportion
to it. √bytes is the best such size when both the cost of a source in the sample and the spread of what it tells grow
with its bytes (Cochran 1977, Sampling Techniques, 5.5 and 9A.4).

What they tell: a ratio to bytes for everything that adds up over sources, each source weighing as much as the number of
unseen ones that it stands for, so that the ratio is theirs (Cochran, ch. 6). How sure: the studentised bootstrap (Efron
and Tibshirani 1993, ch. 12.5), whose spread also holds that of the sources that were not seen.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from kineograph.config import Config
from kineograph.progress import duration

Row = dict[str, Any]

TOKENS_PER_S = 28_000.0
TOKENS_PER_S_SOURCE = "Open-Sora's STDiT-XL/2 at 16x256x256 on H800 (its docs/acceleration.md)"

STAGES = ("analysis_s", "score_s", "encode_s")
"""Where the work of a source goes."""
ADDS_UP = (*STAGES, "seconds", "clips", "kept_s", "shard_bytes", "work_bytes", "tokens")
"""What is measured of a source and sums over sources."""

LEAST_OF_A_KIND = 4
"""Sources of each media type in a sample, where there are as many. Of fewer no interval is given: that of three held the
truth in 75 of 100 trials that should have been 90, that of four in 87."""


class Estimation(Config):
    """How a run is estimated from a sample of its sources."""

    sources: int = Field(24, ge=1)
    """Sources that are worked on."""
    seed: int = 0
    """Of the choice of sources, and of the bootstrap."""
    confidence: float = Field(0.9, gt=0, lt=1)
    """Share of estimates whose interval shall hold the truth."""
    resamples: int = Field(2000, ge=100)
    """Of the bootstrap."""
    startup_s: float = Field(15.0, ge=0)
    """Seconds before the first source is worked on and after the last: Ray's start, listing, the manifest."""
    tokens_per_s: float = Field(TOKENS_PER_S, gt=0)
    """Latent tokens a second that one GPU trains on, for the length of an epoch; 28,000 is Open-Sora's STDiT-XL/2 at
    16x256x256 on an H800 (its docs/acceleration.md)."""


@dataclass(frozen=True)
class PopulationItem:
    """A source as listed: nothing of it was read."""

    uri: str
    bytes: int
    media_type: str
    """image or video, by its extension."""


@dataclass(frozen=True)
class SampleCost:
    """A source after the whole pipeline. All zeros but the times, where nothing of it is kept."""

    uri: str
    bytes: int
    media_type: str
    """As of its PopulationItem: by its extension."""
    analysis_s: float
    """Core seconds of the analysis."""
    encode_s: float
    """Core seconds of writing its clips."""
    seconds: float
    """Of input."""
    clips: int
    """Kept."""
    kept_s: float
    """Seconds that the kept clips cover in their buckets."""
    shard_bytes: int
    """Its part of the shards."""
    tokens: int = 0
    """Latent tokens of its kept clips."""
    score_s: float = 0.0
    """Worker seconds of models on its clips: scores and captions."""
    work_bytes: int = 0
    """Its part of what the run directory holds besides: stored analysis, samples, encoded clips."""


def choose_sample(population: Sequence[PopulationItem], n: int, seed: int = 0) -> list[PopulationItem]:
    """``n`` sources, sorted by uri, that stand for all: the same ones in whatever order the population is given.

    At least LEAST_OF_A_KIND of each media type, so it can be a few more than ``n``.
    """
    kinds: dict[str, list[PopulationItem]] = {}
    for item in population:
        kinds.setdefault(item.media_type, []).append(item)
    sizes = {kind: sum(map(_size, items)) for kind, items in kinds.items()}
    shares = {k: max(round(n * size / sum(sizes.values())), min(LEAST_OF_A_KIND, n)) for k, size in sizes.items()}
    # What one kind is too few for, the other is asked for.
    spare = sum(max(0, shares[kind] - len(items)) for kind, items in kinds.items())
    chosen = [item for kind, items in kinds.items() for item in _spread(items, shares[kind] + spare, seed)]
    return sorted(chosen, key=lambda item: item.uri)


def extrapolate(
    sample: Sequence[SampleCost],
    population: Sequence[PopulationItem],
    workers: int,
    config: Estimation | None = None,
    free_bytes: int | None = None,
) -> Row:
    """The whole run: work, wall time, disk, what is kept and the GPU time of an epoch, each with an interval.

    ``population`` is all sources, those of the sample among them. An estimate is {value, low, high}; low and high are
    None where fewer than LEAST_OF_A_KIND sources of a media type were seen. On simulated files with a long tail of
    sizes, 90% intervals of 8 to 64 sources held the truth in 86 to 88% of trials. Wall time is work over ``workers``
    plus the start, and no less than the largest source takes. Raises ValueError on an empty sample or no workers.
    """
    config = config or Estimation()
    if not sample or workers < 1:
        raise ValueError("an estimate needs a sample of at least one source, and a worker")
    seen = {cost.uri for cost in sample}
    rest = [item for item in population if item.uri not in seen]
    estimate = _Estimator(sample, rest, config)
    work = estimate.of(*STAGES)
    longest = _longest(sample, rest)
    tokens = estimate.of("tokens")
    disk = estimate.of("shard_bytes", "work_bytes")
    return {
        "sources": len(seen) + len(rest),
        "bytes": sum(cost.bytes for cost in sample) + sum(item.bytes for item in rest),
        "sampled": len(sample),
        "sampled_bytes": sum(cost.bytes for cost in sample),
        "workers": workers,
        "confidence": config.confidence,
        "seed": config.seed,
        "work_s": work,
        "stages": {stage: estimate.of(stage) for stage in STAGES},
        "wall_s": _each(work, lambda s: config.startup_s + max(s / workers, longest)),
        "disk_bytes": disk,
        "shard_bytes": estimate.of("shard_bytes"),
        "free_bytes": free_bytes,
        "input_hours": _each(estimate.of("seconds"), lambda s: s / 3600),
        "kept_hours": _each(estimate.of("kept_s"), lambda s: s / 3600),
        "clips": estimate.of("clips"),
        "tokens": tokens,
        "gpu_hours": _each(tokens, lambda t: t / config.tokens_per_s / 3600),
        "tokens_per_s": config.tokens_per_s,
        "tokens_per_s_source": TOKENS_PER_S_SOURCE if config.tokens_per_s == TOKENS_PER_S else "the recipe",
        "notes": _notes(estimate.unseen_spread, longest, work["value"] / workers, disk, free_bytes),
    }


def estimate_text(facts: Row) -> str:
    """The estimate in lines, value first and its interval after it."""
    sure = f"{100 * facts['confidence']:.0f}%"
    stages = ", ".join(
        f"{name.removesuffix('_s')} {duration(e['value'])}" for name, e in facts["stages"].items() if e["value"] > 0
    )
    throughput = f"{facts['tokens_per_s']:,.0f} tokens/s a GPU, {facts['tokens_per_s_source']}"
    lines = [
        f"estimate from {facts['sampled']} of {facts['sources']} sources "
        f"({_bytes(facts['sampled_bytes'])} of {_bytes(facts['bytes'])}); in brackets {sure} intervals",
        f"time     {_shown(facts['wall_s'], duration)} on {facts['workers']} workers",
        f"work     {_shown(facts['work_s'], duration)} of one core: {stages}",
        f"disk     {_shown(facts['disk_bytes'], _bytes)}, shards {_shown(facts['shard_bytes'], _bytes)}",
        f"kept     {_shown(facts['kept_hours'], _hours)} of {_shown(facts['input_hours'], _hours)}, "
        f"{_shown(facts['clips'], _number)} clips",
        f"epoch    {_shown(facts['gpu_hours'], _hours)} of one GPU: {_shown(facts['tokens'], _number)} tokens",
        f"         at {throughput}",
    ]
    return "\n".join([*lines, *(f"note: {note}" for note in facts["notes"])])


class _Estimator:
    """The totals of ADDS_UP and their bootstrap, by media type; any sum of them is estimated by :meth:`of`."""

    def __init__(self, sample: Sequence[SampleCost], rest: Sequence[PopulationItem], config: Estimation) -> None:
        self.sample, self.confidence = sample, config.confidence
        self.unseen_spread: list[str] = []
        """Media types of which too few were seen to know their spread."""
        rng = np.random.default_rng(config.seed)
        self.strata = []
        for kind in sorted({item.media_type for item in rest}):
            alike = [cost for cost in sample if cost.media_type == kind]
            if len(alike) < LEAST_OF_A_KIND:
                self.unseen_spread.append(kind)
            unseen = np.array([max(1, item.bytes) for item in rest if item.media_type == kind], float)
            # What is larger than all that was not seen was chosen for certain, and stands for itself alone.
            typical = [cost for cost in alike if cost.bytes <= unseen.max()]
            costs = typical if len(typical) >= LEAST_OF_A_KIND else alike or list(sample)
            counts = rng.multinomial(len(costs), np.full(len(costs), 1 / len(costs)), size=config.resamples)
            self.strata.append((costs, counts, unseen))

    def of(self, *keys: str) -> Row:
        """The sum of ``keys`` over all sources: {value, low, high}."""
        known = sum(float(getattr(cost, key)) for cost in self.sample for key in keys)
        total, variance = 0.0, 0.0
        shift: Any = 0.0
        spread: Any = 0.0
        for costs, counts, unseen in self.strata:
            values = np.array([sum(float(getattr(cost, key)) for key in keys) for cost in costs])
            sizes = np.array([max(1, cost.bytes) for cost in costs], float)
            part = _ratio_total(values, sizes, counts, unseen)
            total, variance = total + part[0], variance + part[1]
            shift, spread = shift + part[2], spread + part[3]
        low: float | None = total
        high: float | None = total
        if self.unseen_spread:
            low = high = None
        elif variance > 0:
            # Resamples of a single source have no spread to be studentised by.
            valid = spread > 1e-12 * total**2
            pivots = shift[valid] / np.sqrt(spread[valid])
            tails = (1 + self.confidence) / 2, (1 - self.confidence) / 2
            upper, lower = np.quantile(pivots, tails) if valid.any() else (0.0, 0.0)
            low, high = max(0.0, total - upper * math.sqrt(variance)), total - lower * math.sqrt(variance)
        return {
            "value": known + total,
            "low": None if low is None else known + min(low, total),
            "high": None if high is None else known + max(high, total),
        }


def _ratio_total(values: np.ndarray, sizes: np.ndarray, counts: np.ndarray, unseen: np.ndarray) -> tuple[Any, ...]:
    """The total of ``unseen`` sources (bytes), the variance of its error, and for every resample (row of ``counts``)
    the shift of the total and the variance of the ratio's part of it.

    ``values`` and ``sizes`` (bytes) are those of the sample.
    """
    n, rest = len(values), unseen.sum()
    roots = np.sqrt(sizes)
    # How many of the unseen a seen one stands for: one over its chance of being seen, less itself.
    stands_for = np.maximum((roots.sum() + np.sqrt(unseen).sum()) / (n * roots) - 1, 1e-3)
    weighted, weights = stands_for * values, stands_for * sizes
    ratio = weighted.sum() / weights.sum()
    errors = weighted - ratio * weights
    correction = n / max(1, n - 1)
    of_ratio = correction * (rest / weights.sum()) ** 2 * (errors**2).sum()
    # Of the sources not seen: each has an error of its own, estimated from those seen.
    of_rest = correction * (errors**2 / stands_for).sum()
    sums = counts @ weights
    ratios = (counts @ weighted) / sums
    squares = counts @ weighted**2 - 2 * ratios * (counts @ (weighted * weights)) + ratios**2 * (counts @ weights**2)
    spread = correction * (rest / sums) ** 2 * np.maximum(squares, 0.0)
    return ratio * rest, of_ratio + of_rest, (ratios - ratio) * rest, spread


def _size(item: PopulationItem) -> float:
    return math.sqrt(max(1, item.bytes))


def _spread(items: list[PopulationItem], n: int, seed: int) -> list[PopulationItem]:
    """``n`` of ``items``: the ones that fill a stretch of √bytes by themselves, and one of each other stretch."""
    items = sorted(items, key=lambda item: (item.bytes, item.uri))
    if len(items) <= n:
        return items
    certain: list[PopulationItem] = []
    whole, begin = sum(map(_size, items)), 0.0
    while n and _size(items[-1]) >= whole / n:
        certain.append(items.pop())
        whole, n = whole - _size(certain[-1]), n - 1
    drawn: dict[int, tuple[float, PopulationItem]] = {}
    for item in items if n else []:
        stretch = min(n - 1, int((begin + _size(item) / 2) / whole * n))
        begin += _size(item)
        # The least of exponential waiting times: a draw with a chance in proportion to √bytes.
        wait = -math.log(_uniform(seed, item.uri)) / _size(item)
        drawn[stretch] = min(drawn.get(stretch, (math.inf, item)), (wait, item), key=lambda pair: pair[0])
    return certain + [item for _, item in drawn.values()]


def _uniform(seed: int, uri: str) -> float:
    """A number in (0, 1) that belongs to ``uri``."""
    digest = hashlib.blake2b(f"{seed}\x1f{uri}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") + 0.5) / 2**64


def _longest(sample: Sequence[SampleCost], rest: Sequence[PopulationItem]) -> float:
    """Seconds of the source that takes longest: seen, or the largest of the others at the sample's ratio."""
    seconds = [sum(getattr(cost, stage) for stage in STAGES) for cost in sample]
    per_byte = sum(seconds) / max(1, sum(cost.bytes for cost in sample))
    return max(*seconds, per_byte * max((item.bytes for item in rest), default=0), 0.0)


def _notes(kinds: list[str], longest: float, share: float, disk: Row, free_bytes: int | None) -> list[str]:
    notes = [f"too few {kind}s were seen to say how sure this is: sample more sources" for kind in kinds]
    if longest > share:
        notes.append(f"the largest source alone takes about {duration(longest)}: more workers will not help")
    most = disk["high"] if disk["high"] is not None else disk["value"]
    if free_bytes is not None and most > free_bytes:
        notes.append(f"the disk has {_bytes(free_bytes)} free, and up to {_bytes(most)} may be written")
    return notes


def _each(estimate: Row, change: Any) -> Row:
    return {key: None if value is None else change(value) for key, value in estimate.items()}


def _shown(estimate: Row, show: Any) -> str:
    if estimate["low"] is None:
        return f"{show(estimate['value'])} [?]"
    return f"{show(estimate['value'])} [{show(estimate['low'])} .. {show(estimate['high'])}]"


def _hours(hours: float) -> str:
    return duration(3600 * hours) if hours < 100 else f"{hours:,.0f}h"


def _number(number: float) -> str:
    return f"{number:,.0f}" if number < 1e6 else f"{number / 1e6:,.3g}M" if number < 1e9 else f"{number / 1e9:,.3g}G"


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}" if size < 1000 else f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"
