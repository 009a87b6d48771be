"""A caption in words from what was measured of a clip: a fallback that needs no weights.

It names no things. It says only what a signal's definition makes true, and nothing of a signal that is missing
or in the middle of its range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# Mean luma, 0..1, of a dark and of a bright picture: real clips lie between 0.3 and 0.6.
DARK, BRIGHT = 0.25, 0.65
# Standard deviation of luma, 0..0.5: text on paper has more than the upper, fog less than the lower.
FLAT, CONTRASTY = 0.08, 0.3
# Mean distance of the chroma planes from grey, 0..1: encoding leaves a grey picture under the lower.
GREY, COLOURFUL = 0.01, 0.15
# Height to width of a picture that is upright, and width to height of one that is very wide (cinema is 2.39).
UPRIGHT, VERY_WIDE = 1.25, 2.2
# Share of frames that repeat the one before, from which nothing is said to move.
STILL = 0.98
# Mean optical flow of the whole picture in frame diagonals per second.
HARDLY, LITTLE, FAST = 0.005, 0.03, 0.2
# Speed of the median flow from which the camera is said to move, and its least share of the mean flow: below,
# what moves is in the picture.
PAN, PAN_SHARE = 0.03, 0.5
# Flashes within a second: three are where WCAG 2.3.1 sees a hazard begin.
FLASHES = 3
# Share of the picture under text.
TEXT = 0.01
# Where the camera turns when the picture moves at 0, 45, 90, … degrees (0 right, 90 up): the other way.
CAMERA = (
    "pans left",
    "moves down and to the left",
    "tilts down",
    "moves down and to the right",
    "pans right",
    "moves up and to the right",
    "tilts up",
    "moves up and to the left",
)


def measured_caption(row: Mapping[str, Any]) -> str:
    """One line such as "a bright, colourful video with fast motion, the camera pans left".

    ``row`` is a row of the clips table; columns that are missing, None or NaN are not spoken of.
    """
    noun = {"image": "image", "video": "video"}.get(row.get("media_type") or "", "clip")
    words = ", ".join(_look(row))
    phrase = f"{words} {noun}" if words else noun
    article = "an" if phrase[0] in "aeiou" else "a"
    features = [*_motion(row), *_features(row)] if noun == "video" else _features(row)
    parts = [f"{article} {phrase}" + (f" with {_listed(features)}" if features else "")]
    camera = _camera(row) if noun == "video" else ""
    return ", ".join([*parts, *([camera] if camera else [])])


def _look(row: Mapping[str, Any]) -> list[str]:
    luma, contrast, saturation = (_number(row, name) for name in ("luma", "contrast", "saturation"))
    words = []
    if luma <= DARK:
        words.append("dark")
    elif luma >= BRIGHT:
        words.append("bright")
    if contrast <= FLAT:
        words.append("low-contrast")
    elif contrast >= CONTRASTY:
        words.append("high-contrast")
    if saturation <= GREY:
        words.append("colourless")
    elif saturation >= COLOURFUL:
        words.append("colourful")
    return words + _shape(row)


def _shape(row: Mapping[str, Any]) -> list[str]:
    box = next((row[name] for name in ("crop", "content") if row.get(name) is not None), None)
    width, height = (box[2], box[3]) if box is not None else (_number(row, "width"), _number(row, "height"))
    if not (width > 0 and height > 0):
        return []
    if height >= UPRIGHT * width:
        return ["upright"]
    return ["very wide"] if width >= VERY_WIDE * height else []


def _motion(row: Mapping[str, Any]) -> list[str]:
    motion = _number(row, "motion")
    if _number(row, "static") >= STILL:
        return ["no motion"]
    if motion <= HARDLY:
        return ["hardly any motion"]
    if motion <= LITTLE:
        return ["little motion"]
    return ["fast motion"] if motion >= FAST else ["some motion"] if motion > LITTLE else []


def _features(row: Mapping[str, Any]) -> list[str]:
    features = ["flashing light"] if _number(row, "flashing") >= FLASHES else []
    return [*features, "text in the picture"] if _number(row, "text_area") >= TEXT else features


def _camera(row: Mapping[str, Any]) -> str:
    pan, motion, direction = (_number(row, name) for name in ("pan", "motion", "pan_direction"))
    if not math.isfinite(direction) or not (pan >= PAN and pan >= PAN_SHARE * motion):
        return ""
    return f"the camera {CAMERA[round(direction / 45) % 8]}"


def _listed(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


def _number(row: Mapping[str, Any], name: str) -> float:
    """The value of a column; NaN, which is neither less nor more than any threshold, when it is not there."""
    value = row.get(name)
    return math.nan if value is None else float(value)
