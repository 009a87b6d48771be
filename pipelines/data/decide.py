"""Decisions: pure functions from stored signals and thresholds to keep, or reject with a reason and the
numbers.

The order is fixed, and the first check that fails names the reason: duration, resolution, black, static,
motion_low, motion_high, no_caption, no_bucket.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kineograph.media.geometry import Bucket, kept_fraction, needs_upscale
from kineograph.store.schema import Reason
from pipelines.data.config import CurateConfig, Filters
from pipelines.data.signals import Signals

# A window is as long as its frames' stamps make it; a bucket may ask for this much more.
TIME_TOLERANCE_S = 1e-3


@dataclass(frozen=True)
class Candidate:
    """What a decision is made from."""

    is_image: bool
    width: int
    height: int
    seconds: float
    signals: Signals
    caption: str


@dataclass(frozen=True)
class Rejection:
    """Why, the value that was measured, and the threshold that it missed."""

    reason: Reason
    value: float
    threshold: float


@dataclass(frozen=True)
class Decision:
    """A bucket, or a rejection."""

    bucket: Bucket | None = None
    rejection: Rejection | None = None


def decide(candidate: Candidate, config: CurateConfig) -> Decision:
    """Keep ``candidate`` in its best bucket, or reject it with the first reason."""
    rejection = next(_rejections(candidate, config), None)
    if rejection is not None:
        return Decision(rejection=rejection)
    bucket = best_bucket(candidate, config)
    if bucket is None:
        return Decision(rejection=_fits_nowhere(candidate, config))
    return Decision(bucket=bucket)


def _rejections(candidate: Candidate, config: CurateConfig) -> Iterator[Rejection]:
    if not candidate.is_image and candidate.seconds < config.clips.min_seconds - TIME_TOLERANCE_S:
        yield Rejection(Reason.DURATION, candidate.seconds, config.clips.min_seconds)
    yield from _filter_rejections(candidate, config.filters)
    if config.captions.require and not candidate.caption:
        yield Rejection(Reason.NO_CAPTION, 0.0, 1.0)


def _filter_rejections(candidate: Candidate, filters: Filters) -> Iterator[Rejection]:
    side = min(candidate.width, candidate.height)
    yield from _below(Reason.RESOLUTION, side, filters.resolution.min)
    yield from _above(Reason.BLACK, candidate.signals.black, filters.black.max)
    yield from _above(Reason.STATIC, candidate.signals.static, filters.static.max)
    yield from _below(Reason.MOTION_LOW, candidate.signals.motion, filters.motion.min)
    yield from _above(Reason.MOTION_HIGH, candidate.signals.motion, filters.motion.max)


def _below(reason: Reason, value: float, least: float | None) -> Iterator[Rejection]:
    # A value that was not measured is NaN and fails no comparison: it rejects nothing.
    if least is not None and value < least:
        yield Rejection(reason, value, least)


def _above(reason: Reason, value: float, most: float | None) -> Iterator[Rejection]:
    if most is not None and value > most:
        yield Rejection(reason, value, most)


def best_bucket(candidate: Candidate, config: CurateConfig) -> Bucket | None:
    """Where the clip keeps most of itself: share of area times share of time.

    No bucket that would enlarge it or ask for more seconds than it has; images go to image buckets and videos
    to the others. On a tie the bucket with more pixels, then the first by name.
    """

    def kept(bucket: Bucket) -> float:
        area = kept_fraction(candidate.width, candidate.height, bucket)
        if bucket.is_image:
            return area
        return area * min(1.0, bucket.seconds(config.buckets.fps) / candidate.seconds)

    fitting = [
        bucket
        for bucket in _of_its_kind(candidate, config)
        if not needs_upscale(candidate.width, candidate.height, bucket)
        and bucket.seconds(config.buckets.fps) <= candidate.seconds + TIME_TOLERANCE_S
    ]
    # Rounded, so that the last bit of a product decides nothing.
    return min(fitting, key=lambda b: (-round(kept(b), 9), -b.height * b.width * b.frames, b.name), default=None)


def _of_its_kind(candidate: Candidate, config: CurateConfig) -> list[Bucket]:
    return [bucket for bucket in config.buckets.parsed if bucket.is_image == candidate.is_image]


def _fits_nowhere(candidate: Candidate, config: CurateConfig) -> Rejection:
    """Too short for every bucket (in seconds), else too small for those it is long enough for (short side,
    pixels)."""
    buckets = _of_its_kind(candidate, config)
    least_seconds = min((b.seconds(config.buckets.fps) for b in buckets), default=float("nan"))
    if candidate.seconds + TIME_TOLERANCE_S < least_seconds:
        return Rejection(Reason.NO_BUCKET, candidate.seconds, least_seconds)
    least_side = min((min(b.height, b.width) for b in buckets), default=float("nan"))
    return Rejection(Reason.NO_BUCKET, min(candidate.width, candidate.height), least_side)
