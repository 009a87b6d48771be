"""The share of a picture that text covers."""

import socket
import sys
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from kineograph.errors import UserError
from kineograph.synth.plan import FilePlan, Shot
from kineograph.synth.scene import sample_scene
from kineograph.synth.spoil import plan_frames
from pipelines.data.scores.base import ClipFrames
from pipelines.data.scores.text_area import TextArea, TextAreaScorer, covered


@pytest.fixture(scope="module")
def scorer():
    return TextAreaScorer(TextArea())


def clip(*frames):
    return ClipFrames("clip", "", tuple(frames))


def with_subtitle(frame, size):
    image = Image.fromarray(frame)
    height, width = frame.shape[:2]
    font = ImageFont.load_default(size)
    ImageDraw.Draw(image).text((width // 8, height - 2 * size), "the quick brown fox", (255, 255, 255), font)
    return np.asarray(image)


def synthetic(kind, seed, width, height):
    rng = np.random.default_rng(seed)
    shot = Shot(sample_scene(rng), kind, Fraction(0), Fraction(1))
    return clip(*plan_frames(FilePlan(0, "x.mp4", kind, seed, width, height, Fraction(3), (shot,))))


@pytest.mark.parametrize("size", [16, 24, 40])
def test_a_subtitle_on_real_video_is_found_and_its_area_grows_with_it(scorer, bikes, size):
    plain = bikes.frames[0]
    box = ImageDraw.Draw(Image.new("RGB", (8, 8))).textbbox((0, 0), "the quick brown fox", ImageFont.load_default(size))
    inked = (box[2] - box[0]) * (box[3] - box[1]) / (plain.shape[0] * plain.shape[1])
    assert scorer.area(plain) == 0
    assert inked / 2 < scorer.area(with_subtitle(plain, size)) < inked * 3


def test_burnt_in_text_of_the_synthetic_world_stands_apart_from_everything_else_in_it(scorer):
    sizes = [(96, 96), (128, 96), (170, 96), (96, 128), (240, 240), (640, 360)]
    kinds = ("text", "normal", "static", "blurred", "black")
    areas = {kind: [] for kind in kinds}
    for seed, (width, height) in enumerate(sizes):
        for kind in kinds:
            areas[kind].append(scorer([synthetic(kind, seed, width, height)])[0]["text_area"])
    assert min(areas["text"]) > 0.4
    assert max(max(areas[kind]) for kind in kinds if kind != "text") < 0.05


def test_a_clip_is_given_the_median_of_its_frames(scorer, bikes):
    plain = bikes.frames[0]
    marked = with_subtitle(plain, 40)
    assert scorer([clip(plain, marked, plain)]) == [{"text_area": 0.0}]
    assert scorer([clip(plain, marked, marked)]) == [{"text_area": scorer.area(marked)}]


def test_what_boxes_share_counts_once():
    first = np.array([[0, 0], [9, 0], [9, 9], [0, 9]])
    second = first + np.array([5, 0])
    assert covered([first, second], 20, 20) == pytest.approx(15 * 10 / 400)


def test_no_network_is_asked_and_nothing_is_said(monkeypatch, capfd, noise):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert TextAreaScorer(TextArea())([noise])[0]["text_area"] >= 0
    assert capfd.readouterr() == ("", "")


def test_a_missing_extra_is_one_line_that_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(UserError, match=r"pip install 'kineograph\[ocr\]'"):
        TextAreaScorer(TextArea())
