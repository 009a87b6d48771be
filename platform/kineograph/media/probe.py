"""Open media files that nobody vouches for: allow-lists for containers and codecs, limits, and what the
header says.

A text file named .mp4 can be a playlist that makes the demuxer read other files, and a name can be a pattern. So
the file is opened here, once, and the demuxer gets its descriptor and no name: its only protocol is ``fd``, which
can open neither another file nor a connection. It is also told which formats it may be at all, and image formats
are picked by their first bytes.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import av.error
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from kineograph.config import Config
from kineograph.media.faults import MediaFault
from kineograph.store.schema import Reason

VIDEO_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2",
    "matroska,webm",
    "avi",
    "mpegts",
    "mpeg",
    "flv",
    "ogg",
    "gif",
    "apng",
)

# First bytes of a still image -> its demuxer.
IMAGE_MAGIC = (
    (b"\xff\xd8\xff", "jpeg_pipe"),
    (b"\x89PNG\r\n\x1a\n", "png_pipe"),
    (b"BM", "bmp_pipe"),
    (b"II*\x00", "tiff_pipe"),
    (b"MM\x00*", "tiff_pipe"),
)

# Demuxer of images -> who reads their header alone: size and EXIF data. Image.open would load every plugin of Pillow
# in each child.
HEADER_READERS: dict[str, Any] = {
    "jpeg_pipe": JpegImageFile,
    "png_pipe": PngImageFile,
    "apng": PngImageFile,
    "webp_pipe": WebPImageFile,
    "bmp_pipe": BmpImageFile,
    "tiff_pipe": TiffImageFile,
    "gif": GifImageFile,
}

# Enough to find the chunk that tells an animated PNG, which stands before the first pixels.
HEAD_BYTES = 4096

# FFmpeg says "no memory" of a stream past max_streams too.
TOO_MUCH = "it asks for more streams or memory than the limits allow"

# The tag of EXIF (CIPA DC-008), and its values that are mirror images.
EXIF_ORIENTATION = 274
MIRRORED_ORIENTATIONS = frozenset((2, 4, 5, 7))

CODECS = frozenset(
    (
        "h264",
        "hevc",
        "vp8",
        "vp9",
        "av1",
        "libdav1d",
        "mpeg1video",
        "mpeg2video",
        "mpeg4",
        "msmpeg4",
        "msmpeg4v1",
        "msmpeg4v2",
        "msmpeg4v3",
        "dvvideo",
        "h263",
        "flv",
        "mjpeg",
        "cinepak",
        "theora",
        "prores",
        "dnxhd",
        "ffv1",
        "huffyuv",
        "utvideo",
        "qtrle",
        "rawvideo",
        "msvideo1",
        "gif",
        "apng",
        "png",
        "webp",
        "bmp",
        "tiff",
    )
)


class MediaLimits(Config):
    """The most that a source may be. Past any of these it is rejected with too_large."""

    max_bytes: int = 20 * 2**30
    """Size of the file in bytes; 20 GiB holds ten hours at 4 Mbit/s."""
    max_pixels: int = 8192 * 4320
    """Pixels of a frame; 8K (DCI) is the largest that cameras make."""
    max_seconds: float = 6 * 3600.0
    """Length in seconds; the longest films are shorter."""
    max_streams: int = 64
    """Streams in the container; files of thousands exist only to exhaust a demuxer."""


@dataclass(frozen=True)
class Probe:
    """What a file's header says. Sizes are those of the coded frame, before rotation."""

    container: str
    codec: str
    still: bool
    """Whether the format can hold one frame only."""
    width: int
    height: int
    fps: float
    """Declared mean rate; 0 when unknown."""
    seconds: float
    """Declared length; 0 when unknown."""
    frames: int
    """Declared count; 0 when unknown."""
    mirrored: bool = False
    """Whether a still image says in its EXIF data that it is a mirror image. Of videos each frame says it."""


@contextmanager
def open_video(path: str | Path, limits: MediaLimits) -> Iterator[tuple[Any, Any, Probe]]:
    """Open ``path`` and yield (container, its first video stream, Probe), ready to decode with one thread.

    Raises MediaFault: unreadable (the bytes cannot be had), not_media (format or codec is not in the
    allow-lists, or nothing in it is a picture), corrupt (an allowed format that is broken), too_large (past
    ``limits``).
    """
    with _opened(path, limits) as descriptor:
        head = _read_head(descriptor)
        image_format = _image_format(head)
        mirrored = _read_image_header(descriptor, image_format, limits) if image_format else False
        options = {
            "format_whitelist": ",".join([*VIDEO_FORMATS, *(name for _, name in IMAGE_MAGIC), "webp_pipe"]),
            "codec_whitelist": ",".join(sorted(CODECS)),
            "protocol_whitelist": "fd",
            "fd": str(descriptor),
            "max_streams": str(limits.max_streams + 1),  # one more is seen to be too many
        }
        try:
            container = av.open("fd:", format=image_format, options=options, metadata_errors="replace")
        except av.error.FFmpegError as error:
            raise _open_fault(error, head, descriptor) from error
        with container:
            stream = _picture_stream(container)
            still = container.format.name.endswith("_pipe")
            probe = _probe(container, stream, still, still and mirrored)
            _check_limits(probe, container, limits)
            stream.thread_type = "NONE"
            stream.codec_context.thread_count = 1
            # The same key among the container's options is ignored without a word.
            stream.codec_context.options = {"max_pixels": str(limits.max_pixels)}
            yield container, stream, probe


@contextmanager
def _opened(path: str | Path, limits: MediaLimits) -> Iterator[int]:
    """The descriptor of a regular file within the size limit, open for reading."""
    try:
        # Without O_NONBLOCK, opening a named pipe waits until someone writes to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise MediaFault(Reason.UNREADABLE, getattr(error, "strerror", None) or "cannot be opened") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise MediaFault(Reason.UNREADABLE, "not a regular file")
        if status.st_size > limits.max_bytes:
            raise MediaFault(Reason.TOO_LARGE, f"{status.st_size} bytes, the limit is {limits.max_bytes}")
        yield descriptor
    finally:
        os.close(descriptor)


def _read_head(descriptor: int) -> bytes:
    try:
        head = os.pread(descriptor, HEAD_BYTES, 0)
    except OSError as error:
        raise MediaFault(Reason.UNREADABLE, error.strerror or "cannot be read") from error
    if not head:
        raise MediaFault(Reason.NOT_MEDIA, "the file is empty")
    return head


def _image_format(head: bytes) -> str | None:
    """The demuxer that a still or animated image must be read with; None for a container of other kind."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        if head[12:16] == b"VP8X" and head[20:21] and head[20] & 2:
            raise MediaFault(Reason.NOT_MEDIA, "an animated WebP; FFmpeg decodes still ones only")
        return "webp_pipe"
    if head.startswith(b"\x89PNG") and b"acTL" in head.partition(b"IDAT")[0]:
        return "apng"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    return next((name for magic, name in IMAGE_MAGIC if head.startswith(magic)), None)


def _read_image_header(descriptor: int, image_format: str, limits: MediaLimits) -> bool:
    """Whether the EXIF data of an image say that it is a mirror image; the decoder tells turns alone.

    Raises MediaFault too_large before a demuxer, which decodes to find out the size, sees a giant.
    """
    mirrored = False
    with os.fdopen(os.dup(descriptor), "rb") as file:
        try:
            image = HEADER_READERS[image_format](file)
            width, height = image.size
            check_pixels(width, height, limits)
            # Pillow decodes a whole PNG to find EXIF data behind the pixels.
            if not isinstance(image, PngImageFile) or "exif" in image.info:
                mirrored = image.getexif().get(EXIF_ORIENTATION) in MIRRORED_ORIENTATIONS
        except MediaFault:
            raise
        except Exception:  # noqa: BLE001 - a broken header raises anything; the demuxer shall judge
            return False
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)  # which the copies of a descriptor share
    return mirrored


def _open_fault(error: av.error.FFmpegError, head: bytes, descriptor: int) -> MediaFault:
    if error.errno == errno.EIO and not _can_be_read(descriptor):  # FFmpeg says it of files that end early too
        return MediaFault(Reason.UNREADABLE, error.strerror or str(error))
    if isinstance(error, MemoryError):
        return MediaFault(Reason.TOO_LARGE, TOO_MUCH)
    if head[4:8] in (b"ftyp", b"moov", b"mdat") or head[:4] in (b"RIFF", b"\x1aE\xdf\xa3", b"OggS"):
        return MediaFault(Reason.CORRUPT, f"the container cannot be read: {error.strerror}")
    return MediaFault(Reason.NOT_MEDIA, f"no allowed video or image format: {error.strerror}")


def _can_be_read(descriptor: int) -> bool:
    """Whether the bytes of the file, to its end, can be had from its disk."""
    at = 0
    try:
        while block := os.pread(descriptor, 1 << 20, at):
            at += len(block)
    except OSError:
        return False
    return True


def _picture_stream(container: Any) -> Any:
    """The first video stream that is no cover art."""
    if not any(stream.type in ("video", "audio", "subtitle") for stream in container.streams):
        raise MediaFault(Reason.CORRUPT, "the container holds no whole stream")
    streams = [s for s in container.streams.video if s.codec_context is not None]
    streams = [s for s in streams if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise MediaFault(Reason.NOT_MEDIA, "there is no video stream in an allowed codec")
    codec = streams[0].codec_context.codec.name
    if codec not in CODECS:
        raise MediaFault(Reason.NOT_MEDIA, f"codec {codec} is not in the allow-list")
    return streams[0]


def _probe(container: Any, stream: Any, still: bool, mirrored: bool) -> Probe:
    if stream.duration is not None and stream.time_base is not None:
        seconds = float(stream.duration * stream.time_base)
    else:
        seconds = (container.duration or 0) / 1e6
        if container.format.name.startswith("matroska"):  # whose duration is the time of its end
            seconds -= max(0, container.start_time or 0) / 1e6
    rate = stream.average_rate or stream.guessed_rate
    return Probe(
        container=container.format.name,
        codec=stream.codec_context.name,
        still=still,
        width=stream.codec_context.width,
        height=stream.codec_context.height,
        fps=float(rate) if rate and not still else 0.0,
        seconds=0.0 if still else max(0.0, seconds),
        frames=max(0, stream.frames),
        mirrored=mirrored,
    )


def _check_limits(probe: Probe, container: Any, limits: MediaLimits) -> None:
    if len(container.streams) > limits.max_streams:
        raise MediaFault(Reason.TOO_LARGE, f"{len(container.streams)} streams, the limit is {limits.max_streams}")
    check_pixels(probe.width, probe.height, limits)
    if probe.seconds > limits.max_seconds:
        raise MediaFault(Reason.TOO_LARGE, f"{probe.seconds:.0f} s declared, the limit is {limits.max_seconds:.0f}")


def check_pixels(width: int, height: int, limits: MediaLimits) -> None:
    """Raise MediaFault too_large for a frame of more pixels than ``limits`` allow."""
    if width * height > limits.max_pixels:
        raise MediaFault(Reason.TOO_LARGE, f"{width}x{height} pixels, the limit is {limits.max_pixels} in all")
