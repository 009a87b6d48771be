"""Class labels as text: the tokens that DiT is trained on, by way of a prompt."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kineograph.errors import UserError
from kineograph.models.dit import LABEL_WIDTH, label_tokens
from kineograph.models.text import encode_captions, load_text_encoder, parse_spec


@given(st.lists(st.integers(0, 65_535), max_size=20))
def test_a_prompt_becomes_the_token_of_its_class(classes):
    encoder = load_text_encoder("labels", max_tokens=1)
    states = encoder.encode([str(number) for number in classes])
    expected = label_tokens(torch.tensor(classes, dtype=torch.long))
    assert [state.shape for state in states] == [(encoder.max_tokens, encoder.width)] * len(classes)
    assert all(torch.equal(torch.from_numpy(state).float(), row) for state, row in zip(states, expected, strict=True))


def test_it_is_loaded_by_name_whatever_else_is_asked_for():
    encoder = load_text_encoder("labels", max_tokens=77, dtype="bfloat16")
    assert (encoder.name, encoder.width, encoder.max_tokens) == ("labels", LABEL_WIDTH, 1)
    assert encoder.fingerprint == load_text_encoder(encoder.name, encoder.max_tokens).fingerprint
    assert parse_spec("labels") == [("labels", "")]


def test_no_caption_is_no_class():
    nothing, some = encode_captions(load_text_encoder("labels"), [" ", " 207\n"])
    assert nothing.shape == (0, LABEL_WIDTH)
    assert some.tolist() == [[0, 207]]


@pytest.mark.parametrize("prompt", ["a cat", "-1", "65536", "2.5", "1e3", "²", "207 208", "9" * 10_000])
def test_a_prompt_that_is_no_class_is_named(prompt):
    with pytest.raises(UserError, match=r"number of a class, 0 to 65535, e\.g\. 207, and not '") as error:
        load_text_encoder("labels").encode(["3", prompt])
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("spec", ["labels+minilm", "minilm+labels", "labels:x"])
def test_labels_stand_alone(spec):
    with pytest.raises(UserError, match="no text encoder"):
        load_text_encoder(spec)
