"""Unsafe pictures, on harmless ones."""

import sys

import numpy as np
import pytest
from pydantic import ValidationError

from kineograph.errors import UserError
from pipelines.data.scores.safety import Safety, SafetyScorer


def test_real_people_on_bikes_and_in_a_car_are_safe(bikes, carphone):
    assert SafetyScorer(Safety())([bikes, carphone]) == [{"unsafe": 0.0}, {"unsafe": 0.0}]


def test_the_score_is_the_detectors_own_highest_for_the_parts_asked_for(carphone):
    from nudenet import NudeDetector

    parts = ("FACE_MALE", "FACE_FEMALE")
    detector = NudeDetector()
    own = [
        found["score"]
        for frame in carphone.frames
        for found in detector.detect(np.ascontiguousarray(frame[..., ::-1]))
        if found["class"] in parts
    ]
    (result,) = SafetyScorer(Safety(parts=parts))([carphone])
    assert max(own) > 0.5
    assert result["unsafe"] == pytest.approx(max(own), abs=1e-4)


def test_a_part_that_the_detector_does_not_know_is_refused():
    with pytest.raises(ValidationError, match="BUTTOCKS_EXPOSED"):
        Safety(parts=("ELBOW_EXPOSED",))


def test_a_missing_extra_is_one_line_that_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(UserError, match=r"pip install 'kineograph\[safety\]'"):
        SafetyScorer(Safety())
