"""The cache: nothing is encoded twice, and nothing wrong is ever read."""

import multiprocessing
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kineograph.errors import UserError
from kineograph.models.text import CachedEncoder, empty_embedding, load_text_encoder

some_captions = st.lists(st.text("ab \n\0é", max_size=4), max_size=6)


def assert_equal(ours, theirs):
    assert ours.dtype == np.float16
    np.testing.assert_array_equal(ours, theirs)


@given(st.lists(some_captions, max_size=4), st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_cached_encoder_says_what_the_encoder_says_and_asks_for_each_caption_once(words, calls, reopened):
    with tempfile.TemporaryDirectory() as folder:
        encoder = words()
        cached = CachedEncoder(encoder, folder)
        for captions in calls:
            if reopened:
                cached = CachedEncoder(encoder, folder)
            for caption, states in zip(captions, cached.encode(captions), strict=True):
                assert_equal(states, encoder.states(caption))
        asked = [caption for call in encoder.calls for caption in call]
        assert (
            len(asked) == len(set(asked)) == len({c for captions in calls for c in captions}) == cached.size().captions
        )


def test_only_what_is_missing_is_encoded_in_one_call(words, tmp_path):
    encoder = words()
    cached = CachedEncoder(encoder, tmp_path)
    cached.encode(["red", "blue"])
    cached.encode(["green", "red", "circle", "blue", "green"])
    cached.encode(["circle"])
    assert encoder.calls == [["red", "blue"], ["green", "circle"]]


def test_it_is_the_encoder_to_whoever_uses_it(words, tmp_path):
    encoder = words()
    cached = CachedEncoder(encoder, tmp_path)
    for name in ("name", "width", "max_tokens", "fingerprint"):
        assert getattr(cached, name) == getattr(encoder, name)
    assert empty_embedding(cached).shape == (0, 8)


def test_another_encoder_finds_nothing_of_it(words, tmp_path):
    CachedEncoder(words(), tmp_path).encode(["red"])
    other = words(width=4, fingerprint="1" * 64)
    assert CachedEncoder(other, tmp_path).size().captions == 0
    assert CachedEncoder(other, tmp_path).encode(["red"])[0].shape == (1, 4)


def flip(data):
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("spoil", [flip, lambda data: data[:-3], lambda data: b"", lambda data: data + b"0"])
def test_a_damaged_file_is_made_again(words, tmp_path, spoil):
    cached = CachedEncoder(words(), tmp_path)
    whole = cached.encode(["red circle", "blue"])
    path = cached.path("red circle")
    good = path.read_bytes()
    path.write_bytes(spoil(good))
    encoder = words()
    for states, expected in zip(CachedEncoder(encoder, tmp_path).encode(["red circle", "blue"]), whole, strict=True):
        assert_equal(states, expected)
    assert encoder.calls == [["red circle"]]
    assert path.read_bytes() == good


def test_its_size_is_that_of_its_whole_files(words, tmp_path):
    cached = CachedEncoder(words(), tmp_path)
    assert cached.size() == (0, 0)
    cached.encode(["red circle", "blue"])
    path = cached.path("blue")
    path.with_name(path.name + ".tmp-0123abcd").write_bytes(b"what a killed writer left")
    assert cached.size() == (2, path.stat().st_size + cached.path("red circle").stat().st_size)


def test_a_folder_that_cannot_be_written_is_named(words, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        CachedEncoder(words(), tmp_path / "file").encode(["red"])


def encode_all(encoder, folder, captions):
    CachedEncoder(encoder, folder).encode(captions)


def test_processes_may_share_a_folder(words, tmp_path):
    encoder = words()
    captions = [f"caption {i}" for i in range(60)]
    fork = multiprocessing.get_context("fork")
    workers = [
        fork.Process(target=encode_all, args=(encoder, tmp_path, captions[i * 5 :] + captions[: i * 5]))
        for i in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    cached = CachedEncoder(encoder, tmp_path)
    for caption, states in zip(captions, cached.encode(captions), strict=True):
        assert_equal(states, encoder.states(caption))
    assert encoder.calls == []  # all of it was there
    assert len(list(tmp_path.rglob("*.*"))) == 60  # and nothing else


def test_a_warm_cache_needs_no_weights(t5_folder, tmp_path):
    spec = f"t5:{t5_folder}"
    made = CachedEncoder(load_text_encoder(spec), tmp_path).encode(["a cat"])
    encoder = load_text_encoder(spec)
    assert_equal(CachedEncoder(encoder, tmp_path).encode(["a cat"])[0], made[0])
    assert "_model" not in vars(encoder)
