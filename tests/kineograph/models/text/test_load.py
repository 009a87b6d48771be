"""Specs: what they name, and several encoders as one."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kineograph.errors import UserError
from kineograph.models.text import JoinedEncoder, encode_captions, load_text_encoder, parse_spec

words_of = st.lists(st.sampled_from(["red", "blue", "circle", "left"]), max_size=5).map(" ".join)


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("minilm", [("minilm", "")]),
        ("t5:google/t5-v1_1-xxl", [("t5", "google/t5-v1_1-xxl")]),
        ("minilm+t5:/models/a+b", [("minilm", ""), ("t5", "/models/a+b")]),
        ("clip:a/b+open_clip:hf-hub:c/d+minilm", [("clip", "a/b"), ("open_clip", "hf-hub:c/d"), ("minilm", "")]),
    ],
)
def test_a_spec_names_one_encoder_or_several(spec, parts):
    assert parse_spec(spec) == parts


@pytest.mark.parametrize("spec", ["bert", "", "t5:", "t5", "minilm:x", "+minilm", "minilm+", "minilm+bert:x", "t5: "])
def test_a_spec_that_is_not_known_is_named_with_those_that_are(spec):
    with pytest.raises(UserError, match=r"no text encoder '.*'; there is: minilm, t5:"):
        load_text_encoder(spec)


def test_a_caption_has_room_for_its_start_and_end():
    with pytest.raises(UserError, match="max_tokens is 1"):
        load_text_encoder("minilm", max_tokens=1)


def test_joined_encoders_speak_one_after_another(t5_folder, clip_folder):
    specs = f"t5:{t5_folder}", f"clip:{clip_folder}"
    t5, clip = (load_text_encoder(spec, 30) for spec in specs)
    joined = load_text_encoder("+".join(specs), 30)
    assert (joined.name, joined.width, joined.max_tokens) == ("+".join(specs), 24, 30)
    captions = ["a red circle moving left", "a cat", ""]
    for both, first, second in zip(joined.encode(captions), t5.encode(captions), clip.encode(captions), strict=True):
        assert both.dtype == np.float16
        np.testing.assert_array_equal(both[: len(first), :16], first)
        assert not both[: len(first), 16:].any()
        np.testing.assert_array_equal(both[len(first) :], second)


def test_the_recorded_name_and_limit_load_the_same_encoders(t5_folder, clip_folder):
    first = load_text_encoder(f"minilm+clip:{clip_folder}+t5:{t5_folder}", 100)
    again = load_text_encoder(first.name, first.max_tokens)
    assert first.max_tokens == 100
    assert again.fingerprint == first.fingerprint


def test_the_order_of_joined_encoders_is_in_the_fingerprint(words):
    a, b = words(fingerprint="a"), words(fingerprint="b")
    assert JoinedEncoder([a, b]).fingerprint != JoinedEncoder([b, a]).fingerprint


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.lists(words_of, max_size=5))
@settings(max_examples=50, deadline=None)
def test_joining_keeps_every_token_and_adds_only_zeros(words, widths, captions):
    encoders = [words(width) for width in widths]
    joined = JoinedEncoder(encoders)
    for caption, states in zip(captions, encode_captions(joined, captions), strict=True):
        parts = [encoder.states(caption) for encoder in encoders if caption]
        assert states.shape == (sum(len(part) for part in parts), max(widths))
        assert np.abs(states).sum(dtype=np.float64) == pytest.approx(
            sum(np.abs(part).sum(dtype=np.float64) for part in parts)
        )


def test_importing_the_package_loads_no_library_of_models():
    code = "import sys, kineograph.models.text; print({'torch', 'transformers', 'open_clip'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
