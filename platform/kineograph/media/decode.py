"""Decode a file once, in order: frames with presentation times, small planes for measuring, RGB for
writing."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
import av.error
import av.filter
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from kineograph.media.faults import MediaFault
from kineograph.media.probe import TOO_MUCH, MediaLimits, Probe, check_pixels
from kineograph.media.shrink import shrink
from kineograph.store.schema import Reason

# Formats whose first plane is 8-bit luma and whose next two are chroma: small planes need no colour
# conversion.
PLANAR_YUV = frozenset(f"yuv{j}{s}p" for j in ("", "j") for s in ("420", "422", "444", "440", "411", "410"))


class Mirrored:
    """What :class:`Decoding` attaches to frames (``frame.opaque``) that are shown as their mirror image.

    An object for each frame: PyAV knows them by their address, and forgets it for all frames when one of them ends.
    """


@dataclass
class Decoding:
    """The frames of one stream, in presentation order. Iterate once; then the other fields are complete."""

    container: Any
    stream: Any
    probe: Probe
    limits: MediaLimits
    deinterlace: bool = False
    """Whether interlaced frames are made whole pictures; see :func:`deinterlaced`."""
    pts: list[float | None] = field(default_factory=list)
    """Each frame's own time in seconds, None where the file gives none."""
    last_duration: float = 0.0
    """Seconds that the last frame says it is shown; 0 when it does not say."""
    bad_packets: int = 0
    """Packets that the decoder refused."""
    broken: str = ""
    """Why the container ended before its end; "" when it did not."""
    interlaced_frames: int = 0
    """Frames that are two fields, taken one after the other."""

    @property
    def interlaced(self) -> float:
        """Share of the frames so far that are interlaced, 0..1."""
        return self.interlaced_frames / len(self.pts) if self.pts else 0.0

    def __iter__(self) -> Iterator[Any]:
        """Yield av.VideoFrame. Raises MediaFault too_large past the limits, corrupt when nothing decodes at
        all."""
        first: float | None = None
        frames = self._frames()
        turned: float | None = None
        mirrored = False
        for decoded, frame in _deinterlaced(frames) if self.deinterlace else ((f, f) for f in frames):
            time = float(decoded.time) if decoded.time is not None else None
            first = time if first is None else first
            self.pts.append(time)
            self.last_duration = _duration(decoded)
            self.interlaced_frames += decoded.interlaced_frame
            if time is not None and first is not None and time - first > self.limits.max_seconds:
                raise MediaFault(Reason.TOO_LARGE, f"it runs past {self.limits.max_seconds:.0f} s")
            # Asking a frame for its side data makes a cycle that keeps its picture until the garbage collector comes by:
            # a hundred frames of 1080p. So one frame of a stretch that is turned alike is asked.
            if decoded.rotation != turned:
                turned, mirrored = decoded.rotation, self.probe.mirrored or _mirror_matrix(decoded)
            if mirrored:
                frame.opaque = Mirrored()
            yield frame
            if self.probe.still:  # what follows in the file of a photo is its preview or its gain map
                return
        if not self.pts:
            what = self.broken or f"{self.bad_packets} packets and no frame"
            raise MediaFault(Reason.CORRUPT, f"nothing could be decoded: {what}")

    def _frames(self) -> Iterator[Any]:
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as error:
                if isinstance(error, MemoryError):
                    raise MediaFault(Reason.TOO_LARGE, TOO_MUCH) from error
                self.broken = error.strerror or "the container is broken"
                packet = None
            except IndexError:  # PyAV, which at the end flushes streams that came up late and that it never knew
                packet = None
            if packet is None:
                break
            try:
                yield from self._checked(packet.decode())
            except av.error.EOFError:
                break
            except av.error.FFmpegError as error:
                self._refused(error)
        if self.broken:  # the demuxer's own end would have flushed the decoder
            try:
                yield from self._checked(self.stream.codec_context.decode(None))
            except av.error.FFmpegError as error:
                self._refused(error)

    def _checked(self, frames: Iterable[Any]) -> Iterator[Any]:
        for frame in frames:
            check_pixels(frame.width, frame.height, self.limits)
            yield frame

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


def deinterlaced(frames: Iterable[Any]) -> Iterator[Any]:
    """``frames`` with the interlaced ones made whole pictures: one frame out for each one in, in order, of the
    same size and time.

    The filter is FFmpeg's bwdif (Bob Weaver, after Weston's BBC R&D three-field method and yadif), which keeps
    the first field of each frame. Frames that are not flagged as interlaced pass unchanged.
    """
    return (frame for _, frame in _deinterlaced(frames))


def _deinterlaced(frames: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Pairs of a decoded frame and what is shown in its place."""
    waiting: deque[Any] = deque()
    graph, shape = None, None
    for frame in frames:
        if graph is not None and shape != _shape(frame):
            yield from _filtered(graph, None, waiting)
            graph = None
        if graph is None and frame.interlaced_frame:
            graph, shape = _bwdif(frame), _shape(frame)
        if graph is None:
            yield frame, frame
        else:
            waiting.append(frame)
            yield from _filtered(graph, frame, waiting)
    if graph is not None:
        yield from _filtered(graph, None, waiting)


def _filtered(graph: Any, frame: Any, waiting: deque[Any]) -> Iterator[tuple[Any, Any]]:
    """Push ``frame``, None at the end, and pair what comes out with the frames that wait for it."""
    more = frame is not None
    try:
        graph.vpush(frame)
        while waiting:
            shown = graph.vpull()
            yield waiting.popleft(), shown
    except (av.error.BlockingIOError, av.error.EOFError):
        pass
    except av.error.FFmpegError as error:
        if isinstance(error, MemoryError):
            raise
        more = False
    if not more:  # the filter owes a frame for each; where it gave none, the frame as it was decoded
        while waiting:
            yield waiting[0], waiting.popleft()


def _bwdif(frame: Any) -> Any:
    """A filter graph for frames like ``frame``; None where the frame is too small to be filtered."""
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 1000)
    )
    try:
        graph.link_nodes(source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink"))
        graph.configure()
    except av.error.FFmpegError:
        return None
    return graph


def _shape(frame: Any) -> tuple[int, int, str]:
    return frame.width, frame.height, frame.format.name


def _duration(frame: Any) -> float:
    return float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0


def _mirror_matrix(frame: Any) -> bool:
    """Whether the file's display matrix turns the picture into its mirror image."""
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV knows no EXIF data; Probe has what they say
        return False
    if matrix is None:
        return False
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].astype(float)
    return bool(a * d - b * c < 0)


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
    ``longest``. What is transparent is black.

    Reads the decoder's planes where they are 8-bit YUV, so that nothing is converted at full size.
    """
    size = small_size(frame.width, frame.height, longest)
    name = frame.format.name
    if name in PLANAR_YUV:
        planes = np.empty((3, size[1], size[0]), np.uint8)
        for source, target in zip(frame.planes[:3], planes, strict=True):
            target[:] = shrink(_plane(source), size)
        if not (name.startswith("yuvj") or frame.color_range == 2):
            for plane, table in zip(planes, _TO_FULL_RANGE, strict=True):
                cv2.LUT(plane, table, dst=plane)
    elif _has_alpha(frame.format):
        small = cv2.resize(_on_black(frame), size, interpolation=cv2.INTER_AREA)
        planes = cv2.cvtColor(small, cv2.COLOR_RGB2YCrCb).transpose(2, 0, 1)[[0, 2, 1]]
    else:
        small = _converted(frame, *size, format="yuvj444p", interpolation="AREA")
        planes = np.stack([_plane(p) for p in small.planes])
    return _upright(planes.transpose(1, 2, 0), frame).transpose(2, 0, 1) if _turned(frame) else planes


def rgb(frame: Any) -> np.ndarray:
    """The whole frame, upright: uint8 (height, width, 3). What is transparent is black."""
    if _has_alpha(frame.format):
        return _upright(_on_black(frame), frame)
    return _upright(_converted(frame, format="rgb24").to_ndarray(), frame)


def _has_alpha(pixel_format: Any) -> bool:
    return pixel_format.has_palette or any(c.is_alpha for c in pixel_format.components)


def _on_black(frame: Any) -> np.ndarray:
    """The frame's colours weighted by their opacity: uint8 RGB (H, W, 3), not turned."""
    pixels = _converted(frame, format="rgba").to_ndarray()
    if pixels[..., 3].min() == 255:
        return np.ascontiguousarray(pixels[..., :3])
    return cv2.multiply(pixels[..., :3], cv2.merge([pixels[..., 3]] * 3), scale=1 / 255)


def _turned(frame: Any) -> bool:
    return isinstance(frame.opaque, Mirrored) or bool(frame.rotation)


def _upright(image: np.ndarray, frame: Any) -> np.ndarray:
    """``image`` (H, W, …) of ``frame`` turned and mirrored as its file asks."""
    return upright(image[::-1] if isinstance(frame.opaque, Mirrored) else image, frame.rotation)


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


_threads = threading.local()


def _converted(frame: Any, *size: int, **options: Any) -> Any:
    """``frame`` in another size or format, on one thread. Raises MediaFault corrupt where that cannot be."""
    # The converter is kept between frames: its tables cost more than a small frame's conversion.
    if not hasattr(_threads, "reformatter"):
        _threads.reformatter = VideoReformatter()
    try:
        return _threads.reformatter.reformat(frame, *size, threads=1, **options)
    except av.error.FFmpegError as error:
        if isinstance(error, MemoryError):
            raise
        what = f"{frame.width}x{frame.height} {frame.format.name}"
        raise MediaFault(Reason.CORRUPT, f"a frame of {what} cannot be converted: {error.strerror}") from error


def _plane(plane: Any) -> np.ndarray:
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]


def _stretch(zero: int, levels: int, to: int) -> np.ndarray:
    """The table that maps ``zero`` to ``to`` and ``levels`` of limited range to 255."""
    return np.clip(np.round((np.arange(256) - zero) * (255 / levels) + to), 0, 255).astype(np.uint8)


_TO_FULL_RANGE = (_stretch(16, 219, 0), _stretch(128, 224, 128), _stretch(128, 224, 128))
