"""ViT: the ViT of the paper, checked against transformers', for images of any size."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from kineograph.errors import UserError
from kineograph.models.torchvision_shim import ensure_torchvision_importable
from kineograph.models.vit import VIT_PRESETS, ViT, ViTConfig, read_transformers_vit, resize_positions

TINY = ViTConfig(size=(12, 20), patch=(4, 4), width=16, depth=2, heads=2)


def randomised(model):
    """Weights as large as trained ones, biases and the head among them: nothing hides behind a zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter if parameter.ndim == 1 else 0))
    return model.eval()


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return randomised(ViT(TINY, 3))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """(folder that transformers saved, its model): a classifier of five classes for 24x24 pixels."""
    ensure_torchvision_importable()
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(1)
    config = transformers.ViTConfig(
        image_size=24,
        patch_size=8,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        num_labels=5,
    )
    model = randomised(transformers.ViTForImageClassification(config))
    model.save_pretrained(folder)
    return folder, model


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_it_is_the_vit_of_transformers(published):
    folder, theirs = published
    ours, images = read_transformers_vit(folder), torch.rand(4, 3, 24, 24) * 2 - 1
    with torch.inference_mode():
        close(ours.features(images), theirs.vit(images).last_hidden_state[:, 0])
        close(ours(images), theirs(images).logits)


@pytest.mark.parametrize("size", [(48, 48), (16, 40), (8, 8)])
def test_positions_are_interpolated_for_other_sizes_as_transformers_does(published, size):
    folder, theirs = published
    ours, images = read_transformers_vit(folder), torch.rand(2, 3, *size) * 2 - 1
    with torch.inference_mode():
        expected = theirs.vit(images, interpolate_pos_encoding=True).last_hidden_state[:, 0]
        close(ours.features(images), expected)


@pytest.mark.parametrize(
    ("preset", "count"),
    [("vit-tiny/16", 5_717_416), ("vit-s/16", 22_050_664), ("vit-b/16", 86_567_656), ("vit-l/16", 304_326_632)],
)
def test_presets_have_as_many_parameters_as_published(preset, count):
    with torch.device("meta"):
        model = ViT(VIT_PRESETS[preset], 1000)
    assert sum(p.numel() for p in model.parameters()) == count


def test_at_first_all_classes_are_equally_likely():
    logits = ViT(TINY, 3)(torch.rand(2, 3, 12, 20))
    assert logits.eq(0).all()


@settings(deadline=None, max_examples=20)
@given(height=st.integers(1, 33), width=st.integers(1, 33))
def test_any_size_is_taken_and_padded_with_grey_to_whole_patches(tiny, height, width):
    images = torch.rand(2, 3, height, width) * 2 - 1
    padded = F.pad(images, (0, -width % 4, 0, -height % 4))
    with torch.inference_mode():
        torch.testing.assert_close(tiny.features(images), tiny.features(padded), atol=0, rtol=0)


@settings(deadline=None, max_examples=20)
@given(
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    target=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_resized_positions_cover_the_same_picture(grid, target):
    rows = torch.linspace(-1, 1, 2 * grid[0] + 1)[1::2].repeat_interleave(grid[1])  # centres of patches
    positions = torch.cat([torch.tensor([5.0]), rows])[:, None]
    resized = resize_positions(positions, grid, target)
    assert resized.shape == (1 + target[0] * target[1], 1)
    assert resized[0] == 5
    field = resized[1:, 0].reshape(target)
    torch.testing.assert_close(field, field[:, :1].expand(target), atol=1e-5, rtol=0)  # columns do not matter
    torch.testing.assert_close(field, -field.flip(0), atol=1e-5, rtol=0)  # the middle stays in the middle


def test_a_model_goes_on_from_one_trained_at_another_size(tiny):
    same, larger = ViT(TINY, 7), ViT(TINY.model_copy(update={"size": (24, 40)}), 2)
    for model in (same, larger):
        model.start_from(tiny)
    images = torch.rand(2, 3, 12, 20)
    with torch.inference_mode():
        torch.testing.assert_close(same.eval().features(images), tiny.features(images), atol=0, rtol=0)
        images = torch.rand(2, 3, 24, 40)
        close(larger.eval().features(images), tiny.features(images))
        assert larger(images).eq(0).all()


def test_a_model_to_start_from_that_differs_is_named(tiny):
    with pytest.raises(UserError, match=r"has depth 2, this one 3: make them equal"):
        ViT(TINY.model_copy(update={"depth": 3}), 2).start_from(tiny)


def test_a_width_that_does_not_divide_into_heads_is_refused():
    with pytest.raises(ValueError, match="not a multiple"):
        ViTConfig(width=100, heads=12)


def test_a_folder_without_a_vit_is_one_line(published, tmp_path):
    with pytest.raises(UserError, match="holds no ViT"):
        read_transformers_vit(tmp_path)
    raw = json.loads((published[0] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw))
    state = load_file(published[0] / "model.safetensors")
    save_file({k: v for k, v in state.items() if "layer.1.intermediate" not in k}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"layer\.1\.intermediate\.dense\.weight") as error:
        read_transformers_vit(tmp_path)
    assert "\n" not in str(error.value)
    for change, said in (({"model_type": "swin"}, "holds a swin"), ({"hidden_act": "relu"}, "with relu")):
        (tmp_path / "config.json").write_text(json.dumps({**raw, **change}))
        with pytest.raises(UserError, match=said):
            read_transformers_vit(tmp_path)
