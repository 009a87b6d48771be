"""Files that are made to break, stall or mislead a decoder: each ends as a result or as a reason, and reads nothing
else."""

import ctypes
import io
import os
import socket
import struct
import sys
import time
import zlib
from fractions import Fraction
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import av
import pytest
from PIL import Image

from kineograph.media.decode import Decoding
from kineograph.media.faults import MediaFault
from kineograph.media.guard import GuardLimits, run_guarded
from kineograph.media.probe import MediaLimits, open_video
from kineograph.store.schema import Reason

_spec = spec_from_file_location("mutate", Path(__file__).with_name("mutate.py"))
mutate = module_from_spec(_spec)
sys.modules["mutate"] = mutate
_spec.loader.exec_module(mutate)

LIMITS = MediaLimits()
GUARD = GuardLimits(cpu_s=20, wall_s=30)
SOURCE_REASONS = {"not_media", "corrupt", "unreadable", "too_large", "timeout", "crashed"}
SEEDS, PARTS = 500, 5


def outcome(path, guard=GUARD):
    """The analysis of ``path`` in the guarded child: its result or its MediaFault."""
    arguments = {"path": str(path), "limits": LIMITS.model_dump(mode="json")}
    try:
        return run_guarded("pipelines.data.analyse:analyse", arguments, guard)
    except MediaFault as fault:
        return fault


def reason_of(path):
    found = outcome(path)
    assert isinstance(found, MediaFault), f"{path.name} gave {found['frames']} frames"
    return found.reason


def written(folder, name, data):
    (folder / name).write_bytes(data)
    return folder / name


def field_of(data, atom, offset, value):
    """``data`` with ``value`` at ``offset`` after the name of ``atom``."""
    at = data.index(atom) + 4 + offset
    return data[:at] + value + data[at + len(value) :]


@pytest.mark.parametrize("part", range(PARTS))
def test_every_spoilt_file_ends_as_a_result_or_a_reason_within_its_time(tmp_path, part):
    ended = {}
    for seed in range(part, SEEDS, PARTS):
        spoilt = mutate.mutation(seed)
        began = time.monotonic()
        found = outcome(written(tmp_path, spoilt.name, spoilt.data))
        ended[seed] = found.reason.value if isinstance(found, MediaFault) else "result"
        told = f"seed {seed}: {spoilt.name}, {spoilt.done}: {found if isinstance(found, MediaFault) else ended[seed]}"
        assert ended[seed] in SOURCE_REASONS | {"result"}, told
        assert ended[seed] not in ("crashed", "unreadable"), told  # an error that nobody thought of
        assert time.monotonic() - began < GUARD.wall_s + 10, told
    assert "result" in ended.values()
    assert "corrupt" in ended.values()


def test_unspoilt_files_of_every_kind_give_all_their_frames(tmp_path):
    for name, data in mutate.originals().items():
        with open_video(written(tmp_path, name, data), LIMITS) as (container, stream, probe):
            decoding = Decoding(container, stream, probe, LIMITS)
            assert len(list(decoding)) == (1 if name.startswith("photo") else 12), name
            assert decoding.warning() == "", name


# --- files that name other files


class Watch:
    """Counts how often any file in a folder is opened (inotify)."""

    IN_OPEN = 0x20

    def __init__(self, folder):
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = self.libc.inotify_init1(os.O_NONBLOCK)
        assert self.libc.inotify_add_watch(self.descriptor, os.fsencode(folder), self.IN_OPEN) >= 0

    def opened(self):
        try:
            return len(os.read(self.descriptor, 1 << 16)) > 0
        except BlockingIOError:
            return False


@pytest.fixture
def bait(tmp_path):
    """A folder of files that hostile ones name, and a watch on it that is known to work."""
    if sys.platform != "linux":
        pytest.skip("inotify is Linux's")
    folder = tmp_path / "bait"
    folder.mkdir()
    for name in ("bait.mp4", "bait.ts"):
        (folder / name).write_bytes(mutate.originals()["h264" + name[4:]])
    for number in range(3):
        Image.new("RGB", (20, 20)).save(folder / f"a{number:03d}.jpg")
    watch = Watch(folder)
    (folder / "bait.ts").read_bytes()
    assert watch.opened()
    assert not watch.opened()
    return folder, watch


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}/bait.ts\n#EXT-X-ENDLIST\n",
    "hls_key": '#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{}/bait.ts"\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}/bait.ts\n',
    "hls_master": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{}/bait.ts\n",
    "ffconcat": "ffconcat version 1.0\nfile '{}/bait.mp4'\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet '
    'mimeType="video/mp4"><Representation id="0"><BaseURL>{}/bait.mp4</BaseURL></Representation></AdaptationSet>'
    "</Period></MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=control:{}/bait.ts\n",
    "imf": '<?xml version="1.0"?><AssetMap><Path>{}/bait.mp4</Path></AssetMap>',
    "smooth": '<?xml version="1.0"?><SmoothStreamingMedia><StreamIndex Url="{}/bait.mp4"/></SmoothStreamingMedia>',
    "svg": '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="file://{}/a000.jpg"/></svg>',
    "reference": "RTSPtext\nrtsp://{}/bait.mp4\n",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("name", ["list.mp4", "list.m3u8", "list.jpg"])
def test_a_playlist_is_no_media_and_no_file_it_names_is_opened(tmp_path, bait, kind, name):
    folder, watch = bait
    path = written(tmp_path, name, PLAYLISTS[kind].replace("{}", str(folder)).encode())
    assert reason_of(path) == Reason.NOT_MEDIA
    assert not watch.opened()


@pytest.mark.parametrize("kind", ["hls", "ffconcat", "dash"])
@pytest.mark.parametrize("file", ["h264.mp4", "h264.ts", "photo.jpg", "h264.mkv"])
def test_a_file_that_is_a_playlist_and_a_video_opens_no_other(tmp_path, bait, kind, file):
    folder, watch = bait
    playlist, video = PLAYLISTS[kind].replace("{}", str(folder)).encode(), mutate.originals()[file]
    for index, data in enumerate((playlist + video, video + playlist)):
        outcome(written(tmp_path, f"both{index}.mp4", data))
        assert not watch.opened()


@pytest.mark.parametrize("name", ["a%03d.jpg", "a*.jpg", "a%03d.mp4"])
def test_a_name_that_is_a_pattern_opens_that_file_alone(bait, name):
    folder, watch = bait
    Image.new("RGB", (10, 10)).save(folder.parent / "plain.jpg")
    os.rename(folder.parent / "plain.jpg", folder.parent / name)
    for number in range(3):
        os.link(folder / f"a{number:03d}.jpg", folder.parent / f"a{number:03d}.jpg")
    others = Watch(folder.parent / "a000.jpg")
    assert outcome(folder.parent / name)["width"] == 10
    assert not watch.opened()
    assert not others.opened()


def reference_movie(target, levels):
    """A QuickTime file whose samples are said to be in the file ``target``: by its absolute path, or by the last
    ``levels`` parts of it from the movie's own folder."""
    data = mutate.originals()["h264.mp4"].replace(b"ftypisom", b"ftypqt  ")
    name = os.fsencode(target)
    alias = bytes(10) + bytes([3]) + b"Mac".ljust(27, b"\0") + bytes(12) + bytes([8]) + b"bait.mp4".ljust(63, b"\0")
    alias += bytes(16) + struct.pack(">hh", min(levels, 1), levels) + bytes(16)
    alias += struct.pack(">hh", 2, len(name)) + name + bytes(len(name) % 2) + struct.pack(">hh", -1, 0) + bytes(120)
    entry = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + alias
    dref = struct.pack(">I4sII", 16 + len(entry), b"dref", 0, 1) + entry
    at = data.index(b"dref") - 4
    old = int.from_bytes(data[at : at + 4], "big")
    data = data[:at] + dref + data[at + old :]
    for atom in (b"dinf", b"minf", b"mdia", b"trak", b"moov"):  # each holds the one before
        place = data.index(atom) - 4
        size = int.from_bytes(data[place : place + 4], "big") + len(dref) - old
        data = data[:place] + size.to_bytes(4, "big") + data[place + 4 :]
    return data


@pytest.mark.parametrize("levels", [0, 2])
def test_a_reference_movie_does_not_open_the_file_that_holds_its_samples(tmp_path, bait, levels):
    folder, watch = bait
    path = written(tmp_path, "reference.mov", reference_movie(folder / "bait.mp4", levels))
    # The file is a real attack: a demuxer that follows references opens the bait.
    with av.open(str(path), options={"enable_drefs": "1", "use_absolute_path": "1"}):
        assert watch.opened()
    outcome(path)
    assert not watch.opened()


def test_a_playlist_of_addresses_connects_to_none(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        for kind, text in PLAYLISTS.items():
            assert reason_of(written(tmp_path, f"{kind}.mp4", text.replace("{}", address).encode())) == Reason.NOT_MEDIA
        for name in (f"{address}/a.mp4", f"concat:{address}/a.mp4", f"crypto:{address}", f"async:{address}/a.mp4"):
            assert outcome(name).reason == Reason.UNREADABLE
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize(
    "prefix", ["file:", "concat:", "subfile,,start,0,end,0,,:", "cache:", "data:video/mp4;base64,"]
)
def test_a_name_is_never_an_address(bait, prefix):
    folder, watch = bait
    assert outcome(f"{prefix}{folder}/bait.mp4").reason == Reason.UNREADABLE
    assert not watch.opened()


# --- bombs


def png(width, height, pixels):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def zeros(count):
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(count >> 20)) + packer.flush()


def with_sides(name, at, sides):
    data = mutate.originals()[name]
    at = at(data)
    return data[:at] + sides + data[at + len(sides) :]


GIANTS = {
    "zeros.png": lambda: png(16384, 16384, zeros(16384 * (3 * 16384 + 1))),
    "declared.png": lambda: png(65535, 65535, zlib.compress(bytes(100))),
    "beyond.png": lambda: png(2**31 - 1, 2**31 - 1, zlib.compress(bytes(100))),
    "canvas.gif": lambda: with_sides("anim.gif", lambda data: 6, b"\xff" * 4),
    "declared.jpg": lambda: with_sides("photo.jpg", lambda data: data.index(b"\xff\xc0") + 5, b"\xff" * 4),
    "declared.bmp": lambda: with_sides("photo.bmp", lambda data: 18, struct.pack("<ii", 65535, 65535)),
}


@pytest.mark.parametrize("name", GIANTS)
def test_a_picture_that_declares_giant_sides_is_too_large(tmp_path, name):
    assert reason_of(written(tmp_path, name, GIANTS[name]())) == Reason.TOO_LARGE


def one_frame_each(container, count):
    """A file of ``count`` video streams."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        streams = [output.add_stream("mpeg2video" if container == "mpegts" else "mpeg4", rate=25) for _ in range(count)]
        frame = av.VideoFrame(16, 16, "yuv420p")
        frame.pts = 0
        for stream in streams:
            stream.width = stream.height = 16
            stream.pix_fmt = "yuv420p"
        for stream in streams:
            output.mux([*stream.encode(frame), *stream.encode(None)])
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("container", "count"), [("mp4", 65), ("mp4", 600), ("matroska", 100), ("mpegts", 200), ("avi", 90)]
)
def test_more_streams_than_the_limit_are_too_large(tmp_path, container, count):
    assert reason_of(written(tmp_path, "many.mp4", one_frame_each(container, count))) == Reason.TOO_LARGE


def test_as_many_streams_as_the_limit_are_no_fault(tmp_path):
    assert outcome(written(tmp_path, "a.mp4", one_frame_each("mp4", 64)))["frames"] == 1


ENDLESS = {
    "samples": (b"stts", 8, struct.pack(">II", 2**31 - 1, 2**31 - 1)),
    "runs": (b"stts", 4, struct.pack(">I", 0x0FFFFFFF)),
    "sizes": (b"stsz", 4, struct.pack(">II", 100, 2**31 - 1)),
    "small sizes": (b"stsz", 4, struct.pack(">II", 1, 2**28)),
    "length": (b"mvhd", 16, b"\x7f\xff\xff\xff"),
    "sides": (b"avc1", 24, b"\xff\xff\xff\xff"),
    "chunks": (b"stco", 4, b"\x7f\xff\xff\xff"),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_a_header_of_giant_counts_takes_neither_time_nor_memory(tmp_path, what):
    path = written(tmp_path, "a.mp4", field_of(mutate.originals()["h264.mp4"], *ENDLESS[what]))
    found = outcome(path, GuardLimits(cpu_s=5, wall_s=20, memory_bytes=2**30))
    if isinstance(found, MediaFault):
        assert found.reason in (Reason.TOO_LARGE, Reason.CORRUPT)
    else:
        assert 1 <= found["frames"] <= 12


def test_frames_that_are_years_apart_are_too_large(tmp_path):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mpegts") as output:  # which declares no length
        stream = output.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(50):
            packets = stream.encode(av.VideoFrame(64, 48, "yuv420p"))
            for packet in packets:
                packet.pts = packet.dts = index * 25 * 1000
                packet.time_base = Fraction(1, 25)
                output.mux(packet)
    assert reason_of(written(tmp_path, "a.ts", buffer.getvalue())) == Reason.TOO_LARGE


# --- what is not a file, and files under wrong names


def test_what_is_no_regular_file_is_unreadable(tmp_path):
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "folder.mp4").mkdir()
    os.symlink("/dev/zero", tmp_path / "device.mp4")
    os.symlink(tmp_path / "loop.mp4", tmp_path / "loop.mp4")
    os.symlink(tmp_path / "nothing", tmp_path / "dangling.mp4")
    for name in ("fifo.mp4", "folder.mp4", "device.mp4", "loop.mp4", "dangling.mp4", "missing.mp4", "null\0byte.mp4"):
        assert reason_of(tmp_path / name) == Reason.UNREADABLE


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_unreadable(tmp_path):
    path = written(tmp_path, "a.mp4", mutate.originals()["h264.mp4"])
    path.chmod(0)
    assert reason_of(path) == Reason.UNREADABLE


def test_a_link_to_a_video_is_that_video(tmp_path):
    os.symlink(written(tmp_path, "a.mp4", mutate.originals()["h264.mp4"]), tmp_path / "link.mp4")
    assert outcome(tmp_path / "link.mp4")["frames"] == 12


@pytest.mark.parametrize("name", sorted(mutate.VIDEOS) + [f"photo.{extension}" for extension in mutate.PHOTOS])
def test_content_counts_and_not_the_name(tmp_path, name):
    wrong = "a.jpg" if name in mutate.VIDEOS else "a.mp4"
    found = outcome(written(tmp_path, wrong, mutate.originals()[name]))
    assert (found["media_type"], found["frames"]) == (("video", 12) if name in mutate.VIDEOS else ("image", 1))


@pytest.mark.parametrize("data", [b"", b"\0", bytes(100_000), b"PK\x03\x04" + bytes(5000), b"%PDF-1.7\n" + bytes(3000)])
def test_what_holds_no_media_is_said_to_hold_none(tmp_path, data):
    assert reason_of(written(tmp_path, "a.mp4", data)) == Reason.NOT_MEDIA
