"""The recipe of a curation run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from kineograph.config import Config, digest
from kineograph.media.geometry import Bucket
from kineograph.media.guard import GuardLimits
from kineograph.media.probe import MediaLimits


class Cuts(Config):
    """When a frame that differs from the one before starts a new shot."""

    floor: float = Field(18.0, gt=0)
    """Least difference to the frame before, in levels of 0..255 summed over luma and both chroma planes.
    A change of exposure is 10 to 15, cuts of real footage are 50 and more (measured)."""
    ratio: float = Field(3.0, gt=1)
    """Least multiple of the neighbours' difference; 3 is PySceneDetect's AdaptiveDetector."""
    window: int = Field(2, ge=1)
    """Neighbours on each side that a frame is compared with; 2 is PySceneDetect's AdaptiveDetector."""


class Clips(Config):
    """How shots become clips."""

    min_seconds: float = Field(2.0, gt=0)
    """Shorter shots, and leftovers of long ones, are rejected with ``duration``."""
    max_seconds: float = Field(10.0, gt=0)
    """Longer shots are cut into windows of at most about this length, in seconds."""

    @model_validator(mode="after")
    def _ordered(self) -> Clips:
        if self.min_seconds > self.max_seconds:
            raise ValueError(f"min_seconds {self.min_seconds:g} is more than max_seconds {self.max_seconds:g}")
        return self


class ResolutionFilter(Config):
    """Too few pixels."""

    min: int | None = None
    """Least short side in pixels; null asks for none."""


class BlackFilter(Config):
    """Too much black."""

    max: float | None = Field(0.5, ge=0, le=1)
    """Most share of black frames, 0..1; null allows any."""
    picture: float = Field(0.98, ge=0, le=1)
    """Share of dark pixels (luma up to 0.1) from which a frame is black; 0.98 is ffmpeg blackdetect's."""


class StaticFilter(Config):
    """Too many frames that repeat the one before."""

    max: float | None = Field(0.9, ge=0, le=1)
    """Most share of repeated frames, 0..1; null allows any."""
    level: float = Field(2.5, ge=0, le=255)
    """A frame repeats the one before when no cell of it (a twentieth of its long side) changes its mean by
    more than so many levels of 0..255. Encoding a still moves cells by 2 at most, slow objects by 3."""


class MotionFilter(Config):
    """Too little or too much motion."""

    min: float | None = Field(None, ge=0)
    """Least mean optical flow in frame diagonals per second; null asks for none."""
    max: float | None = Field(None, ge=0)
    """Most mean optical flow in frame diagonals per second; null allows any."""


class Filters(Config):
    """The filters of a clip, in the order in which they are asked."""

    resolution: ResolutionFilter = ResolutionFilter()
    """Short side."""
    black: BlackFilter = BlackFilter()
    """Black frames."""
    static: StaticFilter = StaticFilter()
    """Repeated frames; videos only."""
    motion: MotionFilter = MotionFilter()
    """Optical flow; videos only."""


class Captions(Config):
    """Captions from files beside the sources: NAME.txt or NAME.json."""

    require: bool = True
    """Whether a clip without a caption is rejected with ``no_caption``."""


class Buckets(Config):
    """The shapes that clips are written in."""

    sizes: tuple[str, ...]
    """Buckets as HEIGHTxWIDTHxFRAMES; one frame is an image bucket."""
    fps: float = Field(8.0, gt=0)
    """Frames per second of the videos written."""

    @field_validator("sizes")
    @classmethod
    def _are_buckets(cls, sizes: tuple[str, ...]) -> tuple[str, ...]:
        if not sizes:
            raise ValueError("give at least one bucket, e.g. 256x256x16")
        for size in sizes:
            bucket = Bucket.parse(size)
            if bucket.height % 2 or bucket.width % 2:
                raise ValueError(f"height and width of a bucket are even (H.264 stores them so), not {size}")
        if len(set(sizes)) < len(sizes):
            raise ValueError("a bucket is listed twice")
        return sizes

    @property
    def parsed(self) -> list[Bucket]:
        """The buckets, sorted."""
        return sorted(Bucket.parse(size) for size in self.sizes)


class Encode(Config):
    """How clips are written."""

    crf: int = Field(14, ge=0, le=51)
    """x264's constant rate factor: 0 is lossless, 18 is said to look so, 14 leaves room for training
    crops."""
    preset: str = "veryfast"
    """x264's preset; at bucket sizes slower ones save little."""


class Shards(Config):
    """How clips are gathered into files."""

    rows: int = Field(512, ge=1)
    """Clips of a shard."""
    row_group_size: int = Field(8, ge=1)
    """Clips that a reader must read together; small, so that a shuffled reader reads little that it does not
    use."""


class CurateConfig(Config):
    """A curation run, from a directory of raw files to shards."""

    input: str | None = None
    """Directory (searched to its bottom) or file with the sources; --input says it on the command line."""
    limits: MediaLimits = MediaLimits()
    """The most that a source may be."""
    guard: GuardLimits = GuardLimits()
    """What the child process that decodes a source may use."""
    cuts: Cuts = Cuts()
    """When a new shot starts."""
    clips: Clips = Clips()
    """How shots become clips."""
    filters: Filters = Filters()
    """Which clips are rejected."""
    captions: Captions = Captions()
    """Where captions come from."""
    buckets: Buckets
    """The shapes that clips are written in."""
    text_encoder: Literal["minilm"] = "minilm"
    """Encoder of the captions, as kineograph.models.text knows it."""
    encode: Encode = Encode()
    """How clips are written."""
    shards: Shards = Shards()
    """How clips are gathered into files."""
    workers: int | None = Field(None, ge=1)
    """Sources worked on at a time, one CPU each; null takes every CPU that Ray has."""

    @property
    def recipe_digest(self) -> str:
        """SHA-256 of what decides the result: all but where the input lies and how many work on it."""
        return digest(self.model_dump(mode="json", exclude={"input", "workers", "guard"}))
