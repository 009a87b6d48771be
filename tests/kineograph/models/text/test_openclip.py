"""open_clip's models: what their text towers say, from the forms in which open_clip finds them."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from kineograph.errors import UserError
from kineograph.models.text import empty_embedding, load_text_encoder

CAPTIONS = ["a red circle moving left", "a cat", "hello! <end_of_text> there!", "!", ""]


@pytest.fixture(scope="module")
def encoder(open_clip_folder):
    return load_text_encoder(f"open_clip:local-dir:{open_clip_folder}")


@pytest.fixture(scope="module")
def whole(open_clip_folder):
    import open_clip

    model = open_clip.create_model(f"local-dir:{open_clip_folder}").eval()
    return model, open_clip.get_tokenizer(f"local-dir:{open_clip_folder}")


def assert_same(ours, theirs):
    assert ours.dtype == np.float16
    np.testing.assert_allclose(ours.astype(np.float32), np.asarray(theirs, np.float32), atol=2e-3)  # states up to 4


def test_states_are_those_behind_the_last_norm(encoder, whole):
    model, tokenizer = whole
    seen = []
    model.ln_final.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.inference_mode():
        model.encode_text(tokenizer(CAPTIONS))
    for ours, theirs in zip(encoder.encode(CAPTIONS), seen[0], strict=True):
        assert ours.shape[1] == encoder.width == 24
        assert_same(ours, theirs[: len(ours)])


def test_the_end_token_is_last_and_is_what_open_clip_pools(encoder, whole):
    model, tokenizer = whole
    plain = ["a red circle moving left", "a cat", ""]
    with torch.inference_mode():
        pooled = model.encode_text(tokenizer(plain)).numpy()
    last = np.stack([states[-1] for states in encoder.encode(plain)]).astype(np.float32)
    np.testing.assert_allclose(last @ model.text_projection.detach().numpy(), pooled, atol=2e-3)


def test_padding_is_left_out(encoder):
    lengths = [len(states) for states in encoder.encode(CAPTIONS)]
    assert lengths == [7, 4, 7, 3, 2]  # a start and an end each; an end token in the text is not the end
    assert len(empty_embedding(encoder)) == 2


@given(st.lists(st.sampled_from([*CAPTIONS, "cat " * 40]), min_size=1, max_size=6))
@settings(max_examples=10, deadline=None)
def test_neighbours_do_not_change_a_caption(encoder, some):
    for caption, states in zip(some, encoder.encode(some), strict=True):
        assert_same(states, encoder.encode([caption])[0])


def test_a_long_caption_is_cut_at_the_limit(open_clip_folder, encoder):
    assert encoder.max_tokens == len(encoder.encode(["cat " * 40])[0]) == 14
    short = load_text_encoder(f"open_clip:{open_clip_folder}", max_tokens=5)
    states, brief = short.encode(["cat " * 40, "a cat"])
    assert short.max_tokens == len(states) == 5
    assert_same(brief, encoder.encode(["a cat"])[0])


def test_an_architecture_may_have_its_weights_in_a_file(open_clip_folder, monkeypatch, encoder):
    import open_clip

    config = json.loads((open_clip_folder / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config)
    file = open_clip_folder / "open_clip_model.safetensors"
    from_file = load_text_encoder(f"open_clip:tiny/{file}")
    np.testing.assert_array_equal(from_file.encode(["a cat"])[0], encoder.encode(["a cat"])[0])
    assert from_file.fingerprint == encoder.fingerprint


def test_a_tower_that_looks_both_ways_sees_the_padding_it_was_trained_with(tmp_path, small_tokenizer):
    """SigLIP's kind: attention without a causal mask, a tokenizer in the folder, padding to the full context."""
    import open_clip

    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
        "text_cfg": {
            "context_length": 9, "vocab_size": 32, "width": 24, "heads": 2, "layers": 2, "hf_tokenizer_name": "none/none",
            "no_causal_mask": True, "pool_type": "last", "proj_bias": True, "tokenizer_kwargs": {"trust_remote_code": True},
        },
        "custom_text": True,
    }  # fmt: skip
    torch.manual_seed(3)
    model = open_clip.CustomTextCLIP(**{k: v for k, v in config.items() if k != "custom_text"}).eval()
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    small_tokenizer.save_pretrained(tmp_path)
    encoder = load_text_encoder(f"open_clip:{tmp_path}", max_tokens=5)
    captions = ["a cat", "a red circle moving left"]
    ids = torch.tensor([[0] * 9] * 2)
    ids[0, :3] = torch.tensor(small_tokenizer("a cat")["input_ids"])
    ids[1, :5] = torch.tensor(small_tokenizer(captions[1], truncation=True, max_length=5)["input_ids"])
    model.text.output_tokens = True
    with torch.inference_mode():
        theirs = model.text(ids)[1]
    for ours, expected, length in zip(encoder.encode(captions), theirs, (3, 5), strict=True):
        assert_same(ours, expected[:length])
        assert len(ours) == length


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_may_be_held_in_half_precision(encoder, open_clip_folder, dtype):
    half = load_text_encoder(f"open_clip:{open_clip_folder}", dtype=dtype)
    for ours, full in zip(half.encode(CAPTIONS), encoder.encode(CAPTIONS), strict=True):
        np.testing.assert_allclose(ours.astype(np.float32), full.astype(np.float32), atol=0.1)


def test_the_picture_tower_is_not_kept(encoder):
    encoder.encode(["a cat"])
    assert not [name for name, _ in encoder._model.named_parameters() if name.startswith("visual")]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("open_clip:ViT-none/openai", "no architecture 'ViT-none'"),
        ("open_clip:ViT-B-32/none", "laion2b_s34b_b79k"),
        ("open_clip:ViT-B-32/weights.pt", "give a .safetensors file or a tag"),
        ("open_clip:roberta-ViT-B-32/laion2b_s12b_b32k", "not a plain CLIP"),
        ("open_clip:coca_ViT-B-32/laion2b_s13b_b90k", "not a plain CLIP"),
        ("open_clip:ViT-B-16-SigLIP/webli", "hf-hub"),
        ("open_clip:local-dir:/none", "no such folder"),
    ],
)
def test_what_cannot_be_loaded_is_named_in_one_line(spec, says):
    with pytest.raises(UserError, match=says) as caught:
        load_text_encoder(spec)
    assert spec in str(caught.value)
    assert "\n" not in str(caught.value)


def as_pickle(folder):
    weights = load_file(folder / "open_clip_model.safetensors")
    torch.save(weights, folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_model.safetensors").unlink()


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:100])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (as_pickle, "no open_clip_model.safetensors"),
        (cut("open_clip_model.safetensors"), "cannot be loaded"),
        (cut("open_clip_config.json"), "cannot be loaded"),
        (lambda folder: (folder / "open_clip_config.json").unlink(), "no open_clip_config.json"),
    ],
)
def test_a_damaged_folder_is_named_in_one_line(open_clip_folder, tmp_path, spoil, says):
    folder = shutil.copytree(open_clip_folder, tmp_path / "folder")
    spoil(folder)
    with pytest.raises(UserError, match=says) as caught:
        load_text_encoder(f"open_clip:local-dir:{folder}").encode(["a cat"])
    assert "\n" not in str(caught.value)
