"""DiT: the published model's numbers, any size, classes and captions, and videos as images of their own."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch.nn import functional as F

from kineograph.errors import UserError
from kineograph.models.dit import LABEL_WIDTH, Captions, DiT, DiTConfig, label_tokens
from kineograph.models.importing_dit import load_dit, state_from_reference
from kineograph.models.positions import sincos_2d

REFERENCE = Path(__file__).parents[2] / "data" / "reference" / "dit.safetensors"
C, TEXT = 4, 12


def build(condition="text", **shape):
    """A model whose zeros have been learned away, so that every input matters."""
    text_width = TEXT if condition == "text" else LABEL_WIDTH
    small = {"width": 32, "depth": 2, "heads": 4, "grid": (3, 3), "num_classes": 10}
    torch.manual_seed(0)
    model = DiT(DiTConfig(in_channels=C, text_width=text_width, condition=condition, **{**small, **shape}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def inputs(frames=3, height=6, width=4, batch=2, tokens=5):
    g = torch.Generator().manual_seed(1)
    return {
        "latents": torch.randn(batch, C, frames, height, width, generator=g),
        "timestep": 1000 * torch.rand(batch, frames, generator=g),
        "text": torch.randn(batch, tokens, TEXT, generator=g),
        "text_mask": torch.ones(batch, tokens, dtype=torch.bool),
        "fps": torch.full((batch,), 8.0),
        "size": torch.tensor([[24.0, 16.0]] * batch),
    }


@pytest.fixture(scope="module")
def reference():
    with safe_open(REFERENCE, "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights = {k.removeprefix("weight."): v for k, v in tensors.items() if k.startswith("weight.")}
    return config, tensors, weights


class TestPublishedModel:
    def test_its_output_is_reproduced(self, reference):
        config, tensors, weights = reference
        model = load_dit(weights, heads=config["num_heads"])
        with torch.inference_mode():
            said = model.forward_images(tensors["input.x"], tensors["input.timestep"], tensors["input.label"])
        torch.testing.assert_close(said, tensors["output.plain"], atol=1e-5, rtol=0)

    def test_its_shape_is_read_from_the_weights(self, reference):
        config, _, weights = reference
        read, _ = state_from_reference(weights, heads=4)
        assert (read.width, read.depth, read.patch) == (
            config["hidden_size"],
            config["depth"],
            config["patch_size"],
        )
        assert (read.num_classes, read.learn_sigma) == (config["num_classes"], config["learn_sigma"])
        assert read.grid == (config["input_size"] // config["patch_size"],) * 2

    def test_its_position_table_is_what_is_computed_for_its_grid(self, reference):
        *_, weights = reference
        model = load_dit(weights, heads=4)
        torch.testing.assert_close(model._compute_positions((4, 4)), model.positions, atol=1e-6, rtol=0)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"pos_embed": torch.zeros(1, 15, 48)}, r"pos_embed is of shape \[1, 15, 48\], not .* a square grid"),
            ({"pos_embed": torch.zeros(1, 16, 44)}, r"pos_embed is of shape \[1, 16, 44\]"),
            ({"pos_embed": torch.zeros(2, 16, 48)}, r"pos_embed is of shape \[2, 16, 48\]"),
            ({"pos_embed": torch.zeros(16, 48)}, r"pos_embed is of shape \[16, 48\], not of 3 dimensions"),
            ({"extra.weight": torch.zeros(1)}, "1 tensors are unknown, e.g. extra.weight"),
            ({"blocks.1.mlp.fc2.bias": None}, "it has no blocks.1.mlp.fc2.bias"),
            ({"x_embedder.proj.weight": torch.zeros(48, 4, 1, 2, 2)}, "not of a 2D convolution"),
            ({"blocks.1.mlp.fc2.bias": torch.zeros(3)}, "does not fit together"),
        ],
    )
    def test_another_state_dict_is_refused(self, reference, change, said):
        *_, weights = reference
        changed = {name: tensor for name, tensor in (weights | change).items() if tensor is not None}
        with pytest.raises(UserError, match=said):
            load_dit(changed, heads=4)

    def test_unknown_heads_are_asked_for(self, reference):
        with pytest.raises(UserError, match="give --heads"):
            load_dit(reference[2])

    @settings(deadline=None, max_examples=10)
    @given(
        patch=st.sampled_from([1, 2, 4]),
        grid=st.integers(1, 4),
        heads=st.integers(1, 3),
        depth=st.integers(1, 3),
        hidden=st.integers(1, 50),
        sigma=st.booleans(),
        seed=st.integers(0, 99),
    )
    def test_any_shape_is_imported(self, patch, grid, heads, depth, hidden, sigma, seed):
        g = torch.Generator().manual_seed(seed)
        state = reference_state(patch, grid, 8 * heads, depth, hidden, C * (1 + sigma), g)
        x = torch.randn(3, C, grid * patch, grid * patch, generator=g).double()
        timestep, label = torch.tensor([0, 17, 999]), torch.tensor([0, 4, 2])
        with torch.inference_mode():
            said = load_dit(state, heads=heads).double().forward_images(x, timestep, label)
        double = {name: tensor.double() for name, tensor in state.items()}
        torch.testing.assert_close(said, reference_forward(double, heads, x, timestep, label), atol=1e-9, rtol=1e-9)


def reference_state(patch, grid, width, depth, hidden, out, g):
    """Random weights in the published names."""

    def linear(name, rows, columns):
        return {
            f"{name}.weight": torch.randn(rows, columns, generator=g) / columns**0.5,
            f"{name}.bias": 0.1 * torch.randn(rows, generator=g),
        }

    rows, columns = torch.arange(grid).repeat_interleave(grid), torch.arange(grid).repeat(grid)
    state = {
        "pos_embed": sincos_2d(rows, columns, width)[None],
        "y_embedder.embedding_table.weight": torch.randn(5, width, generator=g),
        "x_embedder.proj.weight": torch.randn(width, C, patch, patch, generator=g),
        "x_embedder.proj.bias": torch.randn(width, generator=g),
        **linear("t_embedder.mlp.0", width, 256),
        **linear("t_embedder.mlp.2", width, width),
        **linear("final_layer.adaLN_modulation.1", 2 * width, width),
        **linear("final_layer.linear", patch**2 * out, width),
    }
    for i in range(depth):
        state |= linear(f"blocks.{i}.attn.qkv", 3 * width, width) | linear(f"blocks.{i}.attn.proj", width, width)
        state |= linear(f"blocks.{i}.mlp.fc1", hidden, width) | linear(f"blocks.{i}.mlp.fc2", width, hidden)
        state |= linear(f"blocks.{i}.adaLN_modulation.1", 6 * width, width)
    return state


def reference_forward(state, heads, x, timestep, label):
    """The published forward pass, written down plainly from the paper's figure 3 and the shapes of its weights."""

    def linear(name, y):
        return F.linear(y, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(y, shift, scale):
        mean, variance = y.mean(-1, keepdim=True), y.var(-1, keepdim=True, correction=0)
        return (y - mean) / (variance + 1e-6).sqrt() * (1 + scale[:, None]) + shift[:, None]

    kernel = state["x_embedder.proj.weight"]
    width, patch = len(kernel), kernel.shape[-1]
    y = F.conv2d(x, kernel, state["x_embedder.proj.bias"], stride=patch).flatten(2).mT + state["pos_embed"]
    angles = timestep[:, None] * torch.exp(-math.log(10_000) * torch.arange(128) / 128)  # in fp32, as published
    code = torch.cat([angles.cos(), angles.sin()], dim=1).to(y.dtype)
    condition = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", code)))
    condition = F.silu(condition + state["y_embedder.embedding_table.weight"][label])
    for i in range(sum(name.endswith("attn.qkv.weight") for name in state)):
        name = f"blocks.{i}"
        parts = linear(f"{name}.adaLN_modulation.1", condition).chunk(6, dim=1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
        q, k, v = linear(f"{name}.attn.qkv", norm(y, shift, scale)).view(*y.shape[:2], 3, heads, -1).unbind(2)
        weights = (torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5).softmax(-1)
        attended = torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2)
        y = y + gate[:, None] * linear(f"{name}.attn.proj", attended)
        hidden = F.gelu(linear(f"{name}.mlp.fc1", norm(y, mlp_shift, mlp_scale)), approximate="tanh")
        y = y + mlp_gate[:, None] * linear(f"{name}.mlp.fc2", hidden)
    shift, scale = linear("final_layer.adaLN_modulation.1", condition).split(width, dim=1)
    y = linear("final_layer.linear", norm(y, shift, scale))
    side = x.shape[-1] // patch
    y = y.view(len(x), side, side, patch, patch, -1)
    return torch.einsum("nhwpqc->nchpwq", y).reshape(len(x), -1, side * patch, side * patch)


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 4, 4), (3, 5, 7), (2, 1, 3)])
@pytest.mark.parametrize("shape", [{"patch": 1}, {"patch": 2, "learn_sigma": True}, {"patch": 4, "qk_norm": True}])
def test_any_size_comes_out_as_it_went_in(shape, frames, height, width):
    said = build(**shape)(**inputs(frames, height, width))
    assert said.shape == (2, C * (1 + shape.get("learn_sigma", False)), frames, height, width)


@pytest.mark.parametrize("condition", ["class", "text"])
def test_a_fresh_model_says_zero_and_then_learns_everywhere(condition):
    torch.manual_seed(0)
    text_width = TEXT if condition == "text" else LABEL_WIDTH
    shape = {"width": 32, "depth": 2, "heads": 4, "num_classes": 3, "condition": condition}
    model = DiT(DiTConfig(in_channels=C, text_width=text_width, **shape))
    given = inputs(frames=1)
    if condition == "class":
        given["text"], given["text_mask"] = label_tokens(torch.tensor([0, 2])), torch.ones(2, 1, dtype=torch.bool)
    given["text_mask"][0] = False  # what stands for nothing is used as well
    assert not model(**given).any()
    target = torch.randn(given["latents"].shape)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):  # zeros open one after the other: the output, then the gates, then what is behind them
        optimizer.zero_grad()
        (model(**given) - target).square().mean().backward()
        optimizer.step()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_video_is_a_batch_of_images():
    model, given = build(), inputs()
    video = model(**given)
    for frame in range(3):
        image = model.forward_images(
            given["latents"][:, :, frame], given["timestep"][:, frame], Captions(given["text"], given["text_mask"])
        )
        torch.testing.assert_close(video[:, :, frame], image, atol=1e-5, rtol=0)


def test_padded_text_is_as_if_it_were_not_there():
    model, given = build(), inputs()
    padded = {
        **given,
        "text": torch.cat([given["text"], torch.full((2, 3, TEXT), 9.0)], dim=1),
        "text_mask": torch.cat([given["text_mask"], torch.zeros(2, 3, dtype=torch.bool)], dim=1),
    }
    torch.testing.assert_close(model(**padded), model(**given), atol=1e-5, rtol=0)


def test_without_a_caption_the_padding_is_not_read():
    model, given = build(), inputs()
    with_caption = model(**given)
    given["text_mask"][0] = False
    without = model(**given)
    torch.testing.assert_close(without[1], with_caption[1], atol=1e-5, rtol=0)
    assert (without[0] - with_caption[0]).abs().max() > 1e-4
    given["text"][0] = 9.0
    assert torch.equal(model(**given), without)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_class_is_told_as_a_token(dtype):
    model, given = build("class", num_classes=1000), inputs(frames=1)
    labels = torch.tensor([7, 999])
    given["text"] = label_tokens(labels).to(dtype)
    given["text_mask"] = torch.tensor([[True], [True]])
    images, timestep = given["latents"][:, :, 0], given["timestep"][:, 0]
    assert torch.equal(model(**given)[:, :, 0], model.forward_images(images, timestep, labels))
    given["text_mask"] = torch.tensor([[True], [False]])
    nothing = torch.tensor([7, 1000])  # the label after the last
    assert torch.equal(model(**given)[:, :, 0], model.forward_images(images, timestep, nothing))


@settings(deadline=None, max_examples=20)
@given(rows=st.integers(1, 6), columns=st.integers(1, 6))
def test_at_three_times_the_resolution_places_keep_their_code(rows, columns):
    model = build(grid=(rows, columns))
    fine = model._positions((3 * rows, 3 * columns)).unflatten(0, (3 * rows, 3 * columns))
    torch.testing.assert_close(fine[1::3, 1::3].flatten(0, 1), model.positions, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "wrong",
    [{"width": 30, "heads": 5}, {"width": 32, "heads": 5}, {"grid": (0, 3)}, {"condition": "class", "text_width": 12}],
)
def test_a_shape_that_cannot_work_is_refused(wrong):
    with pytest.raises(ValueError, match=r"must|multiple"):
        DiTConfig(**{"in_channels": C, "text_width": TEXT, "width": 32, "heads": 4, **wrong})
