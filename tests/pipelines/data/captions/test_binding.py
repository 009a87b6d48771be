import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.data.captions.binding import caption_columns, caption_hash, choose, wants_model
from pipelines.data.captions.config import CaptionModel, Captions

ROW = {"clip_id": "c1", "media_type": "video", "luma": 0.9}
ANSWER = {"caption": "a dog runs", "caption_source": "model", "caption_model": "vlm@abc"}
BOTH = Captions(model=CaptionModel(model="vlm"), measured=True)


def test_the_hash_is_fixed_for_all_times():
    assert caption_hash("c1", "a dog", "model", "vlm@1") == (
        hashlib.sha256(b'["c1", "a dog", "model", "vlm@1"]').hexdigest()
    )


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.tuples(*[st.text(max_size=4)] * 4), min_size=2, max_size=2, unique=True))
def test_nothing_else_has_the_same_hash(pair):
    assert caption_hash(*pair[0]) != caption_hash(*pair[1])


def test_text_cannot_move_between_the_fields_unseen():
    assert caption_hash("c1", "a", "b", "") != caption_hash("c1", "a b", "", "")
    assert caption_hash("c1", 'a", "b', "x", "") != caption_hash("c1", "a", "b", "x")


def test_the_first_source_of_the_order_that_has_a_caption_gives_it():
    given = {"sidecar": "beside", "manifest": "listed"}
    assert choose(given, ANSWER, ROW, BOTH)["caption"] == "beside"
    assert choose({"sidecar": " ", "manifest": "listed"}, ANSWER, ROW, BOTH)["caption_source"] == "manifest"
    other = Captions(order=("manifest", "sidecar"))
    assert choose(given, None, ROW, other)["caption"] == "listed"


def test_a_model_caption_keeps_its_writer():
    columns = choose({}, ANSWER, ROW, BOTH)
    assert columns == caption_columns("c1", "a dog runs", "model", "vlm@abc")
    assert columns["caption_hash"] == caption_hash("c1", "a dog runs", "model", "vlm@abc")


def test_a_silent_model_leaves_it_to_the_signals():
    silent = {"caption": "", "caption_source": "", "caption_model": ""}
    columns = choose({}, silent, ROW, BOTH)
    assert columns["caption"] == "a bright video"
    assert (columns["caption_source"], columns["caption_model"]) == ("measured", "")


def test_a_clip_without_a_caption_has_no_hash_either():
    assert set(choose({}, None, ROW, Captions()).values()) == {""}


def test_the_model_is_asked_only_where_it_is_needed():
    assert wants_model({}, BOTH)
    assert not wants_model({"sidecar": "beside"}, BOTH)
    assert wants_model({"sidecar": " "}, BOTH)
    assert not wants_model({}, Captions())
    first = BOTH.model_copy(update={"order": ("model", "sidecar", "measured")})
    assert wants_model({"sidecar": "beside"}, first)


@pytest.mark.parametrize(
    "wrong",
    [
        {"order": ["sidecar", "sidecar"]},
        {"order": ["model"]},
        {"order": ["measured"]},
        {"order": ["sidecar"], "measured": True},
        {"order": ["sidecar"], "model": {"model": "vlm"}},
        {"order": ["crowd"]},
        {"model": {"model": "vlm", "prompt": " "}},
    ],
)
def test_an_order_that_does_not_fit_what_is_on_is_refused(wrong):
    with pytest.raises(ValidationError):
        Captions.model_validate(wrong)
