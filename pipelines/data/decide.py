"""Decisions: pure functions from a clip's stored signals and thresholds to what it fails, in a fixed order.

The order is that of :class:`kineograph.store.schema.Reason`. The first check that fails names the reason; the
others stay in ``failed``, so that one can see what a threshold costs by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kineograph.media.geometry import TIME_TOLERANCE_S, assign, why_nowhere
from kineograph.store.schema import Reason
from pipelines.data.config import CurateConfig
from pipelines.data.filters import Filters

Row = dict[str, Any]


@dataclass(frozen=True)
class Failed:
    """A check that a clip fails: why, the value that was measured, and the threshold that it missed."""

    reason: Reason
    value: float
    threshold: float


def decide(clip: Row, config: CurateConfig) -> tuple[list[Failed], str]:
    """All that ``clip``, a measured row, fails up to its bucket, and the name of the bucket ("" when it fails).

    What needs other clips (duplicates) or a caption is checked later.
    """
    failed = list(_failures(clip, config))
    _, _, width, height = clip["content"]
    seconds, image = clip["end_s"] - clip["start_s"], clip["media_type"] == "image"
    buckets, fps = config.buckets.parsed, config.buckets.fps
    bucket = assign(width, height, seconds, image, buckets, fps)
    if bucket is None:
        value, threshold = why_nowhere(width, height, seconds, image, buckets, fps)
        failed.append(Failed(Reason.NO_BUCKET, value, threshold))
    return failed, bucket.name if bucket and not failed else ""


def caption_failures(clip: Row, config: CurateConfig) -> Iterator[Failed]:
    """What is wrong with the caption of ``clip``."""
    if config.captions.require and not clip["caption"]:
        yield Failed(Reason.NO_CAPTION, 0.0, 1.0)
    yield from _below(Reason.CAPTION_MATCH, clip["caption_match"], config.filters.caption_match.min)


def _failures(clip: Row, config: CurateConfig) -> Iterator[Failed]:
    if clip["part"]:  # what is no clip: a transition, or outside the spans that were asked for
        yield Failed(Reason(clip["part"]), clip["end_s"] - clip["start_s"], 0.0)
    seconds = clip["end_s"] - clip["start_s"]
    if clip["media_type"] != "image" and seconds < config.clips.min_seconds - TIME_TOLERANCE_S:
        yield Failed(Reason.DURATION, seconds, config.clips.min_seconds)
    yield from _filter_failures(clip, config.filters)


def _filter_failures(clip: Row, filters: Filters) -> Iterator[Failed]:
    _, _, width, height = clip["content"]
    yield from _below(Reason.RESOLUTION, min(width, height), filters.resolution.min)
    yield from _below(Reason.ASPECT, width / height, filters.aspect.min)
    yield from _above(Reason.ASPECT, width / height, filters.aspect.max)
    if clip["media_type"] != "image":
        yield from _below(Reason.FPS, clip["fps"], filters.fps.min)
    yield from _above(Reason.BLACK, clip["black"], filters.black.max)
    yield from _above(Reason.STATIC, clip["static"], filters.static.max)
    yield from _below(Reason.MOTION_LOW, clip["motion"], filters.motion.min)
    yield from _above(Reason.MOTION_HIGH, clip["motion"], filters.motion.max)
    yield from _above(Reason.BLUR, clip["blur"], filters.blur.max)
    yield from _above(Reason.FLASHING, clip["flashing"], filters.flashing.max)
    yield from _above(Reason.TEXT, clip["text_area"], filters.text.max)
    yield from _above(Reason.UNSAFE, clip["unsafe"], filters.unsafe.max)
    yield from _below(Reason.AESTHETIC, clip["aesthetic"], filters.aesthetic.min)
    yield from _below(Reason.LEARNED, clip["learned"], filters.learned.min)


def _below(reason: Reason, value: float, least: float | None) -> Iterator[Failed]:
    # A value that was not measured is NaN and fails no comparison: it rejects nothing.
    if least is not None and value < least:
        yield Failed(reason, value, least)


def _above(reason: Reason, value: float, most: float | None) -> Iterator[Failed]:
    if most is not None and value > most:
        yield Failed(reason, value, most)
