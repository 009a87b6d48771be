import math

import numpy as np
import pytest

from pipelines.data.captions.measured import measured_caption

NAN = float("nan")
MIDDLE = {"media_type": "video", "luma": 0.45, "contrast": 0.2, "saturation": 0.08, "motion": 0.1, "static": 0.0}


def says(**signals):
    return measured_caption({**MIDDLE, **signals})


def test_the_words_of_a_clip():
    caption = says(luma=0.8, saturation=0.2, motion=0.3, pan=0.28, pan_direction=0.0)
    assert caption == "a bright, colourful video with fast motion, the camera pans left"


def test_what_is_not_measured_is_not_spoken_of():
    assert measured_caption({"media_type": "video"}) == "a video"
    empty = dict.fromkeys(("luma", "contrast", "saturation", "motion", "static", "pan", "pan_direction", "text_area"))
    assert measured_caption({"media_type": "video", **empty}) == "a video"
    assert measured_caption({"media_type": "video", **dict.fromkeys(empty, math.nan)}) == "a video"
    assert measured_caption({}) == "a clip"


@pytest.mark.parametrize(
    ("direction", "camera"),
    [
        (0, "pans left"),
        (180, "pans right"),
        (-180, "pans right"),
        (90, "tilts down"),
        (270, "tilts up"),
        (-90, "tilts up"),
        (45, "moves down and to the left"),
        (359, "pans left"),
    ],
)
def test_the_camera_turns_against_the_picture(direction, camera):
    assert says(pan=0.1, pan_direction=direction).endswith(f", the camera {camera}")


def test_what_moves_in_the_picture_is_not_the_camera():
    assert "camera" not in says(motion=0.3, pan=0.05, pan_direction=0.0)
    assert "camera" not in says(pan=0.1, pan_direction=NAN)
    assert "camera" not in says(pan=0.001, motion=0.001, pan_direction=10.0)


def test_an_image_neither_moves_nor_flashes_by_itself():
    caption = says(media_type="image", motion=0.5, pan=0.5, pan_direction=0.0, luma=0.1)
    assert caption == "a dark image"


def test_repeated_frames_are_no_motion_whatever_the_flow_says():
    assert "no motion" in says(static=1.0, motion=NAN)


def test_the_shape_is_that_of_the_picture_that_is_kept():
    assert says(content=[0, 0, 100, 200], width=300, height=200).startswith("an upright video")
    assert says(content=np.array([0, 0, 100, 100]), width=100, height=300).startswith("a video")
    assert says(width=100, height=300).startswith("an upright video")


def test_the_more_there_is_the_longer_the_list():
    caption = says(flashing=4, text_area=0.1)
    assert caption == "a video with some motion, flashing light and text in the picture"
