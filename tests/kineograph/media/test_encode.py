"""What is encoded comes back: every frame, its size, its rate and, closely, its colours."""

import io
import os
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from kineograph.media.encode import contact_sheet, encode_h264, write_mp4, write_png


def decode(data: bytes) -> tuple[np.ndarray, Fraction]:
    with av.open(io.BytesIO(data)) as container:
        rate = container.streams.video[0].average_rate
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]), rate


def moving_square(frames: int, height: int, width: int) -> np.ndarray:
    video = np.full((frames, height, width, 3), 120, np.uint8)
    for index in range(frames):
        video[index, 2:-2, index % (width - 4) : index % (width - 4) + 4] = (225, 40, 40)
    return video


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40), (33, 47), (32, 31), (2, 2), (100, 134)])
@pytest.mark.parametrize("fps", [4, Fraction(30000, 1001)])
def test_frames_size_and_rate_survive(height: int, width: int, fps: Fraction) -> None:
    video = moving_square(9, height, width) if width > 4 else np.full((9, height, width, 3), 77, np.uint8)
    decoded, rate = decode(encode_h264(video, fps))
    assert decoded.shape == video.shape
    assert rate == fps


@pytest.mark.parametrize("side", [32, 33])
@pytest.mark.parametrize(
    "colour", [(225, 40, 40), (40, 180, 60), (40, 70, 225), (240, 215, 40), (0, 0, 0), (255, 255, 255)]
)
def test_colours_survive(colour: tuple[int, int, int], side: int) -> None:
    video = np.broadcast_to(np.array(colour, np.uint8), (3, side, side, 3))
    decoded, _ = decode(encode_h264(video, 8))
    assert np.abs(decoded.astype(int) - video).max() <= 3


ENCODE_AND_HASH = """
import hashlib, numpy as np
from kineograph.media.encode import encode_h264
video = np.full((26, 100, 134, 3), 100, np.uint8)
for index in range(26):
    video[index, 20:60, 10 + 2 * index : 50 + 2 * index] = (225, 40, 40)
print(hashlib.sha256(encode_h264(video, 12)).hexdigest())
"""


def test_the_same_frames_give_the_same_bytes_whatever_memory_held_before() -> None:
    digests = set()
    for fill in ("1", "170", "255"):  # glibc fills fresh memory with it
        env = {**os.environ, "MALLOC_PERTURB_": fill, "PYTHONPATH": os.pathsep.join(sys.path)}
        run = subprocess.run([sys.executable, "-c", ENCODE_AND_HASH], env=env, capture_output=True, check=True)
        digests.add(run.stdout)
    assert len(digests) == 1


def test_an_iterator_of_frames_gives_the_bytes_of_the_array() -> None:
    video = moving_square(5, 32, 32)
    assert encode_h264(iter(video), 4) == encode_h264(video, 4)


def test_metadata_is_kept() -> None:
    with av.open(io.BytesIO(encode_h264(moving_square(2, 16, 16), 4, metadata={"title": "a red square"}))) as c:
        assert c.metadata["title"] == "a red square"


@pytest.mark.parametrize(
    ("frames", "fps", "message"),
    [
        (np.zeros((0, 8, 8, 3), np.uint8), 4, "at least one frame"),
        (np.zeros((2, 8, 8, 3), np.float32), 4, "uint8"),
        (np.zeros((2, 8, 8), np.uint8), 4, "uint8 of shape"),
        (np.zeros((2, 1, 8, 3), np.uint8), 4, "2 pixels"),
        (np.zeros((2, 8, 8, 3), np.uint8), 0, "positive"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 6, 3), np.uint8)], 4, "one size"),
    ],
)
def test_what_cannot_be_a_video_is_refused(frames: np.ndarray, fps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_h264(frames, fps)


def test_a_failed_write_leaves_nothing(tmp_path) -> None:
    def broken():
        yield np.zeros((8, 8, 3), np.uint8)
        raise RuntimeError("renderer died")

    with pytest.raises(RuntimeError, match="renderer died"):
        write_mp4(tmp_path / "a.mp4", broken(), 4)
    assert list(tmp_path.iterdir()) == []


def test_a_written_file_has_its_index_first(tmp_path) -> None:
    write_mp4(tmp_path / "a.mp4", moving_square(6, 32, 32), 4)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert len(decode(data)[0]) == 6


def test_a_contact_sheet_shows_small_frames_large(tmp_path) -> None:
    videos = [moving_square(8, 32, 32), moving_square(1, 24, 40)]
    sheet = contact_sheet(videos, ["a red square moving right", "a still"], columns_frames=4)
    assert sheet.width > 4 * 96
    assert sheet.height > 2 * 96
    write_png(tmp_path / "sheet.png", sheet)
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.size == sheet.size
    bare = np.asarray(contact_sheet(videos[:1], None, columns_frames=1, scale=1))
    assert (bare[4:36, 4:36] == videos[0][0]).all()


def test_a_contact_sheet_wants_a_label_for_each_video() -> None:
    with pytest.raises(ValueError, match="2 labels"):
        contact_sheet([moving_square(1, 8, 8)], ["a", "b"])
