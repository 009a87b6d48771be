"""The histogram of every measured signal: what was kept, what was lost, and where the threshold lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kineograph.store.schema import Reason
from pipelines.data.report import charts
from pipelines.data.report.columns import INDEX, Clips
from pipelines.data.report.words import Row, interval, number, plural

BINS = 40
LEAST_MOTION = 1e-4
# Widths over heights that people know by name.
ASPECTS = ((9 / 16, "9:16"), (3 / 4, "3:4"), (1.0, "1:1"), (4 / 3, "4:3"), (16 / 9, "16:9"), (2.39, "2.39"))
FEW = 12


@dataclass(frozen=True)
class Signal:
    """A number per clip and how to draw it."""

    column: str
    title: str
    meaning: str
    low: float | None = None
    """Where the axis begins and ends; null: where the data and thresholds do."""
    high: float | None = None
    scale: str = "linear"
    """linear | log | aspect | count"""
    reasons: tuple[Reason, ...] = ()
    """The checks that look at it."""
    section: str = ""
    """Section of the recipe's filters with its thresholds."""


SIGNALS = (
    Signal("seconds", "Duration", "seconds", 0, None, reasons=(Reason.DURATION,), section="duration"),
    Signal("short_side", "Short side", "pixels", 0, reasons=(Reason.RESOLUTION,), section="resolution"),
    Signal("aspect", "Aspect ratio", "width : height", scale="aspect", reasons=(Reason.ASPECT,), section="aspect"),
    Signal("fps", "Frame rate", "frames per second", 0, reasons=(Reason.FPS,), section="fps"),
    Signal("black", "Black", "share of frames", 0, 1, reasons=(Reason.BLACK,), section="black"),
    Signal("static", "Static", "share of repeated frames", 0, 1, reasons=(Reason.STATIC,), section="static"),
    Signal(
        "motion",
        "Motion",
        "diagonals per second",
        scale="log",
        reasons=(Reason.MOTION_LOW, Reason.MOTION_HIGH),
        section="motion",
    ),
    Signal("pan", "Camera motion", "diagonals per second", scale="log", section="pan"),
    Signal("luma", "Luma", "0 black … 1 white", 0, 1, section="luma"),
    Signal("contrast", "Contrast", "deviation of luma", 0, 0.5, section="contrast"),
    Signal("saturation", "Saturation", "0 grey … 1", 0, section="saturation"),
    Signal("blur", "Blur", "0 sharp … 1 blurred", 0, 1, reasons=(Reason.BLUR,), section="blur"),
    Signal(
        "flashing", "Flashing", "most in any second", 0, scale="count", reasons=(Reason.FLASHING,), section="flashing"
    ),
    Signal("text_area", "Text", "share of the picture", 0, reasons=(Reason.TEXT,), section="text"),
    Signal("unsafe", "Unsafe", "score of the safety model", 0, 1, reasons=(Reason.UNSAFE,), section="unsafe"),
    Signal("aesthetic", "Aesthetic", "score, about 1 … 10", reasons=(Reason.AESTHETIC,), section="aesthetic"),
    Signal("learned", "Learned filter", "probability", 0, 1, reasons=(Reason.LEARNED,), section="learned"),
    Signal("caption_match", "Caption match", "cosine", reasons=(Reason.CAPTION_MATCH,), section="caption_match"),
)


def signal_charts(clips: Clips, filters: Row | None) -> list[Row]:
    """A chart for each signal that was measured on any clip."""
    drawn = (_chart(clips, signal, filters or {}) for signal in SIGNALS)
    return [chart for chart in drawn if chart]


def _chart(clips: Clips, signal: Signal, filters: Row) -> Row | None:
    values = clips.signal(signal.column)
    measured = np.isfinite(values)
    if not measured.any():
        return None
    fails = clips.fails[:, [INDEX[reason.value] for reason in signal.reasons]].any(axis=1)
    layers = [
        ("kept", values[measured & clips.kept]),
        ("other", values[measured & ~clips.kept & ~fails]),
        ("fails", values[measured & ~clips.kept & fails]),
    ]
    limits = thresholds(clips, signal, filters)
    values = values[measured]
    axis, bins, ticks = _axis(signal, values, [value for _, value in limits])
    low, median, high = np.quantile(values, (0.05, 0.5, 0.95))
    lost = len(layers[2][1])
    words = [f"median {number(median)}", f"90% within {interval(number(low), number(high))}"]
    lines = [(f"{kind} {number(value)}", _place(signal, kind, value)) for kind, value in limits]
    return {
        **charts.histogram(axis, bins, ticks, layers, lines),
        "id": signal.column,
        "title": signal.title,
        "meaning": signal.meaning,
        "words": " · ".join(words),
        "judged": bool(signal.reasons and (limits or lost)),
        "lost": lost,
        "description": f"Histogram over {plural(len(values), 'clip')}: {len(layers[0][1]):,} kept, {lost:,} fail this "
        f"check, {len(layers[1][1]):,} rejected by another. {', '.join(words)}."
        + "".join(f" Threshold: {kind} {number(value)}." for kind, value in limits),
    }


def thresholds(clips: Clips, signal: Signal, filters: Row) -> list[tuple[str, float]]:
    """("min" | "max", value): as the recipe's filters say; what they do not name, from the rejections."""
    if signal.section in filters:
        section = filters[signal.section] or {}
        return [(kind, float(section[kind])) for kind in ("min", "max") if section.get(kind) is not None]
    found = set()
    for reason in signal.reasons:
        rows = clips.rejected_by(reason)
        for value, limit in np.unique(np.stack([clips.value[rows], clips.threshold[rows]], axis=1), axis=0):
            if np.isfinite(limit) and np.isfinite(value):
                found.add(("min" if value < limit else "max", float(limit)))
    # More than one of a kind: not a threshold of the recipe, and lines for all of them would say nothing.
    kinds = [kind for kind, _ in found]
    return sorted(limit for limit in found if kinds.count(limit[0]) == 1)


def _place(signal: Signal, kind: str, value: float) -> float:
    """Where the line of a threshold goes: of counts, which have a bar each, to the edge between two bars."""
    if signal.scale != "count":
        return value
    return float(np.floor(value) + 1 if kind == "max" else np.ceil(value))


def _axis(
    signal: Signal, values: np.ndarray, limits: Sequence[float]
) -> tuple[charts.Axis, int, Sequence[tuple[float, str]]]:
    if signal.scale == "log":
        most = max(1.0, *values, *limits)
        high = 10.0 ** int(np.ceil(np.log10(min(most, 1e3))))
        return charts.Axis(LEAST_MOTION, high, log=True), BINS, charts.log_ticks(LEAST_MOTION, high)
    if signal.scale == "aspect":
        low = min(0.5, *limits, float(np.quantile(values, 0.005)))
        high = max(2.5, *limits, float(np.quantile(values, 0.995)))
        return charts.Axis(low * 0.95, high * 1.05, log=True), BINS, ASPECTS
    if signal.low is not None and signal.high is not None:
        return charts.Axis(signal.low, signal.high), BINS, charts.linear_ticks(signal.low, signal.high)
    # The last bar holds the few beyond: one giant must not squeeze all others into the first.
    low = signal.low if signal.low is not None else min(*limits, float(np.quantile(values, 0.005)), values.max())
    high = max(*limits, float(np.quantile(values, 0.995)), low)
    if signal.scale == "count":
        bins = int(high) + 2 if high < FEW else FEW
        step = 1 if high < FEW else -(-int(high + 1) // FEW)
        ticks = [(step * (i + 0.5) if step == 1 else step * i, f"{step * i}") for i in range(bins)]
        return charts.Axis(0, step * bins), bins, ticks
    margin = 0.03 * (high - low) or 0.5 * max(1.0, abs(low))
    low, high = (low if signal.low is not None else low - margin), high + margin
    return charts.Axis(low, high), BINS, charts.linear_ticks(low, high)
