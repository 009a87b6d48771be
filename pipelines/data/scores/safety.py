"""Unsafe pictures: the NudeNet detector, whose weights are in its wheel, on one CPU thread."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from kineograph.config import Config
from kineograph.errors import UserError
from pipelines.data.scores.base import ClipFrames
from pipelines.data.scores.frames import choose_most, one_line

Part = Literal[
    "FEMALE_GENITALIA_COVERED",
    "FACE_FEMALE",
    "BUTTOCKS_EXPOSED",
    "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED",
    "MALE_BREAST_EXPOSED",
    "ANUS_EXPOSED",
    "FEET_EXPOSED",
    "BELLY_COVERED",
    "FEET_COVERED",
    "ARMPITS_COVERED",
    "ARMPITS_EXPOSED",
    "FACE_MALE",
    "BELLY_EXPOSED",
    "MALE_GENITALIA_EXPOSED",
    "ANUS_COVERED",
    "FEMALE_BREAST_COVERED",
    "BUTTOCKS_COVERED",
]
"""What NudeNet 3 tells apart."""


class Safety(Config):
    """Nudity, by the detector that the extra ``safety`` brings; nothing is downloaded."""

    frames: int = Field(8, ge=1)
    """Sampled frames looked at per clip, evenly chosen; the signal is the highest score among them."""
    parts: tuple[Part, ...] = Field(
        (
            "FEMALE_BREAST_EXPOSED",
            "FEMALE_GENITALIA_EXPOSED",
            "MALE_GENITALIA_EXPOSED",
            "BUTTOCKS_EXPOSED",
            "ANUS_EXPOSED",
        ),
        min_length=1,
    )
    """NudeNet's classes that count as unsafe. The default leaves out what beaches and sports show: bare chests of men,
    bellies, armpits and feet."""


class SafetyScorer:
    """``unsafe`` of clips: the detector's highest score for an unsafe part in any frame, 0 where it finds none.

    NudeNet does not report scores below 0.2. It was trained on photographs: of Big Buck Bunny, a drawn rabbit, it says
    0.78. Look at what a threshold rejects in a corpus of cartoons.
    """

    def __init__(self, config: Safety) -> None:
        """Load the detector. Raises UserError when the extra is not installed or its model cannot be read."""
        self._config = config
        self._detector = _load_detector()

    def __call__(self, clips: Sequence[ClipFrames]) -> list[dict[str, Any]]:
        return [{"unsafe": self._clip_score(clip)} for clip in clips]

    def _clip_score(self, clip: ClipFrames) -> float:
        return max(self.score(frame) for frame in choose_most(clip.frames, self._config.frames))

    def score(self, frame: np.ndarray) -> float:
        """Highest score, 0..1, of an unsafe part in ``frame``, uint8 RGB (H, W, 3)."""
        found = self._detector.detect(np.ascontiguousarray(frame[:, :, ::-1]))  # BGR, as OpenCV reads files
        return max((float(part["score"]) for part in found if part["class"] in self._config.parts), default=0.0)


def _load_detector() -> Any:
    try:
        import nudenet

        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise UserError("safety needs the extra 'safety': pip install 'kineograph[safety]'") from error
    try:
        detector = nudenet.NudeDetector()
        # NudeNet's own session takes every core, and offers no way to say otherwise.
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        model = Path(nudenet.__file__).parent / "320n.onnx"
        detector.onnx_session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(f"cannot load NudeNet's detector: {one_line(error)}") from error
    return detector
