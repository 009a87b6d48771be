import os

import av
import numpy as np
import pytest
from PIL import Image

from kineograph.media.decode import Decoding
from kineograph.media.encode import write_mp4
from kineograph.media.faults import MediaFault
from kineograph.media.guard import GuardLimits, run_guarded
from kineograph.media.probe import MediaLimits, open_video
from kineograph.store.schema import Reason

LIMITS = MediaLimits()


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.mp4"
    write_mp4(path, np.random.default_rng(0).integers(0, 255, (10, 48, 64, 3), np.uint8), 10)
    return path


def probe(path, limits=LIMITS):
    with open_video(path, limits) as (_, _, found):
        return found


def reason(path, limits=LIMITS):
    with pytest.raises(MediaFault) as caught:
        probe(path, limits)
    return caught.value.reason


def test_a_video_tells_what_it_is(clip):
    found = probe(clip)
    assert (found.codec, found.width, found.height, found.fps, found.frames) == ("h264", 64, 48, 10.0, 10)
    assert not found.still


@pytest.mark.parametrize(
    ("extension", "codec"),
    [("png", "png"), ("jpg", "mjpeg"), ("webp", "webp"), ("bmp", "bmp"), ("tiff", "tiff")],
)
def test_images_are_known_by_their_bytes_whatever_their_name(tmp_path, extension, codec):
    Image.new("RGB", (30, 20), "red").save(tmp_path / f"a.{extension}")
    os.rename(tmp_path / f"a.{extension}", tmp_path / "a.mp4")
    found = probe(tmp_path / "a.mp4")
    assert (found.codec, found.still, found.width, found.height) == (codec, True, 30, 20)


def test_a_name_that_is_a_pattern_opens_that_file_alone(tmp_path):
    Image.new("RGB", (10, 10)).save(tmp_path / "a%03d.jpg")
    for number in range(3):
        Image.new("RGB", (20, 20)).save(tmp_path / f"a{number:03d}.jpg")
    assert probe(tmp_path / "a%03d.jpg").width == 10


PLAYLISTS = {
    "ffconcat": "ffconcat version 1.0\nfile {}\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><AdaptationSet>'
    '<Representation id="0"><BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>',
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=x:{}\n",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("extension", ["mp4", "mkv", "jpg"])
def test_a_playlist_is_no_media_and_what_it_names_is_never_opened(tmp_path, kind, extension):
    # Opening a named pipe for reading hangs until someone writes: the limit would tell.
    named = tmp_path / "named.ts"
    os.mkfifo(named)
    path = tmp_path / f"list.{extension}"
    path.write_text(PLAYLISTS[kind].format(named))
    arguments = {"path": str(path), "limits": LIMITS.model_dump()}
    with pytest.raises(MediaFault) as caught:
        run_guarded("pipelines.data.analyse:analyse", arguments, GuardLimits(wall_s=10))
    assert caught.value.reason == Reason.NOT_MEDIA


@pytest.mark.parametrize("content", [b"", b"a letter\n" * 50, bytes(range(256)) * 40, b"\0" * 5000])
def test_what_is_no_media_is_said_to_be_none(tmp_path, content):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    assert reason(path) == Reason.NOT_MEDIA


def test_an_allowed_container_that_is_broken_is_corrupt(tmp_path, clip):
    path = tmp_path / "cut.mp4"
    path.write_bytes(clip.read_bytes()[:200])
    assert reason(path) == Reason.CORRUPT


def test_a_codec_off_the_list_is_no_media(tmp_path):
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("wmv2", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode(None))
    assert reason(path) == Reason.NOT_MEDIA


def test_sound_alone_is_no_media(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=44100, layout="stereo")
        frame = av.AudioFrame("s16", "stereo", 1024)
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert reason(path) == Reason.NOT_MEDIA


@pytest.mark.parametrize("limit", [{"max_bytes": 100}, {"max_pixels": 64 * 47}, {"max_seconds": 0.5}])
def test_each_limit_refuses_what_passes_it(clip, limit):
    assert reason(clip, MediaLimits(**limit)) == Reason.TOO_LARGE


def test_a_length_that_the_header_hides_is_seen_while_decoding(clip):
    with open_video(clip, LIMITS) as (container, stream, found), pytest.raises(MediaFault) as caught:
        list(Decoding(container, stream, found, MediaLimits(max_seconds=0.5)))
    assert caught.value.reason == Reason.TOO_LARGE


def test_what_is_no_file_is_unreadable(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (tmp_path, tmp_path / "pipe.mp4", tmp_path / "missing.mp4"):
        assert reason(path) == Reason.UNREADABLE
