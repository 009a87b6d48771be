"""Which files a synthetic corpus holds: drawn from the seed alone, before a single frame is rendered.

Every file has random numbers of its own, keyed by (seed, index), so the order and number of the writers
cannot matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from kineograph.config import Config
from kineograph.synth.scene import Scene, caption, sample_scene, still, still_caption

FOREIGN_KINDS = ("text", "ffconcat", "hls", "empty", "zip")
TRUNCATIONS = ("no_index", "partial")
COPIES = ("reencoded", "bars", "shifted", "bars+shifted")
_REENCODE_CRF = (26, 31)
_SHIFT_S = (0.3, 2.5)  # how much later than its original a shifted copy starts
_LEAST_LEFT = 0.6  # share of the original that a shifted copy keeps
_LEAST_LEFT_S = 1.0
_FLASH_RATE = (4.0, 8.0)  # per second; more than three are harmful, by WCAG 2.2 and ITU-R BT.1702
_LEAST_CHANGING_S = 4.0  # shorter, a video shows too little of a flashing scene or of what fades
_FADE_S, _FADE_FRAMES = (0.4, 1.0), 6  # at fewer frames a dissolve is as steep as a cut

SPOILT_SCENES = ("static", "black", "blurred", "text", "flashing")

Share = Field(default=0.04, ge=0, le=1)
Aspect = Literal["1:1", "4:3", "16:9", "9:16", "3:4"]


class BadShares(Config):
    """Share of the corpus, 0..1, that each kind of bad file makes up."""

    exact_duplicate: float = Share
    """The bytes of another file under another name."""
    reencoded_duplicate: float = Share
    """Another video at another size, rate and quality; by turns as it is, with black bars added around it,
    from a later start, and both."""
    static: float = Share
    """A scene in which nothing moves."""
    black: float = Share
    """A stretch of black."""
    letterbox: float = Share
    """Black bars above and below, or at both sides."""
    blurred: float = Share
    """A scene out of focus."""
    text: float = Share
    """Lines of text over a scene."""
    flashing: float = Share
    """A scene whose brightness jumps to and fro four times a second or more."""
    dissolve: float = Field(default=0.0, ge=0, le=1)
    """Two scenes of which one fades into the other."""
    truncated: float = Share
    """A file cut short, which does not open or decodes partly."""
    foreign: float = Share
    """A file that is no video: text, a playlist, nothing, an archive."""


class SynthConfig(Config):
    """A raw corpus with known truth."""

    videos: int = Field(default=60, ge=1)
    """Files to write, of every kind; sidecars are not counted."""
    seed: int = Field(default=0, ge=0)
    """The same seed and settings give the same bytes."""
    min_side: int = Field(default=96, ge=16)
    """Least short side, pixels."""
    max_side: int = Field(default=640, ge=16)
    """Most long side, pixels."""
    aspects: tuple[Aspect, ...] = Field(default=("1:1", "4:3", "16:9", "9:16", "3:4"), min_length=1)
    """Width to height, drawn evenly. A square cut out of 16:9 may lose an object from sight for a second."""
    min_seconds: float = Field(default=1.0, gt=0)
    """Length of the shortest video."""
    max_seconds: float = Field(default=20.0, gt=0)
    """Length of the longest video; lengths are even on a logarithmic scale."""
    max_scenes: int = Field(default=6, ge=1)
    """Most scenes in a video, joined by hard cuts."""
    min_scene_seconds: float = Field(default=1.5, gt=0)
    """Shortest scene of a video that has several."""
    fps: tuple[float, ...] = Field(default=(8, 10, 12, 15, 24, 25, 29.97, 30), min_length=1)
    """Rates that videos are drawn from, frames per second."""
    images: float = Field(default=0.12, ge=0, le=1)
    """Share of still images."""
    two_objects: float = Field(default=0.25, ge=0, le=1)
    """Share of scenes with two objects."""
    textured: float = Field(default=0.5, ge=0, le=1)
    """Share of scenes with a textured background."""
    bad: BadShares = BadShares()
    """Shares of the kinds of bad files."""

    @model_validator(mode="after")
    def _check(self) -> SynthConfig:
        if self.min_seconds > self.max_seconds:
            raise ValueError("min_seconds is more than max_seconds")
        longest = max((_ratio(aspect) for aspect in self.aspects), key=lambda ratio: max(ratio) / min(ratio))
        if self.min_side * max(longest) > self.max_side * min(longest):
            raise ValueError(f"max_side is too small for a frame of {longest[0]}:{longest[1]} and min_side")
        if min(self.fps) <= 0:
            raise ValueError("fps are positive")
        if self.images + sum(self.bad.model_dump().values()) > 1 + 1e-9:
            raise ValueError("the shares of images and of bad files add up to more than 1")
        return self


@dataclass(frozen=True)
class Shot:
    """One scene of a file from ``start`` to ``end``, exact seconds; kind normal, static, black, blurred, text,
    flashing or letterbox.

    ``lead`` is the time of the scene at ``start``: more than 0 where a copy starts within it. Over the last
    ``fade`` seconds it fades into the next.
    """

    scene: Scene
    kind: str
    start: Fraction
    end: Fraction
    lead: Fraction = Fraction(0)
    fade: Fraction = Fraction(0)

    def caption(self, still_image: bool = False) -> str:
        if self.kind == "black":
            return ""
        return still_caption(self.scene) if still_image else caption(self.scene)


@dataclass(frozen=True)
class FilePlan:
    """One file to write. ``fps`` is None for an image; ``detail`` tells variants of a kind apart.

    ``bars`` is the height of each black bar (top and bottom), or the width (both sides), as (x, y) pixels.
    ``offset`` is the time, in seconds of its original, at which a copy starts. ``flash_period`` is the number
    of frames from flash to flash in its flashing scene.
    """

    index: int
    name: str
    kind: str
    seed: int
    width: int = 0
    height: int = 0
    fps: Fraction | None = None
    shots: tuple[Shot, ...] = ()
    crf: int = 20
    detail: str | None = None
    bars: tuple[int, int] = (0, 0)
    duplicate_of: str | None = None
    offset: Fraction = Fraction(0)
    flash_period: int = 0

    @property
    def inner(self) -> tuple[int, int]:
        """Width and height of the picture within the bars."""
        return self.width - 2 * self.bars[0], self.height - 2 * self.bars[1]

    @property
    def num_frames(self) -> int:
        if self.fps is None:
            return len(self.shots)
        return max(1, round(self.shots[-1].end * self.fps)) if self.shots else 0

    def spans(self) -> Iterator[tuple[Shot, int, int]]:
        """Each shot with its first frame and the frame after its last."""
        rate = self.fps or Fraction(1)
        starts = [math.ceil(shot.start * rate) for shot in self.shots]
        yield from zip(self.shots, starts, [*starts[1:], self.num_frames], strict=True)


def plan_corpus(config: SynthConfig) -> list[FilePlan]:
    """The files of the corpus in the order of their names."""
    rng = np.random.default_rng([config.seed, 0])
    kinds = [str(kind) for kind in rng.permutation(_kinds(config))]
    variants: dict[str, int] = {}
    plans = []
    for index, kind in enumerate(kinds):
        drawn = "video" if kind in ("exact_duplicate", "reencoded_duplicate") else kind
        variant = variants[kind] = variants.get(kind, -1) + 1
        plans.append(_plan_file(config, index, drawn, variant))
    copies = [index for index, kind in enumerate(kinds) if kind.endswith("_duplicate")]
    variants.clear()
    for position, index in enumerate(copies):
        kind = kinds[index]
        variant = variants[kind] = variants.get(kind, -1) + 1
        detail = COPIES[variant % len(COPIES)] if kind == "reencoded_duplicate" else None
        originals = [p for p, its_kind in zip(plans, kinds, strict=True) if _may_be_copied(p, its_kind, kind, detail)]
        if originals:  # a corpus too small to have one keeps a plain video in its place
            plans[index] = _copy_of(config, originals[position % len(originals)], index, kind, detail)
    return plans


def _kinds(config: SynthConfig) -> list[str]:
    """The kind of every file, each in its share of the whole by largest remainder."""
    shares = {"image": config.images, **config.bad.model_dump()}
    shares = {"video": max(0.0, 1 - sum(shares.values())), **shares}
    quotas = {kind: share * config.videos for kind, share in shares.items()}
    counts = {kind: int(quota) for kind, quota in quotas.items()}
    by_remainder = sorted(quotas, key=lambda kind: counts[kind] - quotas[kind])
    for kind in by_remainder[: config.videos - sum(counts.values())]:
        counts[kind] += 1
    return [kind for kind, count in counts.items() for _ in range(count)]


def _may_be_copied(plan: FilePlan, kind: str, copy_kind: str, detail: str | None) -> bool:
    if kind == "image":
        return copy_kind == "exact_duplicate"
    return kind == "video" and (detail not in ("shifted", "bars+shifted") or _most_shift(plan) >= _SHIFT_S[0])


def _most_shift(plan: FilePlan) -> float:
    """The latest start in seconds at which a copy still keeps enough of ``plan``."""
    seconds = float(plan.shots[-1].end)
    return min(_SHIFT_S[1], (1 - _LEAST_LEFT) * seconds, seconds - _LEAST_LEFT_S)


def _plan_file(config: SynthConfig, index: int, kind: str, variant: int) -> FilePlan:
    rng = np.random.default_rng([config.seed, 1, index])
    stem, seed = f"source_{index:05d}", int(rng.integers(2**31))
    if kind == "foreign":
        foreign = FOREIGN_KINDS[variant % len(FOREIGN_KINDS)]
        return FilePlan(index, f"{stem}.{'avi' if foreign == 'zip' else 'mp4'}", kind, seed, detail=foreign)
    width, height = _sample_size(rng, config)
    if kind == "image":
        scene = still(_sample(rng, config, None))
        shot = Shot(scene, "normal", Fraction(0), Fraction(0))
        suffix = ("png", "jpg")[variant % 2]
        return FilePlan(index, f"{stem}.{suffix}", kind, seed, width, height, shots=(shot,))
    fps = Fraction(float(rng.choice(config.fps))).limit_denominator(1001)
    shots = _sample_shots(rng, config, fps, kind)
    bars = (0, 0)
    detail: str | None = None
    if kind == "letterbox":
        across = variant % 2
        bar = _sample_bar(rng, width if across else height)
        bars, detail = ((bar, 0), "pillarbox") if across else ((0, bar), "letterbox")
    if kind == "truncated":
        detail = TRUNCATIONS[variant % len(TRUNCATIONS)]
    crf = int(rng.integers(17, 24))
    plan = FilePlan(index, f"{stem}.mp4", kind, seed, width, height, fps, shots, crf, detail, bars)
    if kind == "flashing":
        return replace(plan, flash_period=max(2, int(fps / Fraction(rng.uniform(*_FLASH_RATE)))))
    return plan


def _sample_bar(rng: np.random.Generator, length: int) -> int:
    """Pixels of each of two bars that take so much of ``length``; even, as H.264 likes it."""
    return 2 * round(float(rng.uniform(0.1, 0.17)) * length / 2)


def _sample_size(rng: np.random.Generator, config: SynthConfig) -> tuple[int, int]:
    across, down = _ratio(config.aspects[int(rng.integers(len(config.aspects)))])
    least = config.min_side / min(across, down)
    most = config.max_side / max(across, down)
    unit = math.exp(rng.uniform(math.log(least), math.log(most)))
    return 2 * round(across * unit / 2), 2 * round(down * unit / 2)


def _ratio(aspect: str) -> tuple[int, int]:
    across, down = aspect.split(":")
    return int(across), int(down)


def _sample(rng: np.random.Generator, config: SynthConfig, unlike: Scene | None) -> Scene:
    return sample_scene(rng, two_objects=config.two_objects, textured=config.textured, unlike=unlike)


def _sample_shots(rng: np.random.Generator, config: SynthConfig, fps: Fraction, kind: str) -> tuple[Shot, ...]:
    seconds = math.exp(rng.uniform(math.log(config.min_seconds), math.log(config.max_seconds)))
    if kind in ("flashing", "dissolve"):
        seconds = max(seconds, min(_LEAST_CHANGING_S, config.max_seconds))
    most = max(1, min(config.max_scenes, int(seconds / config.min_scene_seconds)))
    count = max(2 if kind == "dissolve" else 1, int(rng.integers(1, most + 1)))
    spare = max(0.0, seconds - count * config.min_scene_seconds)
    lengths = rng.dirichlet(np.full(count, 2.0)) * spare + min(config.min_scene_seconds, seconds / count)
    ends = [max(i + 1, round(float(end) * fps)) for i, end in enumerate(np.cumsum(lengths))]
    spoilt = int(rng.integers(count))
    if kind == "flashing":
        spoilt = int(np.argmax(lengths))
    shots: list[Shot] = []
    for position, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        scene = _sample(rng, config, shots[-1].scene if shots else None)
        shot_kind = "normal"
        if kind == "letterbox" or (kind in SPOILT_SCENES and position == spoilt):
            shot_kind = kind
        if shot_kind == "static":
            scene = still(scene)
        shots.append(Shot(scene, shot_kind, start / fps, end / fps))
    if kind == "dissolve":
        fading = shots[min(spoilt, count - 2)]
        frames = max(_FADE_FRAMES, round(float(rng.uniform(*_FADE_S)) * fps))
        fade = min(frames / fps, (fading.end - fading.start) / 2)
        shots[shots.index(fading)] = replace(fading, fade=fade)
    return tuple(shots)


def _copy_of(config: SynthConfig, original: FilePlan, index: int, kind: str, detail: str | None) -> FilePlan:
    rng = np.random.default_rng([config.seed, 2, index])
    name = f"source_{index:05d}.{original.name.rpartition('.')[2]}"
    copy = replace(original, index=index, name=name, kind=kind, duplicate_of=original.name)
    if detail is None:
        return copy
    scale = float(rng.uniform(0.6, 0.9))
    rates = [Fraction(fps).limit_denominator(1001) for fps in config.fps]
    others = [rate for rate in rates if rate != original.fps] or rates
    copy = replace(
        copy,
        width=max(16, 2 * round(original.width * scale / 2)),
        height=max(16, 2 * round(original.height * scale / 2)),
        fps=others[int(rng.integers(len(others)))],
        crf=int(rng.integers(*_REENCODE_CRF)),
        detail=detail,
    )
    if "bars" in detail:
        across = bool(rng.integers(2))
        bar = _sample_bar(rng, round((copy.width if across else copy.height) * 1.4))
        x, y = (bar, 0) if across else (0, bar)
        copy = replace(copy, bars=(x, y), width=copy.width + 2 * x, height=copy.height + 2 * y)
    if "shifted" in detail:
        offset = _sample_offset(rng, original)
        copy = replace(copy, offset=offset, shots=_from(offset, original.shots))
    return copy


def _sample_offset(rng: np.random.Generator, original: FilePlan) -> Fraction:
    """A start that leaves much of the scene it is in: a cut right behind it could not be told."""
    drawn = [Fraction(round(t * 1000), 1000) for t in rng.uniform(_SHIFT_S[0], _most_shift(original), size=16)]
    return max(drawn, key=lambda offset: min(Fraction(1, 2), _from(offset, original.shots)[0].end))


def _from(offset: Fraction, shots: tuple[Shot, ...]) -> tuple[Shot, ...]:
    """``shots`` as seen by a copy that starts at ``offset``, seconds."""
    left = [shot for shot in shots if shot.end > offset]
    first = replace(left[0], start=Fraction(0), end=left[0].end - offset, lead=offset - left[0].start)
    return (first, *(replace(shot, start=shot.start - offset, end=shot.end - offset) for shot in left[1:]))
