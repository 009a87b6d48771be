"""How much of the picture is covered by lines of text: PP-OCR's text detector, run by RapidOCR on one CPU thread.

The detector alone takes any blob that stands out for a letter, a plain disc or a whole textured picture included. What
tells burnt-in text from those is that it stands in lines: a box counts when it is longer than high, and not as high as
the picture. Source of the detector: Liao et al. 2020, Real-time Scene Text Detection with Differentiable Binarization.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pydantic import Field

from kineograph.config import Config
from kineograph.errors import UserError
from pipelines.data.scores.base import ClipFrames
from pipelines.data.scores.frames import choose_most, one_line


class TextArea(Config):
    """Burnt-in text, by the detector that the extra ``ocr`` brings; nothing is downloaded."""

    frames: int = Field(3, ge=1)
    """Sampled frames looked at per clip, evenly chosen; the signal is their median."""
    confidence: float = Field(0.5, ge=0, le=1)
    """Least confidence of a box, 0..1; 0.5 is RapidOCR's."""
    least_aspect: float = Field(2.0, ge=1)
    """Least ratio of a box's long side to its short one. The boxes of plain shapes and textures stay below 2, those of
    text lines are 6 and more (measured on synthetic scenes)."""
    most_height: float = Field(0.5, gt=0)
    """Most height of a line, its box's short side, in short sides of the picture."""
    short_side: int = Field(320, ge=32)
    """Frames with a shorter short side, in pixels, are enlarged to it before detection."""
    long_side: int = Field(960, ge=32)
    """Frames with a longer long side, in pixels, are reduced to it before detection: it bounds the time a frame takes."""


class TextAreaScorer:
    """``text_area`` of clips: the share of the picture, 0..1, that lines of text cover."""

    def __init__(self, config: TextArea) -> None:
        """Load the detector. Raises UserError when the extra is not installed or its wheel has no detector."""
        self._config = config
        self._engine = _load_engine(config)

    def __call__(self, clips: Sequence[ClipFrames]) -> list[dict[str, Any]]:
        return [{"text_area": self._clip_area(clip)} for clip in clips]

    def _clip_area(self, clip: ClipFrames) -> float:
        return float(np.median([self.area(frame) for frame in choose_most(clip.frames, self._config.frames)]))

    def area(self, frame: np.ndarray) -> float:
        """Share of ``frame``, uint8 RGB (H, W, 3), that lines of text cover, 0..1."""
        height, width = frame.shape[:2]
        return covered(self._lines(frame), height, width)

    def _lines(self, frame: np.ndarray) -> list[np.ndarray]:
        """The corners (4, 2) of each line of text in pixels (x, y)."""
        found = self._engine(np.ascontiguousarray(frame[:, :, ::-1]))  # it reads BGR, as OpenCV does
        if found.boxes is None:
            return []
        return [box for box in np.asarray(found.boxes, np.float32) if self._is_line(box, min(frame.shape[:2]))]

    def _is_line(self, box: np.ndarray, picture: int) -> bool:
        sides = cv2.minAreaRect(box)[1]
        height, length = min(sides), max(sides)
        return length >= self._config.least_aspect * height and height <= self._config.most_height * picture


def covered(boxes: Sequence[np.ndarray], height: int, width: int) -> float:
    """Share of a picture, 0..1, that lies in any of ``boxes``, corners (4, 2) in pixels (x, y)."""
    mask = np.zeros((height, width), np.uint8)
    for box in boxes:
        cv2.fillPoly(mask, [np.rint(box).astype(np.int32)], 1)
    return float(mask.mean())


def _load_engine(config: TextArea) -> Any:
    try:
        importlib.import_module("onnxruntime")  # rapidocr would only miss it on the first frame
        import rapidocr
    except ImportError as error:
        raise UserError("text_area needs the extra 'ocr': pip install 'kineograph[ocr]'") from error
    # The wheel carries one detector. Naming its file keeps the library from asking for one over the network.
    models = sorted((Path(rapidocr.__file__).parent / "models").glob("*det*.onnx"))
    if not models:
        raise UserError("the installed rapidocr has no text detector in it: pip install --force-reinstall rapidocr")
    threads = "EngineConfig.onnxruntime.{}_op_num_threads"
    parameters = {
        "Global.log_level": "critical",
        "Global.use_cls": False,
        "Global.use_rec": False,
        "Global.max_side_len": config.long_side,
        "Det.model_path": str(models[0]),
        "Det.limit_type": "min",
        "Det.limit_side_len": config.short_side,
        "Det.box_thresh": config.confidence,
        threads.format("intra"): 1,
        threads.format("inter"): 1,
    }
    try:
        engine = rapidocr.RapidOCR(params=parameters)
        engine(np.zeros((32, 32, 3), np.uint8))  # the model is loaded by the first picture
    except Exception as error:
        raise UserError(f"cannot load the text detector {models[0].name}: {one_line(error)}") from error
    return engine
