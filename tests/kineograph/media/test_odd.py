"""Odd files that are valid: each gives the picture, the size, the count and the times that it means."""

import io
import sys
from fractions import Fraction
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import av
import av.filter
import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from kineograph.media.decode import Decoding, frame_times, rgb, shown_size, small_planes
from kineograph.media.faults import MediaFault
from kineograph.media.probe import MediaLimits, open_video
from kineograph.store.schema import Reason

_spec = spec_from_file_location("mutate", Path(__file__).with_name("mutate.py"))
mutate = module_from_spec(_spec)
sys.modules["mutate"] = mutate
_spec.loader.exec_module(mutate)

LIMITS = MediaLimits()


def decoded(path, of_frame=rgb, **options):
    with open_video(path, LIMITS) as (container, stream, probe):
        decoding = Decoding(container, stream, probe, LIMITS, **options)
        values = [of_frame(frame) for frame in decoding]
    return decoding, values


def bare_count(path):
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def small_rgb(frame):
    """The planes that are measured, as RGB (H, W, 3)."""
    planes = small_planes(frame, 4096)
    return cv2.cvtColor(np.ascontiguousarray(planes[[0, 2, 1]].transpose(1, 2, 0)), cv2.COLOR_YCrCb2RGB)


def off(one, other):
    """Mean difference in levels."""
    return float(np.abs(one.astype(int) - other).mean())


def corner_picture(height=48, width=64):
    """Black, with its top left corner white: its eight orientations all differ."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 3, : width // 3] = 255
    return picture


# --- times


def stamped(path, stamps, container_options=None, codec="libx264", durations=None):
    """Write real frames at ``stamps`` in milliseconds."""
    pictures = mutate.real_frames(count=len(stamps))
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=25, options={"bf": "2"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for picture, stamp in zip(pictures, stamps, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.mov"])
def test_a_variable_rate_keeps_each_frames_time(tmp_path, name):
    stamps = [0, 40, 80, 500, 520, 1200, 1233, 1900, 1940, 1980, 2400, 2500]
    decoding, frames = decoded(stamped(tmp_path / name, stamps))
    assert len(frames) == 12
    np.testing.assert_allclose(frame_times(decoding)[:-1], np.array(stamps) / 1000, atol=2e-3)


@pytest.mark.parametrize("start", [-80, 3_600_000, 10_000_000_000])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_times_count_from_the_first_frame_wherever_the_file_starts(tmp_path, name, start):
    decoding, frames = decoded(stamped(tmp_path / name, [start + 40 * i for i in range(12)]))
    times = frame_times(decoding)
    assert len(frames) == bare_count(tmp_path / name) > 8
    np.testing.assert_allclose(times, np.arange(len(times)) * 0.04, atol=2e-3)
    assert decoding.warning() == ""


def test_an_edit_list_that_skips_the_beginning_is_obeyed(tmp_path):
    data = mutate.originals()["h264.mp4"]
    at = data.index(b"elst") + 8 + 8  # version, count, then duration: the media time
    scale = int.from_bytes(data[(mdhd := data.index(b"mdhd") + 16) : mdhd + 4], "big")
    skip = int.from_bytes(data[at : at + 4], "big") + scale * 5 // 25
    (tmp_path / "a.mp4").write_bytes(data[:at] + skip.to_bytes(4, "big") + data[at + 4 :])
    decoding, frames = decoded(tmp_path / "a.mp4")
    assert len(frames) == bare_count(tmp_path / "a.mp4") == 7
    assert off(frames[0], mutate.real_frames()[5]) < 6
    np.testing.assert_allclose(frame_times(decoding), np.arange(8) / 25, atol=1e-3)


def test_a_live_recording_that_declares_no_length_is_whole(tmp_path):
    data = mutate.encoded(mutate.real_frames(), "matroska", "libx264", "yuv420p", {"live": "1"})
    (tmp_path / "a.mkv").write_bytes(data)
    decoding, frames = decoded(tmp_path / "a.mkv")
    assert decoding.probe.seconds == 0
    assert (len(frames), decoding.warning()) == (12, "")
    np.testing.assert_allclose(frame_times(decoding), np.arange(13) / 25, atol=2e-3)


@pytest.mark.parametrize(
    "name", ["h264.ts", "mpeg2.ts", "h264.mkv", "vp9.webm", "flv1.flv", "mpeg4.avi", "mpeg1.mpg", "anim.gif"]
)
def test_a_tail_that_is_missing_costs_the_tail_alone(tmp_path, name):
    data = mutate.originals()[name]
    (tmp_path / name).write_bytes(data[: len(data) * 7 // 8])
    decoding, frames = decoded(tmp_path / name)
    assert len(frames) == bare_count(tmp_path / name) >= 1
    assert (np.diff(frame_times(decoding)) > 0).all()


def test_a_stream_that_comes_up_late_does_not_end_the_video(tmp_path):
    alone = mutate.encoded(mutate.real_frames(), "mpegts", "mpeg2video", "yuv420p")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mpegts") as output:
        video, sound = output.add_stream("mpeg2video", rate=25), output.add_stream("mp2", rate=48000)
        video.height, video.width = mutate.real_frames()[0].shape[:2]
        video.pix_fmt = "yuv420p"
        for picture in mutate.real_frames():
            output.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        frame = av.AudioFrame("s16", "stereo", 1152)
        frame.sample_rate = 48000
        output.mux([*video.encode(None), *sound.encode(frame), *sound.encode(None)])
    (tmp_path / "a.ts").write_bytes(alone + buffer.getvalue())
    assert len(decoded(tmp_path / "a.ts")[1]) == 24


# --- turned and mirrored


def with_matrix(data, matrix):
    """``data`` of an mp4 with the 2 x 2 part of its display matrix set to ``matrix`` (a, b, c, d)."""
    a, b, c, d = ((value << 16).to_bytes(4, "big", signed=True) for value in matrix)
    at = data.index(b"tkhd") + 4 + 40
    return data[:at] + a + b + bytes(4) + c + d + data[at + 20 :]


@pytest.mark.parametrize(
    ("matrix", "shown"),
    {
        "none": ((1, 0, 0, 1), lambda p: p),
        "right": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
        "half": ((-1, 0, 0, -1), lambda p: np.rot90(p, 2)),
        "left": ((0, -1, 1, 0), lambda p: np.rot90(p, 1)),
        "mirrored": ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
        "upside down": ((1, 0, 0, -1), lambda p: p[::-1]),
        "transposed": ((0, 1, 1, 0), lambda p: p.transpose(1, 0, 2)),
    }.values(),
    ids=["none", "right", "half", "left", "mirrored", "upside_down", "transposed"],
)
def test_a_video_is_shown_as_its_display_matrix_asks(tmp_path, matrix, shown):
    data = mutate.encoded([corner_picture()] * 3, "mp4", "libx264", "yuv444p", codec_options={"crf": "5"})
    (tmp_path / "a.mp4").write_bytes(with_matrix(data, matrix))
    expected = shown(corner_picture())
    _, frames = decoded(tmp_path / "a.mp4", lambda f: (rgb(f), small_rgb(f), shown_size(f.width, f.height, f.rotation)))
    for whole, small, size in frames:
        assert size == expected.shape[1::-1]
        assert off(whole, expected) < 3
        assert off(small, expected) < 3


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_shown_as_its_exif_orientation_asks(tmp_path, extension, orientation):
    path = tmp_path / f"a.{extension}"
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(corner_picture()).save(path, exif=exif, quality=95)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    _, [(whole, small, size)] = decoded(
        path, lambda f: (rgb(f), small_rgb(f), shown_size(f.width, f.height, f.rotation))
    )
    assert size == expected.shape[1::-1]
    assert off(whole, expected) < 3
    assert off(small, expected) < 3


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_data_do_not_cost_the_photo(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(corner_picture()).save(tmp_path / "a.jpg", exif=exif)
    data = bytearray((tmp_path / "a.jpg").read_bytes())
    at = data.index(b"Exif") + 10
    data[at : at + 20] = b"\xff" * 20
    (tmp_path / "a.jpg").write_bytes(data)
    assert decoded(tmp_path / "a.jpg")[1][0].shape == (48, 64, 3)


# --- sizes, depths, ranges, colours


@pytest.mark.parametrize(("width", "height"), [(97, 55), (1, 1), (2, 2), (3000, 2), (2, 3000), (1, 300)])
@pytest.mark.parametrize("kind", [("matroska", "libx264", "yuv444p"), ("apng", "apng", "rgba"), ("gif", "gif", "rgb8")])
def test_any_size_is_kept_to_the_pixel(tmp_path, width, height, kind):
    pictures = [np.full((height, width, 3), level, np.uint8) for level in (0, 219, 219)]
    (tmp_path / "a").write_bytes(mutate.encoded(pictures, *kind))
    _, frames = decoded(tmp_path / "a", lambda f: (rgb(f), small_planes(f, 160)), deinterlace=True)
    assert len(frames) == 3
    assert frames[1][0].shape == (height, width, 3)
    assert max(frames[1][1].shape[1:]) <= max(160, 1)
    assert abs(frames[1][0].mean() - 219) < 16  # rgb8 has steps of 36 levels, dithered
    assert abs(frames[1][1][0].mean() - 219) < 16


X265 = {"x265-params": "log-level=none:pools=none:frame-threads=1:crf=4", "preset": "ultrafast"}
FORMATS = [
    ("libx264", "yuvj420p", {"crf": "4"}),
    ("libx264", "yuv422p", {"crf": "4"}),
    ("libx264", "yuv444p", {"crf": "4"}),
    ("libx264", "yuv420p10le", {"crf": "4"}),
    ("libx264", "yuv422p10le", {"crf": "4"}),
    ("libx264rgb", "bgr24", {"crf": "4"}),
    ("libx265", "yuv420p10le", X265),
    ("libx265", "yuv420p12le", X265),
    ("libx265", "yuv444p12le", X265),
    ("libx265", "gbrp", X265),
    ("libvpx-vp9", "yuv444p", {"crf": "4", "deadline": "realtime", "cpu-used": "8"}),
    ("ffv1", "gbrp14le", {}),
    ("prores", "yuv444p10le", {}),
    ("rawvideo", "yuyv422", {}),
]


@pytest.mark.parametrize(("codec", "pixels", "options"), FORMATS)
def test_every_depth_and_subsampling_gives_the_picture_that_was_stored(tmp_path, codec, pixels, options):
    pictures = mutate.real_frames(count=3)
    container = "avi" if codec == "rawvideo" else "matroska"
    (tmp_path / "a").write_bytes(mutate.encoded(pictures, container, codec, pixels, codec_options=options))
    _, frames = decoded(tmp_path / "a", lambda f: (rgb(f), small_rgb(f)))
    assert len(frames) == 3
    for (whole, small), picture in zip(frames, pictures, strict=True):
        assert off(whole, picture) < 3
        assert off(small, picture) < 3


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv420p10le", "yuv444p"])
@pytest.mark.parametrize("range_", ["tv", "pc"])
@pytest.mark.parametrize("level", [0, 100, 255])
def test_full_and_limited_range_give_the_same_levels(tmp_path, pixels, range_, level):
    graph = av.filter.Graph()
    source = graph.add_buffer(width=64, height=48, format="rgb24", time_base=Fraction(1, 25))
    scale = graph.add("scale", f"out_range={range_}")
    sink = graph.link_nodes(source, scale, graph.add("format", pixels), graph.add("buffersink"))
    sink.configure()
    picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), format="rgb24")
    picture.pts, picture.time_base = 0, Fraction(1, 25)
    graph.vpush(picture)
    with av.open(str(tmp_path / "a.mkv"), "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"crf": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        stream.codec_context.color_range = 1 if range_ == "tv" else 2
        output.mux([*stream.encode(graph.vpull()), *stream.encode(None)])
    _, [(whole, planes)] = decoded(tmp_path / "a.mkv", lambda f: (rgb(f), small_planes(f, 16)))
    assert np.abs(whole.astype(int) - level).max() <= 2
    assert np.abs(planes[0].astype(int) - level).max() <= 2
    assert np.abs(planes[1:].astype(int) - 128).max() <= 2


def over_black(image):
    rgba = np.asarray(image.convert("RGBA")).astype(float)
    return np.round(rgba[..., :3] * rgba[..., 3:] / 255).astype(np.uint8)


MODES = {
    "png": ["RGBA", "LA", "P", "L", "1", "RGB"],
    "webp": ["RGBA", "LA", "P", "L", "1", "RGB", "CMYK"],
    "jpg": ["L", "1", "RGB", "CMYK"],
    "tiff": ["RGBA", "LA", "P", "L", "1", "RGB", "CMYK"],
    "gif": ["RGBA", "LA", "P", "L", "1", "RGB"],
    "bmp": ["P", "L", "1", "RGB"],
}


@pytest.mark.parametrize(("extension", "mode"), [(e, mode) for e, modes in MODES.items() for mode in modes])
def test_every_kind_of_picture_is_what_pillow_shows_with_black_behind_it(tmp_path, extension, mode):
    pixels = np.zeros((48, 64, 4), np.uint8)
    pixels[:, :32] = (200, 100, 50, 255)
    pixels[24:, :, 3] = 128 if mode != "P" else 0
    pixels[24:, 32:] = (255, 255, 255, 0)
    pixels[:24, 32:, 3] = 255
    image = Image.fromarray(pixels)
    image = image.convert("RGB").convert("CMYK") if mode == "CMYK" else image.convert(mode)
    image.save(tmp_path / f"a.{extension}", quality=100)
    with Image.open(tmp_path / f"a.{extension}") as stored:
        expected = over_black(stored)
    _, [(whole, small)] = decoded(tmp_path / f"a.{extension}", lambda f: (rgb(f), small_rgb(f)))
    assert off(whole, expected) < 3
    assert off(small, expected) < 4


# --- stills and animations


def animation(path, count=5):
    images = [Image.fromarray(np.full((20, 30, 3), 40 * index, np.uint8)) for index in range(count)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=100)


@pytest.mark.parametrize("extension", ["gif", "png"])
def test_an_animated_picture_is_a_video(tmp_path, extension):
    animation(tmp_path / f"a.{extension}")
    decoding, frames = decoded(tmp_path / f"a.{extension}")
    assert not decoding.probe.still
    assert [int(f.mean()) for f in frames] == pytest.approx([0, 40, 80, 120, 160], abs=2)
    np.testing.assert_allclose(frame_times(decoding), np.arange(6) / 10, atol=1e-3)


def test_an_animated_webp_is_refused_with_the_reason_in_words(tmp_path):
    animation(tmp_path / "a.webp")
    with pytest.raises(MediaFault, match="animated WebP") as caught:
        decoded(tmp_path / "a.webp")
    assert caught.value.reason == Reason.NOT_MEDIA


def test_a_photo_with_a_second_picture_behind_it_is_the_first(tmp_path):
    # Phones store a preview or a gain map behind the photo, as a second JPEG in the same file.
    Image.fromarray(corner_picture()).save(tmp_path / "a.jpg")
    Image.fromarray(corner_picture(24, 32)).save(tmp_path / "b.jpg")
    (tmp_path / "c.jpg").write_bytes((tmp_path / "a.jpg").read_bytes() + (tmp_path / "b.jpg").read_bytes())
    decoding, frames = decoded(tmp_path / "c.jpg")
    assert [f.shape for f in frames] == [(48, 64, 3)]
    assert len(decoding.pts) == 1
