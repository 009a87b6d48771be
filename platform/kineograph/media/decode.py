"""Decode a file once, in order: frames with presentation times, small planes for measuring, RGB for
writing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import av
import av.error
import cv2
import numpy as np

from kineograph.media.faults import MediaFault
from kineograph.media.probe import MediaLimits, Probe, check_pixels
from kineograph.store.schema import Reason

# Formats whose first plane is 8-bit luma and whose next two are chroma: small planes need no colour
# conversion.
PLANAR_YUV = frozenset(f"yuv{j}{s}p" for j in ("", "j") for s in ("420", "422", "444", "440", "411", "410"))


@dataclass
class Decoding:
    """The frames of one stream, in presentation order. Iterate once; then the other fields are complete."""

    container: Any
    stream: Any
    probe: Probe
    limits: MediaLimits
    pts: list[float | None] = field(default_factory=list)
    """Each frame's own time in seconds, None where the file gives none."""
    last_duration: float = 0.0
    """Seconds that the last frame says it is shown; 0 when it does not say."""
    bad_packets: int = 0
    """Packets that the decoder refused."""
    broken: str = ""
    """Why the container ended before its end; "" when it did not."""

    def __iter__(self) -> Iterator[Any]:
        """Yield av.VideoFrame. Raises MediaFault too_large past the limits, corrupt when nothing decodes at
        all."""
        first: float | None = None
        for frame in self._frames():
            check_pixels(frame.width, frame.height, self.limits)
            time = float(frame.time) if frame.time is not None else None
            first = time if first is None else first
            self.pts.append(time)
            self.last_duration = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
            if time is not None and first is not None and time - first > self.limits.max_seconds:
                raise MediaFault(Reason.TOO_LARGE, f"it runs past {self.limits.max_seconds:.0f} s")
            yield frame
        if not self.pts:
            what = self.broken or f"{self.bad_packets} packets and no frame"
            raise MediaFault(Reason.CORRUPT, f"nothing could be decoded: {what}")

    def _frames(self) -> Iterator[Any]:
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as error:
                self.broken = error.strerror or "the container is broken"
                packet = None
            if packet is None:
                break
            try:
                yield from packet.decode()
            except av.error.EOFError:
                break
            except av.error.FFmpegError as error:
                self._refused(error)
        if self.broken:  # the demuxer's own end would have flushed the decoder
            try:
                yield from self.stream.codec_context.decode(None)
            except av.error.FFmpegError as error:
                self._refused(error)

    def _refused(self, error: av.error.FFmpegError) -> None:
        if isinstance(error, MemoryError):
            raise error
        self.bad_packets += 1

    def warning(self) -> str:
        """What went wrong on the way though frames came out, as one line; "" when nothing did."""
        packets = f"{self.bad_packets} packet{'' if self.bad_packets == 1 else 's'}"
        parts = [f"{packets} could not be decoded"] if self.bad_packets else []
        if self.broken:
            parts.append(f"the container breaks off: {self.broken}")
        expected = self.probe.seconds
        seconds = float(frame_times(self)[-1])
        if not parts and expected and seconds < 0.9 * expected - 0.5:
            parts.append(f"{seconds:.2f} of {expected:.2f} declared seconds could be decoded")
        return "; ".join(parts)


def frame_times(decoding: Decoding) -> np.ndarray:
    """Presentation times in seconds from the first frame, strictly ascending, and the end of the last:
    (frames + 1,).

    Frames come in presentation order, whatever their stamps say: stamps out of order are sorted, and missing
    or equal ones follow the one before by the nominal interval.
    """
    stamps = decoding.pts
    known = np.array([t for t in stamps if t is not None], dtype=np.float64)
    steps = np.diff(np.sort(known))
    steps = steps[steps > 1e-6]
    rate = decoding.probe.fps
    nominal = float(np.median(steps)) if len(steps) else (1.0 / rate if 0.01 <= rate <= 1000 else 0.04)
    if len(known) == len(stamps):
        times = np.sort(known).astype(np.float64)
    else:
        times = np.array([i * nominal if t is None else t for i, t in enumerate(stamps)])
    times -= times[0]
    for i in np.flatnonzero(np.diff(times) <= 1e-6) + 1:
        following = times[i + 1 :][times[i + 1 :] > times[i - 1]]
        room = (following[0] - times[i - 1]) / 2 if len(following) else nominal
        times[i] = times[i - 1] + min(nominal, room)
    if (np.diff(times) <= 0).any():  # beyond mending: the order is all that is known
        times = np.arange(len(times), dtype=np.float64) * nominal
    last = decoding.last_duration
    if not 0.1 * nominal <= last <= 4 * nominal:
        last = nominal
    return np.append(times, times[-1] + last)


def small_size(width: int, height: int, longest: int) -> tuple[int, int]:
    """The (width, height) of a frame shrunk to at most ``longest`` pixels on its long side; never
    enlarged."""
    scale = min(1.0, longest / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def small_planes(frame: Any, longest: int) -> np.ndarray:
    """Luma and chroma of a frame, full range, upright: uint8 (3, height, width), the long side at most
    ``longest``.

    Reads the decoder's planes where they are 8-bit YUV, so that nothing is converted at full size.
    """
    size = small_size(frame.width, frame.height, longest)
    name = frame.format.name
    if name in PLANAR_YUV:
        planes = [cv2.resize(_plane(p), size, interpolation=cv2.INTER_AREA) for p in frame.planes[:3]]
        full_range = name.startswith("yuvj") or frame.color_range == 2
    else:
        small = frame.reformat(*size, format="yuvj444p", interpolation="AREA")
        planes = [_plane(p) for p in small.planes]
        full_range = True
    if not full_range:
        planes = [cv2.LUT(p, table) for p, table in zip(planes, _TO_FULL_RANGE, strict=True)]
    return np.stack([upright(p, frame.rotation) for p in planes])


def rgb(frame: Any) -> np.ndarray:
    """The whole frame, upright: uint8 (height, width, 3)."""
    return upright(frame.to_ndarray(format="rgb24"), frame.rotation)


def upright(image: np.ndarray, rotation: float) -> np.ndarray:
    """``image`` (H, W, …) turned as the file's display matrix asks: ``rotation`` degrees
    counter-clockwise."""
    return np.ascontiguousarray(np.rot90(image, round(rotation / 90) % 4))


def shown_size(width: int, height: int, rotation: float) -> tuple[int, int]:
    """The (width, height) of a frame after :func:`upright`."""
    return (height, width) if round(rotation / 90) % 2 else (width, height)


def planes_to_bgr(planes: np.ndarray) -> np.ndarray:
    """Full-range (3, H, W) luma and chroma as uint8 BGR (H, W, 3), for thumbnails."""
    # OpenCV's order is Y, Cr, Cb.
    return cv2.cvtColor(np.ascontiguousarray(planes[[0, 2, 1]].transpose(1, 2, 0)), cv2.COLOR_YCrCb2BGR)


def _plane(plane: Any) -> np.ndarray:
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]


def _stretch(zero: int, levels: int, to: int) -> np.ndarray:
    """The table that maps ``zero`` to ``to`` and ``levels`` of limited range to 255."""
    return np.clip(np.round((np.arange(256) - zero) * (255 / levels) + to), 0, 255).astype(np.uint8)


_TO_FULL_RANGE = (_stretch(16, 219, 0), _stretch(128, 224, 128), _stretch(128, 224, 128))
