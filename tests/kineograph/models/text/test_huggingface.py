"""T5 and CLIP: what transformers' own models say, from folders as transformers saves them."""

import contextlib
import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from kineograph.errors import UserError
from kineograph.models.text import empty_embedding, encode_captions, load_text_encoder

CAPTIONS = ["a red circle moving left", "a cat", "the blue square moving up on the table", "a dog", ""]
captions = st.lists(
    st.lists(st.sampled_from(["a", "red", "blue", "circle", "moving", "left", "down", "cat"]), max_size=9).map(
        " ".join
    ),
    min_size=1,
    max_size=6,
)


def assert_same(ours, theirs):
    assert ours.dtype == np.float16
    np.testing.assert_allclose(ours.astype(np.float32), np.asarray(theirs, np.float32), atol=2e-3)  # states up to 4


def last_states(model, tokenizer, captions, length):
    """What transformers says to captions padded to ``length``, as a list of those of the real tokens."""
    inputs = tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    return [h[: int(n)].numpy() for h, n in zip(hidden, inputs["attention_mask"].sum(1), strict=True)]


@pytest.fixture(scope="module")
def t5(t5_folder):
    return load_text_encoder(f"t5:{t5_folder}", max_tokens=20)


@pytest.fixture(scope="module")
def clip(clip_folder):
    return load_text_encoder(f"clip:{clip_folder}")


def test_t5_says_what_the_encoder_of_the_whole_t5_says(t5, t5_folder):
    from transformers import AutoTokenizer, T5ForConditionalGeneration

    whole = T5ForConditionalGeneration.from_pretrained(t5_folder).eval()
    theirs = last_states(whole.encoder, AutoTokenizer.from_pretrained(t5_folder), CAPTIONS, length=20)
    for ours, expected in zip(t5.encode(CAPTIONS), theirs, strict=True):
        assert ours.shape[1] == t5.width == 16
        assert_same(ours, expected)


def test_clip_says_what_the_text_tower_says_to_padded_captions(clip, clip_folder):
    from transformers import AutoTokenizer, CLIPModel

    whole = CLIPModel.from_pretrained(clip_folder).eval()
    theirs = last_states(whole.text_model, AutoTokenizer.from_pretrained(clip_folder), CAPTIONS, length=12)
    for ours, expected in zip(clip.encode(CAPTIONS), theirs, strict=True):
        assert ours.shape[1] == clip.width == 24
        assert_same(ours, expected)


def test_the_states_run_to_the_end_token(t5, clip):
    assert [len(s) for s in t5.encode(CAPTIONS)] == [6, 3, 9, 3, 1]  # words and an end
    assert [len(s) for s in clip.encode(CAPTIONS)] == [7, 4, 10, 4, 2]  # words, a start and an end


@given(captions, st.randoms())
@settings(max_examples=15, deadline=None)
def test_neighbours_do_not_change_a_caption(t5, clip, some, random):
    for encoder in (t5, clip):
        alone = {caption: encoder.encode([caption])[0] for caption in some}
        mixed = random.sample(some, len(some)) + some
        for caption, states in zip(mixed, encoder.encode(mixed), strict=True):
            assert_same(states, alone[caption])


def test_a_long_caption_is_cut_and_still_ends(t5, clip):
    for encoder, limit in ((t5, 20), (clip, 12)):
        (states,) = encoder.encode(["cat " * 50])
        assert encoder.max_tokens == len(states) == limit
    tokens = clip._tokenizer("cat " * 50, truncation=True, max_length=clip.max_tokens)["input_ids"]
    assert tokens[-1] == clip._tokenizer.eos_token_id


def test_the_empty_prompt_is_what_the_encoder_says_to_nothing(t5, clip):
    for encoder, tokens in ((t5, 1), (clip, 2)):
        np.testing.assert_array_equal(empty_embedding(encoder), encoder.encode([""])[0])
        assert len(empty_embedding(encoder)) == tokens
        assert len(encode_captions(encoder, [""])[0]) == 0


def test_only_the_encoder_of_a_t5_is_in_memory(t5):
    t5.encode(["a cat"])
    assert not [name for name, _ in t5._model.named_parameters() if "decoder" in name]
    assert sum(p.numel() for p in t5._model.parameters()) == sum(p.numel() for p in t5._model.encoder.parameters())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_may_be_held_in_half_precision(t5, t5_folder, dtype):
    half = load_text_encoder(f"t5:{t5_folder}", 20, dtype=dtype)
    for ours, full in zip(half.encode(CAPTIONS), t5.encode(CAPTIONS), strict=True):
        np.testing.assert_allclose(ours.astype(np.float32), full.astype(np.float32), atol=0.1)
    assert half._model.shared.weight.dtype == getattr(torch, dtype)


def test_states_that_overflow_are_refused(t5_folder, tmp_path):
    folder = shutil.copytree(t5_folder, tmp_path / "large")
    weights = load_file(folder / "model.safetensors")
    weights["encoder.final_layer_norm.weight"] *= 1e6
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="bfloat16"):
        load_text_encoder(f"t5:{folder}").encode(["a cat"])


def test_a_pipeline_of_diffusers_keeps_the_tokenizer_beside_the_encoder(t5, t5_folder, tmp_path):
    for name, pattern in (("text_encoder_2", "[cm]*"), ("tokenizer_2", "tok*")):
        (tmp_path / name).mkdir()
        for file in t5_folder.glob(pattern):
            shutil.copy(file, tmp_path / name)
    beside = load_text_encoder(f"t5:{tmp_path}/text_encoder_2", 20)
    np.testing.assert_array_equal(beside.encode(["a cat"])[0], t5.encode(["a cat"])[0])
    assert beside.fingerprint == t5.fingerprint  # the same files elsewhere


def test_the_fingerprint_covers_what_states_depend_on(t5_folder, tmp_path):
    def fingerprint(folder=t5_folder, max_tokens=20, dtype="float32"):
        return load_text_encoder(f"t5:{folder}", max_tokens, dtype=dtype).fingerprint

    changed = shutil.copytree(t5_folder, tmp_path / "changed")
    weights = load_file(changed / "model.safetensors")
    weights["shared.weight"][3, 0] += 1e-3
    save_file(weights, changed / "model.safetensors", {"format": "pt"})
    renamed = shutil.copytree(t5_folder, tmp_path / "renamed")
    tokenizer = renamed / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"cat"', '"hat"'))
    prints = [fingerprint(), fingerprint(max_tokens=19), fingerprint(dtype="bfloat16"), fingerprint(changed)]
    assert len({*prints, fingerprint(renamed)}) == 5
    assert fingerprint() == prints[0]


def without_safetensors(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def without_some_weights(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.block.1.layer.0.SelfAttention.k.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def with_another_tokenizer(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {f"w{i}": 100 + i for i in range(20)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:300])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (without_safetensors, "no model.safetensors"),
        (without_some_weights, "weights lack 1"),
        (with_another_tokenizer, "tokenizer has"),
        (cut("model.safetensors"), "cannot be loaded"),
        (cut("tokenizer.json"), "cannot be loaded"),
        (cut("config.json"), "cannot be loaded"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "tokenizer.json").write_text("[]"), "cannot be loaded"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
    ],
)
def test_a_wrong_folder_is_named_in_one_line(t5_folder, tmp_path, spoil, says):
    folder = shutil.copytree(t5_folder, tmp_path / "folder")
    spoil(folder)
    with pytest.raises(UserError, match=says) as caught:
        load_text_encoder(f"t5:{folder}").encode(["a cat"])
    assert f"t5:{folder}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_of_another_kind_is_named(t5_folder, clip_folder):
    with pytest.raises(UserError, match="of type t5, not clip"):
        load_text_encoder(f"clip:{t5_folder}")
    with pytest.raises(UserError, match="of type clip, not t5"):
        load_text_encoder(f"t5:{clip_folder}")


def test_a_tokenizer_that_needs_another_package_says_which(t5_folder, tmp_path, monkeypatch):
    folder = shutil.copytree(t5_folder, tmp_path / "folder")
    (folder / "tokenizer.json").rename(folder / "spiece.model")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sentencepiece" else find_spec(name))
    with pytest.raises(UserError, match="pip install sentencepiece"):
        load_text_encoder(f"t5:{folder}")


def test_code_that_comes_with_a_model_does_not_run(t5_folder, tmp_path):
    folder = shutil.copytree(t5_folder, tmp_path / "folder")
    ran = tmp_path / "ran"
    (folder / "theirs.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Theirs: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "theirs.Theirs", "AutoModel": "theirs.Theirs"}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": ["theirs.Theirs", "theirs.Theirs"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    with contextlib.suppress(UserError):
        load_text_encoder(f"t5:{folder}").encode(["a cat"])
    assert not ran.exists()
