"""MiniLM: a caption's states are its own, and no caption has none."""

import numpy as np
import pytest

from kineograph.models.text import empty_embedding, encode_captions, load_text_encoder


@pytest.fixture(scope="module")
def encoder():
    return load_text_encoder()


def test_a_caption_has_the_same_states_beside_any_others(encoder):
    caption = "a red circle moving left"
    others = ["a cat", "a blue square moving up", "a long caption about many things that lie on a table"]
    np.testing.assert_allclose(
        encoder.encode([*others, caption])[-1].astype(np.float32),
        encoder.encode([caption])[0].astype(np.float32),
        atol=2e-3,  # fp16 states of up to 2 in size
    )


def test_each_state_is_as_wide_as_the_encoder_says(encoder):
    assert encoder.encode(["a cat"])[0].shape == (4, encoder.width)  # two words, a start and an end


def test_captions_that_differ_have_different_states(encoder):
    left, right = encoder.encode(["a red circle moving left", "a red circle moving right"])
    assert np.abs(left.astype(np.float32) - right.astype(np.float32)).max() > 0.1


def test_an_empty_caption_has_no_tokens(encoder):
    states = encode_captions(encoder, ["", "a cat", "  \n"])
    assert [len(s) for s in states] == [0, 4, 0]


def test_the_empty_prompt_has_a_start_and_an_end(encoder):
    assert empty_embedding(encoder).shape == (2, 384)


def test_a_long_caption_is_cut_off(encoder):
    assert len(encoder.encode(["word " * 500])[0]) == encoder.max_tokens


def test_no_caption_is_longer_than_its_positions():
    encoder = load_text_encoder("minilm", max_tokens=2000)
    assert encoder.max_tokens == 512
    assert len(encoder.encode(["word " * 600])[0]) == 512
