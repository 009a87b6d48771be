"""Frames to H.264 in mp4, and contact sheets: the only place that encodes video.

The colours are BT.601 in limited range, and tagged so: a player that reads the tags and one that assumes them
for small pictures then show the same picture. Encoding runs on one thread, so the same frames give the same
bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from PIL import Image, ImageDraw, ImageFont

from kineograph.store.commit import committed

Frames = np.ndarray | Iterable[np.ndarray]
Fps = int | float | Fraction

_BT601, _LIMITED_RANGE = 6, 1  # SMPTE 170M, the numbers of ISO/IEC 23091-2 for matrix, transfer and primaries
_SHEET_BACKGROUND, _SHEET_INK = (255, 255, 255), (20, 20, 20)


def encode_h264(
    frames: Frames,
    fps: Fps,
    *,
    crf: int = 18,
    preset: str = "veryfast",
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """``frames`` as the bytes of an mp4 file with one H.264 stream.

    Args:
        frames: uint8 RGB, an array (T, H, W, 3) or an iterable of (H, W, 3), all of one size, H and W >= 2.
            Even sizes are stored as yuv420p; a size with an odd side as yuv444p, so that no pixel is added or
            lost.
        fps: frames per second, > 0; a Fraction such as 30000/1001 is kept exactly.
        crf: x264's constant rate factor, 0 (best) to 51.
        preset: x264's preset.
        metadata: tags of the container, such as title.

    Raises ValueError on no frames, frames of another dtype, shape or size, or a rate that is not positive.
    """
    buffer = io.BytesIO()
    _mux(buffer, frames, fps, crf, preset, metadata, {})
    return buffer.getvalue()


def write_mp4(
    path: str | Path,
    frames: Frames,
    fps: Fps,
    *,
    crf: int = 18,
    preset: str = "veryfast",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Commit ``frames`` as the mp4 file ``path``, index first so that it plays while it loads.

    Arguments and errors are those of :func:`encode_h264`; frames of an iterable are held one at a time.
    """
    with committed(Path(path)) as temp:
        _mux(str(temp), frames, fps, crf, preset, metadata, {"movflags": "faststart"})


def _mux(
    target: str | io.BytesIO,
    frames: Frames,
    fps: Fps,
    crf: int,
    preset: str,
    metadata: Mapping[str, str] | None,
    container_options: dict[str, str],
) -> None:
    rate = _rate(fps)
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError("a video needs at least one frame")
    _check_frame(first, first.shape)
    height, width = first.shape[:2]
    pixel_format = "yuv420p" if height % 2 == 0 and width % 2 == 0 else "yuv444p"
    reformatter = VideoReformatter()  # kept for all frames: its tables cost as much as a frame's encoding
    with av.open(target, "w", format="mp4", options=container_options) as container:
        container.metadata.update(metadata or {})
        # x264's macroblock tree (core 165) reads memory it never wrote: equal frames gave unequal bytes.
        options = {"crf": str(crf), "preset": preset, "mbtree": "0"}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        context = stream.codec_context
        context.time_base = 1 / rate
        context.thread_count = 1
        context.colorspace = context.color_primaries = context.color_trc = _BT601
        context.color_range = _LIMITED_RANGE
        for index, pixels in enumerate(chain([first], frames)):
            _check_frame(pixels, first.shape)
            frame = reformatter.reformat(
                av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24"),
                format=pixel_format,
                dst_colorspace=Colorspace.ITU601,
                interpolation=Interpolation.BICUBIC,
            )
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _rate(fps: Fps) -> Fraction:
    rate = Fraction(fps) if isinstance(fps, int | Fraction) else Fraction(fps).limit_denominator(1001)
    if rate <= 0:
        raise ValueError(f"frames per second must be positive, not {fps}")
    return rate


def _check_frame(pixels: np.ndarray, shape: tuple[int, ...]) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"a frame is uint8 of shape (H, W, 3), not {pixels.dtype} of shape {pixels.shape}")
    if min(pixels.shape[:2]) < 2:
        raise ValueError(f"H.264 needs sides of 2 pixels or more, not {pixels.shape[1]}x{pixels.shape[0]}")
    if pixels.shape != shape:
        raise ValueError(f"all frames of a video have one size: {pixels.shape} after {shape}")


def contact_sheet(
    videos: Sequence[np.ndarray],
    labels: Sequence[str] | None = None,
    *,
    columns_frames: int = 8,
    scale: int | None = None,
) -> Image.Image:
    """A picture with a row per video: its label at the left, then frames equally spaced in time.

    Args:
        videos: uint8 RGB arrays (T, H, W, 3); they may differ in size and length; a still has T = 1.
        labels: a text for each video, or None for no label column.
        columns_frames: most frames in a row, >= 1; a shorter video shows each of its frames once.
        scale: whole factor of nearest-neighbour enlargement; None takes the least that makes a frame's short
            side at least 96 pixels.

    Raises ValueError on no videos, an empty one, or labels that are not one per video.
    """
    if not len(videos) or any(video.ndim != 4 or 0 in video.shape for video in videos):
        raise ValueError("a contact sheet needs videos of shape (T, H, W, 3) that are not empty")
    if labels is not None and len(labels) != len(videos):
        raise ValueError(f"{len(videos)} videos and {len(labels)} labels")
    gap, font = 4, ImageFont.load_default(14)
    rows = [_sheet_row(video, columns_frames, scale, gap) for video in videos]
    texts = [_wrap(label) for label in labels] if labels is not None else [""] * len(rows)
    boxes = [ImageDraw.Draw(rows[0]).multiline_textbbox((0, 0), text, font=font) for text in texts]
    label_width = 0 if labels is None else 2 * gap + int(max(box[2] for box in boxes))
    heights = [max(row.height, int(box[3]) + gap) for row, box in zip(rows, boxes, strict=True)]
    size = (label_width + max(row.width for row in rows) + gap, sum(heights) + gap * (len(rows) + 1))
    sheet = Image.new("RGB", size, _SHEET_BACKGROUND)
    draw, top = ImageDraw.Draw(sheet), gap
    for row, text, height in zip(rows, texts, heights, strict=True):
        draw.multiline_text((gap, top), text, fill=_SHEET_INK, font=font)
        sheet.paste(row, (label_width + (gap if not label_width else 0), top))
        top += height + gap
    return sheet


def _sheet_row(video: np.ndarray, columns: int, scale: int | None, gap: int) -> Image.Image:
    num_frames, height, width = video.shape[:3]
    factor = scale or max(1, -(-96 // min(height, width)))
    shown = np.unique(np.linspace(0, num_frames - 1, min(columns, num_frames)).round().astype(int))
    row = Image.new("RGB", (len(shown) * (width * factor + gap) - gap, height * factor), _SHEET_BACKGROUND)
    for column, index in enumerate(shown):
        tile = np.repeat(np.repeat(video[index], factor, axis=0), factor, axis=1)
        row.paste(Image.fromarray(tile), (column * (width * factor + gap), 0))
    return row


def _wrap(label: str, width: int = 24) -> str:
    lines = [""]
    for word in label.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def write_png(path: str | Path, image: Image.Image | np.ndarray) -> None:
    """Commit ``image``, a PIL image or uint8 RGB (H, W, 3), as the PNG file ``path``."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    with committed(Path(path)) as temp:
        image.save(temp, format="PNG")
