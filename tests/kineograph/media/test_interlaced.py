"""Interlaced material: two fields, taken one after the other, become one whole picture."""

import io
import sys
from fractions import Fraction
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import av
import av.filter
import numpy as np
import pytest

from kineograph.media.decode import Decoding, deinterlaced, rgb
from kineograph.media.probe import MediaLimits, open_video

_spec = spec_from_file_location("mutate", Path(__file__).with_name("mutate.py"))
mutate = module_from_spec(_spec)
sys.modules["mutate"] = mutate
_spec.loader.exec_module(mutate)

LIMITS = MediaLimits()


def decoded(path, **options):
    with open_video(path, LIMITS) as (container, stream, probe):
        decoding = Decoding(container, stream, probe, LIMITS, **options)
        return decoding, [rgb(frame) for frame in decoding]


def off(one, other):
    """Mean difference in levels."""
    return float(np.abs(one.astype(int) - other).mean())


def moving_bar(time, height=128, width=96):
    picture = np.full((height, width, 3), 40, np.uint8)
    picture[20:110, 10 + 3 * time : 30 + 3 * time] = 230
    return picture


def interlaced(codec, first, count=10):
    """A bar that moves from field to field, as frames of two fields; ``first`` is 0 for the top field first."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        stream = output.add_stream(codec, rate=25, options={"flags": "+ilme+ildct", "qscale": "2"})
        stream.height, stream.width = moving_bar(0).shape[:2]
        stream.pix_fmt = "yuv420p"
        flagged = av.filter.Graph()
        source = flagged.add_buffer(width=96, height=128, format="yuv420p", time_base=Fraction(1, 25))
        mark = flagged.add("setfield", "tff" if first == 0 else "bff")
        flagged.link_nodes(source, mark, flagged.add("buffersink")).configure()
        for index in range(count):
            woven = np.empty_like(moving_bar(0))
            woven[first::2] = moving_bar(2 * index)[first::2]
            woven[1 - first :: 2] = moving_bar(2 * index + 1)[1 - first :: 2]
            frame = av.VideoFrame.from_ndarray(woven, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            flagged.vpush(frame)
            output.mux(stream.encode(flagged.vpull()))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def combing(picture):
    """How much each line differs from both its neighbours, in levels."""
    luma = picture.mean(axis=2)
    return np.abs(luma[:-2] - 2 * luma[1:-1] + luma[2:])[30:90].mean()


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
@pytest.mark.parametrize("first", [0, 1], ids=["top_first", "bottom_first"])
def test_fields_become_whole_pictures_one_for_each_frame(tmp_path, codec, first):
    (tmp_path / "a.mkv").write_bytes(interlaced(codec, first))
    plain, woven = decoded(tmp_path / "a.mkv")
    made, whole = decoded(tmp_path / "a.mkv", deinterlace=True)
    assert plain.interlaced == made.interlaced == 1.0
    assert len(woven) == len(whole) == 10
    assert made.pts == plain.pts
    assert np.mean([combing(p) for p in woven]) > 10
    assert np.mean([combing(p) for p in whole]) < 1
    for index, picture in enumerate(whole):  # the field that was taken first, so the order is right too
        assert off(picture, moving_bar(2 * index)) < 3
        assert off(picture, moving_bar(2 * index + 1)) > 3


def test_progressive_frames_pass_the_deinterlacer_unchanged(tmp_path):
    (tmp_path / "a.mp4").write_bytes(mutate.originals()["h264.mp4"])
    decoding, frames = decoded(tmp_path / "a.mp4")
    _, same = decoded(tmp_path / "a.mp4", deinterlace=True)
    assert decoding.interlaced == 0.0
    np.testing.assert_array_equal(frames, same)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_shortest_interlaced_clips_keep_their_count(tmp_path, count):
    (tmp_path / "a.mkv").write_bytes(interlaced("mpeg2video", 0, count))
    assert len(decoded(tmp_path / "a.mkv", deinterlace=True)[1]) == count


def test_frames_of_changing_size_keep_their_count_and_order(tmp_path):
    frames = []
    for name, data in (("a.mkv", interlaced("mpeg2video", 0, 4)), ("b.mp4", mutate.originals()["h264.mp4"])):
        (tmp_path / name).write_bytes(data)
        with av.open(str(tmp_path / name)) as container:
            frames += list(container.decode(video=0))
    mixed = frames[:4] + frames[4:7] + frames[:4]
    assert [f.width for f in deinterlaced(mixed)] == [96] * 11
    assert [f.height for f in deinterlaced(mixed)] == [128] * 4 + [54] * 3 + [128] * 4
