"""What a crawl contains besides good video: frames that are spoilt, and files that are no video."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice, repeat

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kineograph.synth.plan import FilePlan, Shot
from kineograph.synth.scene import render_frames

_BLUR = 0.06  # sigma in short sides
_WORDS = ("subscribe", "now", "watch", "the", "full", "episode", "tonight", "breaking", "news", "follow")


def plan_frames(plan: FilePlan) -> Iterator[np.ndarray]:
    """The frames of ``plan`` in order, uint8 RGB (height, width, 3)."""
    (x, y), rng = plan.bars, np.random.default_rng([plan.seed, 3])
    for frame in _pictures(plan, rng):
        yield np.pad(frame, ((y, y), (x, x), (0, 0))) if x or y else frame


def _pictures(plan: FilePlan, rng: np.random.Generator) -> Iterator[np.ndarray]:
    rate = plan.fps or Fraction(1)
    spans = list(plan.spans())
    for position, (shot, start, end) in enumerate(spans):
        frames = _shot_frames(shot, plan, _times(shot, rate, start, end), rng)
        if not shot.fade:
            yield from frames
            continue
        following = spans[position + 1][0]
        begin = max(start, math.ceil((shot.end - shot.fade) * rate))
        yield from islice(frames, begin - start)
        others = _shot_frames(following, plan, _times(following, rate, begin, end), rng)
        yield from _faded(frames, others, end - begin)


def _times(shot: Shot, rate: Fraction, start: int, end: int) -> np.ndarray:
    """Times of the scene, in seconds, at frames [``start``, ``end``) of the file."""
    return np.array([float(index / rate - shot.start + shot.lead) for index in range(start, end)])


def _faded(frames: Iterator[np.ndarray], others: Iterator[np.ndarray], count: int) -> Iterator[np.ndarray]:
    for index, (frame, other) in enumerate(zip(frames, others, strict=True)):
        weight = (index + 1) / (count + 1)
        yield cv2.addWeighted(frame, 1 - weight, other, weight, 0)


def _shot_frames(shot: Shot, plan: FilePlan, times: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    width, height = plan.inner
    if shot.kind == "black":
        return repeat(np.full((height, width, 3), int(rng.integers(0, 5)), np.uint8), len(times))
    if shot.kind == "static":
        return repeat(next(render_frames(shot.scene, width, height, times[:1])), len(times))
    if shot.kind == "blurred":
        return _blurred(shot, width, height, times)
    frames = render_frames(shot.scene, width, height, times)
    if shot.kind == "text":
        overlay = _text_overlay(width, height, rng)
        return (_with_text(frame, overlay) for frame in frames)
    if shot.kind == "flashing":
        lit = flash_frames(len(times), plan.flash_period, float(plan.fps or 1))
        return _flashing(frames, lit, shot.scene.background.level)
    return frames


def flash_frames(count: int, period: int, fps: float) -> np.ndarray:
    """Which of ``count`` frames are lit by a flash, one in ``period`` frames: bool (count,).

    The first fifth of a second of a scene of two seconds or more, and the last, have none, so that it is seen
    where the scene starts and ends.
    """
    margin = round(0.2 * fps) if count >= 2 * fps else 0
    index = np.arange(count) - margin
    return (index >= 0) & (index < count - 2 * margin) & (index % period >= period / 2)


def _flashing(frames: Iterator[np.ndarray], lit: np.ndarray, level: int) -> Iterator[np.ndarray]:
    # Towards white on dark grounds, and darker, though never black, on light ones: luma jumps by 80 and more.
    for frame, flash in zip(frames, lit, strict=True):
        if not flash:
            yield frame
        elif level < 140:
            yield cv2.addWeighted(frame, 0.4, np.full_like(frame, 255), 0.6, 0)
        else:
            yield cv2.convertScaleAbs(frame, alpha=0.4)


def _blurred(shot: Shot, width: int, height: int, times: np.ndarray) -> Iterator[np.ndarray]:
    # What a wide blur leaves fits a quarter of the size, where it costs a sixteenth.
    small = max(16, width // 4), max(16, height // 4)
    for frame in render_frames(shot.scene, *small, times):
        soft = cv2.GaussianBlur(frame, (0, 0), _BLUR * min(small), borderType=cv2.BORDER_REFLECT)
        yield cv2.resize(soft, (width, height), interpolation=cv2.INTER_CUBIC)


def _text_overlay(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """White lines of text with a black rim over all of the picture, on a transparent ground."""
    overlay = Image.new("RGBA", (width, height))
    draw = ImageDraw.Draw(overlay)
    size = max(10, min(width, height) // 9)
    font, step = ImageFont.load_default(size), int(size * 1.7)
    for top in range(step // 3, height - size, step):
        words = " ".join(str(word) for word in rng.choice(_WORDS, size=8))
        draw.text((size // 3, top), words, (255, 255, 255), font, stroke_width=2, stroke_fill=(0, 0, 0))
    return overlay


def _with_text(frame: np.ndarray, overlay: Image.Image) -> np.ndarray:
    image = Image.fromarray(frame)
    image.paste(overlay, mask=overlay)
    return np.asarray(image)


def truncate(data: bytes, seed: int) -> bytes:
    """An mp4 file cut within its media data: what lies behind the cut, be it the index, is lost."""
    media = data.index(b"mdat")
    share = np.random.default_rng([seed, 4]).uniform(0.3, 0.7)
    length = int.from_bytes(data[media - 4 : media], "big")
    return data[: media + int(share * length)]


def foreign_bytes(detail: str, target: str, seed: int) -> bytes:
    """The bytes of a file that is no video, one of plan.FOREIGN_KINDS; a playlist names ``target``."""
    if detail == "text":
        return b"404 Not Found\nThe video you asked for is no longer here.\n" * 8
    if detail == "ffconcat":
        return f"ffconcat version 1.0\nfile {target}\n".encode()
    if detail == "hls":
        head = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n"
        return f"{head}#EXTINF:2.0,\n{target}\n#EXT-X-ENDLIST\n".encode()
    if detail == "zip":
        return b"PK\x03\x04\x14\x00\x00\x00\x08\x00" + np.random.default_rng([seed, 5]).bytes(4096)
    if detail == "empty":
        return b""
    raise ValueError(f"no foreign file is called {detail!r}")
