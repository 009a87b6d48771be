"""What a user hands over is read as frames of any size and rate, the same at each reading, and never trusted."""

from __future__ import annotations

import time

import numpy as np
import psutil
import pytest
from PIL import Image

from kineograph.media.encode import write_mp4, write_png
from kineograph.media.faults import MediaFault
from kineograph.media.footage import Footage, read_comment
from kineograph.media.guard import GuardLimits
from kineograph.media.probe import MediaLimits
from kineograph.store.schema import Reason

FPS, FRAMES, HEIGHT, WIDTH = 8.0, 24, 40, 60


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Three seconds; frame n is of grey n·10."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    grey = np.arange(FRAMES, dtype=np.uint8) * 10
    video = np.broadcast_to(grey[:, None, None, None], (FRAMES, HEIGHT, WIDTH, 3))
    write_mp4(path, video, FPS, metadata={"comment": '{"prompt": "ein rötlicher Kreis"}'})
    return path


@pytest.fixture(scope="module")
def footage(film):
    return Footage.open(film)


def shades(frames):
    return [round(float(frame.mean()) / 10) for frame in frames]


def test_a_video_is_looked_at_whole(footage):
    assert (footage.width, footage.height, footage.is_still) == (WIDTH, HEIGHT, False)
    assert footage.seconds == pytest.approx(3.0)
    assert [footage.count(fps) for fps in (8.0, 24.0, 2.0, 0.1)] == [24, 72, 6, 1]


def test_at_its_own_rate_and_size_every_frame_comes_once(footage):
    assert shades(footage.frames(HEIGHT, WIDTH, FPS, 0, FRAMES)) == list(range(FRAMES))


def test_at_another_rate_each_frame_is_the_one_on_screen_in_the_middle_of_its_time(footage):
    assert shades(footage.frames(HEIGHT, WIDTH, 4.0, 0, 12)) == list(range(1, 24, 2))
    assert shades(footage.frames(HEIGHT, WIDTH, 16.0, 0, 6)) == [0, 0, 1, 1, 2, 2]


def test_a_stretch_is_the_same_as_in_the_whole(footage):
    whole = list(footage.frames(16, 16, FPS, 0, FRAMES))
    part = list(footage.frames(16, 16, FPS, 7, 11))
    assert np.array_equal(np.stack(part), np.stack(whole[7:11]))
    assert list(footage.frames(16, 16, FPS, 5, 5)) == []


def test_the_centre_is_cut_to_the_aspect(tmp_path):
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, 20:60] = 255
    write_png(tmp_path / "wide.png", picture)
    still = Footage.open(tmp_path / "wide.png")
    assert (still.is_still, still.count(8.0)) == (True, 1)
    (square,) = still.frames(20, 20, 8.0, 0, 1)
    assert (square == 255).all()
    (larger,) = still.frames(60, 60, 8.0, 0, 1)
    assert larger.shape == (60, 60, 3)
    assert (larger == 255).all()


def test_a_picture_of_the_size_asked_for_is_not_changed(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    write_png(tmp_path / "a.png", picture)
    (frame,) = Footage.open(tmp_path / "a.png").frames(33, 47, 8.0, 0, 1)
    assert np.array_equal(frame, picture)


def test_a_photo_is_shown_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    Image.fromarray(np.zeros((10, 30, 3), np.uint8)).save(tmp_path / "turned.jpg", exif=exif)
    still = Footage.open(tmp_path / "turned.jpg")
    assert (still.height, still.width) == (30, 10)


def test_the_comment_is_read(film, tmp_path):
    assert read_comment(film) == '{"prompt": "ein rötlicher Kreis"}'
    write_mp4(tmp_path / "none.mp4", np.zeros((2, 16, 16, 3), np.uint8), 8)
    assert read_comment(tmp_path / "none.mp4") == ""


def test_what_is_no_picture_is_refused(film, tmp_path):
    (tmp_path / "playlist.mp4").write_text(f"ffconcat version 1.0\nfile {film}\n")
    (tmp_path / "empty.mp4").touch()
    for name, reason in [
        ("playlist.mp4", Reason.NOT_MEDIA),
        ("empty.mp4", Reason.NOT_MEDIA),
        ("no", Reason.UNREADABLE),
    ]:
        with pytest.raises(MediaFault) as caught:
            Footage.open(tmp_path / name)
        assert caught.value.reason == reason
    with pytest.raises(MediaFault) as caught:
        Footage.open(film, MediaLimits(max_pixels=1000))
    assert caught.value.reason == Reason.TOO_LARGE


def test_a_file_that_was_replaced_by_a_shorter_one_is_told(footage, tmp_path):
    write_mp4(tmp_path / "short.mp4", np.zeros((4, HEIGHT, WIDTH, 3), np.uint8), FPS)
    changed = Footage(tmp_path / "short.mp4", *list(vars(footage).values())[1:])
    with pytest.raises(MediaFault, match="fewer frames than when it was looked at"):
        list(changed.frames(HEIGHT, WIDTH, FPS, 0, FRAMES))
    gone = Footage(tmp_path / "gone.mp4", *list(vars(footage).values())[1:])
    with pytest.raises(MediaFault, match="unreadable"):
        list(gone.frames(HEIGHT, WIDTH, FPS, 0, FRAMES))


def test_a_child_past_its_limits_is_a_fault(footage):
    confined = Footage(*list(vars(footage).values())[:-1], guard=GuardLimits(memory_bytes=1))
    # Which one depends on what memory is asked for first, and on what the child's parent still has free.
    with pytest.raises(MediaFault, match=r"crashed|too_large"):
        list(confined.frames(HEIGHT, WIDTH, FPS, 0, FRAMES))


def test_whoever_stops_reading_leaves_no_process(footage):
    before = set(psutil.Process().children())
    frames = footage.frames(4000, 6000, FPS, 0, FRAMES)  # more than a pipe holds
    next(frames)
    assert set(psutil.Process().children()) - before
    frames.close()
    deadline = time.monotonic() + 5
    while set(psutil.Process().children()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(psutil.Process().children()) - before
