"""The recipe of a curation run."""

from __future__ import annotations

from pydantic import Field, model_validator

from kineograph.config import Config, digest
from kineograph.media.guard import GuardLimits
from kineograph.media.probe import MediaLimits
from pipelines.data.captions.config import Captions
from pipelines.data.duplicates.perceptual import PerceptualDuplicates
from pipelines.data.duplicates.semantic import SemanticDuplicates
from pipelines.data.filters import Filters
from pipelines.data.inputs.locations import Inputs
from pipelines.data.latents import Latents
from pipelines.data.planning.buckets import Buckets
from pipelines.data.planning.estimate import Estimation
from pipelines.data.scores.clip import ClipModel
from pipelines.data.scores.learned import Learned
from pipelines.data.scores.safety import Safety
from pipelines.data.scores.text_area import TextArea
from pipelines.data.text import TextEncoding
from pipelines.data.transitions import Transitions


class Cuts(Config):
    """When a frame that differs from the one before starts a new shot."""

    floor: float = Field(18.0, gt=0)
    """Least difference to the frame before, in levels of 0..255 summed over luma and both chroma planes.
    A change of exposure is 10 to 15, cuts of real footage are 50 and more (measured)."""
    ratio: float = Field(3.0, gt=1)
    """Least multiple of the neighbours' difference; 3 is PySceneDetect's AdaptiveDetector."""
    window: int = Field(2, ge=1)
    """Neighbours on each side that a frame is compared with; 2 is PySceneDetect's AdaptiveDetector."""
    flash_seconds: float = Field(0.35, ge=0)
    """A picture that is back within so many seconds was a flash and no cut."""
    flash_level: float = Field(6.0, ge=0, le=255)
    """Most mean difference, in levels, of the coarse layouts before and after for it to be back."""


class Samples(Config):
    """The frames that model stages see; stored as JPEG in the one pass."""

    side: int = Field(384, ge=64)
    """Long side in pixels; frames are never enlarged. CLIP sees 224, text is found from about 300."""
    per_second: float = Field(1.0, gt=0, le=10)
    """Frames a second, and one more where a shot may begin."""


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


class Scores(Config):
    """The models that score clips on their sampled frames; null asks none. Their thresholds are among the filters."""

    text_area: TextArea | None = None
    """Area of burnt-in text; extra ``ocr``."""
    safety: Safety | None = None
    """Nudity; extra ``safety``."""
    clip: ClipModel | None = None
    """Embeddings, aesthetic score and caption match."""
    learned: Learned | None = None
    """A classifier's probability of a label."""


class Duplicates(Config):
    """Which clips are left out because their like is kept. Files of equal bytes always are."""

    perceptual: PerceptualDuplicates = PerceptualDuplicates()
    """What looks the same frame for frame: re-encoded, rescaled, at another rate, with bars, shifted."""
    semantic: SemanticDuplicates = SemanticDuplicates()
    """What shows the same by its CLIP embedding; needs ``scores.clip``."""


class Encode(Config):
    """How clips are written."""

    crf: int = Field(14, ge=0, le=51)
    """x264's constant rate factor: 0 is lossless, 18 is said to look so, 14 leaves room for training
    crops."""
    preset: str = "veryfast"
    """x264's preset; at bucket sizes slower ones save little."""
    video: bool = True
    """Whether the shards hold the clips as H.264."""
    latents: Latents | None = None
    """Whether they hold latents of the clips, and of which autoencoder; null writes none."""

    @model_validator(mode="after")
    def _something_is_written(self) -> Encode:
        if not self.video and self.latents is None:
            raise ValueError("shards need videos or latents: set video=true, or latents={}")
        return self


class Shards(Config):
    """How clips are gathered into files."""

    rows: int = Field(512, ge=1)
    """Clips of a shard."""
    row_group_size: int = Field(8, ge=1)
    """Clips that a reader must read together; small, so that a shuffled reader reads little that it does not
    use."""


class CurateConfig(Config):
    """A curation run, from raw files to shards."""

    input: str | None = None
    """Directory, file, glob, URL or manifest with the sources; --input says it on the command line."""
    inputs: Inputs = Inputs()
    """How sources are listed and fetched."""
    limits: MediaLimits = MediaLimits()
    """The most that a source may be."""
    guard: GuardLimits = GuardLimits()
    """What the child process that decodes a source may use."""
    samples: Samples = Samples()
    """The frames that models see."""
    cuts: Cuts = Cuts()
    """When a new shot starts."""
    transitions: Transitions | None = None
    """The model that finds gradual transitions; null looks for hard cuts only. Extra ``shots``."""
    clips: Clips = Clips()
    """How shots become clips."""
    scores: Scores = Scores()
    """Models that look at clips."""
    filters: Filters = Filters()
    """Which clips are rejected."""
    duplicates: Duplicates = Duplicates()
    """Which copies are."""
    captions: Captions = Captions()
    """Where captions come from."""
    buckets: Buckets
    """The shapes that clips are written in."""
    text_encoder: TextEncoding = TextEncoding()
    """The encoder of the captions, or its name."""
    encode: Encode = Encode()
    """How clips are written."""
    shards: Shards = Shards()
    """How clips are gathered into files."""
    estimation: Estimation = Estimation()
    """How ``--estimate`` predicts a run."""
    workers: int | None = Field(None, ge=1)
    """Sources worked on at a time, one CPU each; null takes every CPU that Ray has."""

    @model_validator(mode="after")
    def _thresholds_have_scores(self) -> CurateConfig:
        """A threshold on what nobody measures would reject nothing, silently."""
        needs = {
            "filters.text.max": (self.filters.text.max, self.scores.text_area, "scores.text_area"),
            "filters.unsafe.max": (self.filters.unsafe.max, self.scores.safety, "scores.safety"),
            "filters.aesthetic.min": (self.filters.aesthetic.min, self.scores.clip, "scores.clip"),
            "filters.learned.min": (self.filters.learned.min, self.scores.learned, "scores.learned"),
            "filters.caption_match.min": (self.filters.caption_match.min, self.scores.clip, "scores.clip"),
            "duplicates.semantic.enabled": (self.duplicates.semantic.enabled or None, self.scores.clip, "scores.clip"),
        }
        for key, (threshold, model, name) in needs.items():
            if threshold is not None and model is None:
                example = "{model: FOLDER, label: NAME}" if name == "scores.learned" else "{}"
                raise ValueError(f"{key} needs {name}: give it (e.g. --set '{name}={example}') or take {key} away")
        if self.filters.aesthetic.min is not None and self.scores.clip and self.scores.clip.aesthetic_head is None:
            raise ValueError("filters.aesthetic.min needs scores.clip.aesthetic_head, a file")
        return self

    @property
    def recipe_digest(self) -> str:
        """SHA-256 of what decides the result: all but where the input lies and how many work on it."""
        raw = self.model_dump(mode="json", exclude={"input", "inputs", "workers", "guard", "estimation"})
        if self.text_encoder == TextEncoding(name=self.text_encoder.name):
            raw["text_encoder"] = self.text_encoder.name  # as recipes say it, and once could say no more
        return digest(raw)
