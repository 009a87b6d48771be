"""Which of the sampled frames a model looks at."""

import subprocess
import sys

import pytest

from pipelines.data.scores.frames import choose_evenly, choose_most


@pytest.mark.parametrize(
    ("have", "count", "chosen"),
    [(9, 3, [1, 4, 7]), (5, 1, [2]), (4, 4, [0, 1, 2, 3]), (2, 4, [0, 0, 1, 1]), (1, 3, [0, 0, 0])],
)
def test_frames_are_the_middles_of_equal_shares(have, count, chosen):
    assert choose_evenly(range(have), count) == chosen


def test_no_frame_is_repeated_to_reach_the_most():
    assert choose_most([7, 8], 4) == [7, 8]


def test_reading_a_recipe_loads_no_model_library():
    modules = ", ".join(f"pipelines.data.scores.{name}" for name in ("clip", "learned", "safety", "text_area"))
    heavy = "{'torch', 'onnxruntime', 'open_clip', 'transformers', 'rapidocr', 'nudenet'}"
    code = f"import sys; import {modules}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
