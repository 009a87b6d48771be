"""The thresholds of the filters: what decisions are made by, apart from the scores."""

from __future__ import annotations

from pydantic import Field

from kineograph.config import Config


class ResolutionFilter(Config):
    """Too few pixels."""

    min: int | None = None
    """Least short side of the picture without black bars, in pixels; null asks for none."""


class AspectFilter(Config):
    """Too wide or too tall."""

    min: float | None = Field(None, gt=0)
    """Least width / height of the picture without black bars; null asks for none."""
    max: float | None = Field(None, gt=0)
    """Most width / height; null allows any."""


class FpsFilter(Config):
    """Too few frames a second; videos only."""

    min: float | None = Field(None, gt=0)
    """Least mean rate, frames per second; null asks for none."""


class BlackFilter(Config):
    """Too much black."""

    max: float | None = Field(0.5, ge=0, le=1)
    """Most share of black frames, 0..1; null allows any."""
    picture: float = Field(0.98, ge=0, le=1)
    """Share of dark pixels (luma up to 0.1) from which a frame is black; 0.98 is ffmpeg blackdetect's."""


class StaticFilter(Config):
    """Too many frames that repeat the one before; videos only."""

    max: float | None = Field(0.8, ge=0, le=1)
    """Most share of repeated frames, 0..1; null allows any."""
    level: float = Field(2.5, ge=0, le=255)
    """A frame repeats the one before when no cell of it (a twentieth of its long side) changes its mean by
    more than so many levels of 0..255. Encoding a still moves cells by 2 at most, slow objects by 3."""


class MotionFilter(Config):
    """Too little or too much motion; videos only."""

    min: float | None = Field(None, ge=0)
    """Least mean optical flow in frame diagonals per second; null asks for none."""
    max: float | None = Field(None, ge=0)
    """Most mean optical flow in frame diagonals per second; null allows any."""


class BlurFilter(Config):
    """Out of focus."""

    max: float | None = Field(None, ge=0, le=1)
    """Most blur, 0 (sharp) to 1, after Crete et al. 2007; null allows any."""


class FlashingFilter(Config):
    """Flashes, which hurt people and teach a model nothing; videos only."""

    max: float | None = Field(None, ge=0)
    """Most flashes (a rise and a fall of a tenth of the luma range) within any second; 3 is WCAG 2.3.1's limit;
    null allows any."""


class TextFilter(Config):
    """Burnt-in text. Needs ``scores.text_area``."""

    max: float | None = Field(None, ge=0, le=1)
    """Most share of the picture under text, 0..1; null allows any."""


class UnsafeFilter(Config):
    """Nudity. Needs ``scores.safety``."""

    max: float | None = Field(None, ge=0, le=1)
    """Most score of the safety model, 0..1; null allows any."""


class AestheticFilter(Config):
    """Pictures that people rate low. Needs ``scores.clip`` with an aesthetic head."""

    min: float | None = None
    """Least score, about 1..10; null asks for none."""


class LearnedFilter(Config):
    """A classifier's verdict. Needs ``scores.learned``."""

    min: float | None = Field(None, ge=0, le=1)
    """Least probability of the label that ``scores.learned`` names; null asks for none."""


class CaptionMatchFilter(Config):
    """Captions that say something else than the clip shows. Needs ``scores.clip``."""

    min: float | None = Field(None, ge=-1, le=1)
    """Least cosine of caption and picture; null asks for none."""


class Filters(Config):
    """The filters of a clip, in the order in which they are asked. A value that was not measured rejects nothing."""

    resolution: ResolutionFilter = ResolutionFilter()
    """Short side."""
    aspect: AspectFilter = AspectFilter()
    """Width to height."""
    fps: FpsFilter = FpsFilter()
    """Frame rate."""
    black: BlackFilter = BlackFilter()
    """Black frames."""
    static: StaticFilter = StaticFilter()
    """Repeated frames."""
    motion: MotionFilter = MotionFilter()
    """Optical flow."""
    blur: BlurFilter = BlurFilter()
    """Focus."""
    flashing: FlashingFilter = FlashingFilter()
    """Flashes."""
    text: TextFilter = TextFilter()
    """Burnt-in text."""
    unsafe: UnsafeFilter = UnsafeFilter()
    """Nudity."""
    aesthetic: AestheticFilter = AestheticFilter()
    """Beauty."""
    learned: LearnedFilter = LearnedFilter()
    """A classifier."""
    caption_match: CaptionMatchFilter = CaptionMatchFilter()
    """Caption against picture."""
