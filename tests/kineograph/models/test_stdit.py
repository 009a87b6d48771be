"""STDiT: three layouts, any size, a timestep for each frame, captions that are there or not, and what a start is."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from kineograph.models.layers import modulate, pack_tokens
from kineograph.models.positions import grid_coordinates, rope_axes
from kineograph.models.stdit import STDiT, STDiTBlock, STDiTConfig, block_axes

C, TEXT = 4, 12
PUBLISHED = {"pooled_text": False, "text_mlp": True, "null_tokens": 3, "learn_sigma": True, "period": 10_000.0}
LAYOUTS = {
    "own": {},
    "full": {"layout": "full"},
    "alternating": {"layout": "alternating"},
    "opensora_v1": {
        **PUBLISHED,
        "plain_time": True,
        "qk_norm": "none",
        "rope": "none",
        "conditions": (),
        "grid": "fixed",
    },
    "opensora_v3": {
        **PUBLISHED,
        "layout": "alternating",
        "qk_norm": "self",
        "rope": "time",
        "conditions": ("fps",),
        "grid": "by_resolution",
        "grid_base": 32.0,
        "remodulate_given": True,
    },
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


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


def build(layout="own", **shape):
    torch.manual_seed(0)
    small = {"width": 32, "depth": 2, "heads": 4}
    return STDiT(STDiTConfig(in_channels=C, text_width=TEXT, **small | LAYOUTS[layout] | shape))


def trained(layout="own", **shape):
    """One whose zeros have been learned away, so that every input matters."""
    model = build(layout, **shape)
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=g))
    return model.eval()


def without_attention(model, axes):
    """The model with nothing coming out of attention along ``axes``."""
    with torch.no_grad():
        for block in model.blocks:
            for axis in set(axes) & set(block.axes):
                block.attention[axis].out.weight.zero_()
    return model


def said(model, changes=None, **size):
    with torch.inference_mode():
        return model(**inputs(**size) | (changes or {}))


class TestOutput:
    @every_layout
    @pytest.mark.parametrize(("frames", "height", "width"), [(1, 4, 4), (3, 5, 7), (2, 1, 3), (4, 6, 2)])
    @pytest.mark.parametrize("patch", [(1, 1, 1), (1, 2, 2), (1, 2, 3)])
    def test_has_the_size_of_the_latents(self, layout, patch, frames, height, width):
        model = build(layout, patch=patch)
        channels = 2 * C if model.config.learn_sigma else C
        assert said(model, frames=frames, height=height, width=width).shape == (2, channels, frames, height, width)

    @every_layout
    def test_of_a_fresh_model_is_zero(self, layout):
        assert not said(build(layout)).any()

    @every_layout
    def test_is_as_good_in_bf16(self, layout):
        changes = {k: v.bfloat16() if k in ("latents", "text") else v for k, v in inputs().items()}
        exact = said(trained(layout))
        rounded = said(trained(layout).bfloat16(), changes)
        assert rounded.dtype == torch.bfloat16
        assert (rounded.float() - exact).square().mean().sqrt() < 0.05 * exact.square().mean().sqrt()

    @every_layout
    def test_is_the_same_after_a_round_trip_through_a_file(self, layout, tmp_path):
        model, other = trained(layout), build(layout)
        save_file(model.state_dict(), tmp_path / "model.safetensors")
        other.load_state_dict(load_file(tmp_path / "model.safetensors"))
        assert torch.equal(said(other.eval()), said(model))

    @every_layout
    def test_what_is_padded_to_whole_patches_is_zero(self, layout):
        """Odd sides are those of the model on zeros in their place, cut to size."""
        model, given = trained(layout), inputs(height=5, width=3)
        padded = torch.nn.functional.pad(given["latents"], (0, 1, 0, 1))
        torch.testing.assert_close(
            said(model, given), said(model, given | {"latents": padded})[..., :5, :3], atol=1e-5, rtol=0
        )


@every_layout
def test_gradients_reach_every_parameter_in_three_steps(layout):
    model, given = build(layout), inputs()
    given["text_mask"][0] = False  # the parameter for "no caption" is used as well
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    target = torch.randn(model(**given).shape, generator=torch.Generator().manual_seed(3))
    for _ in range(3):  # zeros open one after the other: the output, then the gates, then what is behind them
        optimizer.zero_grad()
        (model(**given) - target).square().mean().backward()
        optimizer.step()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, _ in model.named_parameters()} - trainable.keys() <= {"time_frequencies"}  # RoPE's
    still = [name for name, p in trainable.items() if p.grad is None or not p.grad.any()]
    assert still == []


class TestFrames:
    @every_layout
    def test_each_has_a_timestep_of_its_own(self, layout):
        # Without attention over time nothing else can carry one frame's timestep to another.
        model = without_attention(trained(layout, remodulate_given=False), ["time", "full"])
        changed = inputs()["timestep"] + torch.tensor([0.0, 300.0, 0.0])
        difference = (said(model, {"timestep": changed}) - said(model)).abs().amax(dim=(0, 1, 3, 4))
        assert (difference > 1e-4).tolist() == [False, True, False]

    @every_layout
    def test_see_each_other(self, layout):
        model, latents = trained(layout), inputs()["latents"]
        latents[:, :, 2] += 1
        assert (said(model, {"latents": latents}) - said(model))[:, :, 0].abs().max() > 1e-4

    @every_layout
    def test_are_told_apart_by_their_order(self, layout):
        model, given = trained(layout), inputs()
        backward = {"latents": given["latents"].flip(2), "timestep": given["timestep"].flip(1)}
        assert (said(model, backward).flip(2) - said(model)).abs().max() > 1e-4

    def test_have_no_order_where_there_is_no_position_in_time(self):
        model, given = trained("alternating", rope="none"), inputs()
        backward = {"latents": given["latents"].flip(2), "timestep": given["timestep"].flip(1)}
        torch.testing.assert_close(said(model, backward).flip(2), said(model), atol=1e-5, rtol=0)

    def test_counted_in_units_of_two_are_coded_as_half_as_many(self):
        place = torch.zeros(1)
        _, code = build("opensora_v1")._positions_in_time(3, place, place)
        _, slow = build("opensora_v1", frame_base=2.0)._positions_in_time(5, place, place)
        torch.testing.assert_close(slow[::2], code)


class TestPlaces:
    @every_layout
    def test_see_each_other(self, layout):
        model, latents = trained(layout), inputs()["latents"]
        latents[:, :, 1, :2, :2] += 1
        assert (said(model, {"latents": latents}) - said(model))[:, :, 1, 4:, 2:].abs().max() > 1e-4

    @every_layout
    def test_are_told_apart(self, layout):
        model, latents = trained(layout, patch=(1, 1, 1)), inputs()["latents"]
        for axis in (3, 4):
            flipped = said(model, {"latents": latents.flip(axis)}).flip(axis)
            assert (flipped - said(model)).abs().max() > 1e-4


class TestClips:
    @every_layout
    def test_of_a_batch_do_not_see_each_other(self, layout):
        model, given = trained(layout), inputs()
        alone = said(model, {name: value[:1] for name, value in given.items()})
        torch.testing.assert_close(said(model)[:1], alone, atol=1e-5, rtol=0)

    @every_layout
    def test_may_stand_in_any_order(self, layout):
        model, given = trained(layout), inputs(batch=3)
        given["text_mask"][0, 2:], given["text_mask"][1] = False, False
        order = torch.tensor([2, 0, 1])
        shuffled = said(model, {name: value[order] for name, value in given.items()})
        torch.testing.assert_close(shuffled, said(model, given)[order], atol=1e-5, rtol=0)


class TestText:
    @every_layout
    def test_padding_is_as_if_it_were_not_there(self, layout):
        model, given = trained(layout), inputs()
        padded = {
            "text": torch.cat([given["text"], torch.full((2, 3, TEXT), 9.0)], dim=1),
            "text_mask": torch.cat([given["text_mask"], torch.zeros(2, 3, dtype=torch.bool)], dim=1),
        }
        torch.testing.assert_close(said(model, padded), said(model), atol=1e-5, rtol=0)

    @every_layout
    def test_without_a_caption_the_padding_is_not_read(self, layout):
        model, nothing = trained(layout), torch.zeros(2, 5, dtype=torch.bool)
        other = {"text_mask": nothing, "text": torch.full((2, 5, TEXT), 9.0)}
        assert torch.equal(said(model, other), said(model, {"text_mask": nothing}))

    @every_layout
    def test_a_row_without_tokens_is_the_same_in_any_batch(self, layout):
        model, given = trained(layout), inputs()
        given["text_mask"][0] = False
        alone = {name: value[:1] for name, value in given.items()}
        alone["text"], alone["text_mask"] = torch.zeros(1, 1, TEXT), torch.zeros(1, 1, dtype=torch.bool)
        torch.testing.assert_close(said(model, given)[:1], said(model, alone), atol=1e-5, rtol=0)

    @every_layout
    def test_no_caption_is_the_caption_of_the_null_tokens(self, layout):
        model, given = trained(layout, pooled_text=False), inputs()
        null = model.null_text.detach().expand(2, -1, -1)
        told = {"text": null, "text_mask": torch.ones(null.shape[:2], dtype=torch.bool)}
        given["text_mask"][:] = False
        torch.testing.assert_close(said(model, given), said(model, told), atol=1e-5, rtol=0)

    def test_a_caption_that_is_left_out_has_no_tokens_or_as_many_null_tokens_as_it_had(self):
        given = inputs()
        text, mask = given["text"], torch.tensor([[True, False, False, False, False], [True] * 5])
        left, nothing = trained("own").without_caption(text, mask)
        assert left.shape == text.shape
        assert not nothing.any()
        model = trained("opensora_v1")
        null, there = model.without_caption(text, mask)
        assert there.sum(1).tolist() == [1, 3]  # of a longer caption all there are
        assert torch.equal(null[1, :3], model.null_text)
        assert torch.equal(model.without_caption(text[:, :2], mask[:, :2])[0], null[:, :2])

    @every_layout
    def test_tokens_have_no_order_of_their_own(self, layout):
        model = trained(layout)
        torch.testing.assert_close(said(model, {"text": inputs()["text"].flip(1)}), said(model), atol=1e-5, rtol=0)


CONDITIONS = {
    "text": lambda x: x + 1,
    "text_mask": lambda x: x & (torch.arange(5) < 3),
    "timestep": lambda x: x / 2,
    "fps": lambda x: x * 2,
    "size": lambda x: x * 2,
}


@every_layout
@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_matters_where_the_model_has_it(layout, name):
    model, given = trained(layout, grid="centred"), inputs()
    differ = (said(model, {name: CONDITIONS[name](given[name])}) - said(model)).abs().max() > 1e-4
    wanted = {"fps": "fps", "size": "height"}.get(name)
    assert differ == (wanted is None or wanted in model.config.conditions)


@every_layout
def test_time_is_told_in_thousandths(layout):
    """A step of one is nearly nothing, and the whole way is not."""
    model, ones = trained(layout), torch.ones(2, 3)
    at = [said(model, {"timestep": t * ones}) for t in (500.0, 501.0, 1000.0)]
    near, far = ((at[0] - other).square().mean().sqrt() for other in at[1:])
    assert near < 0.3 * far


def test_the_resolution_decides_where_patches_of_v3_are():
    """Twice the pixels and twice the patches: each fourth patch stands where it stood (Open-Sora v1.2)."""
    model = build("opensora_v3")
    coarse, fine = (model._coordinates((4, 4), torch.zeros(1), torch.tensor([[side, side]])) for side in (64.0, 128.0))
    for few, many in zip(coarse, fine, strict=True):
        torch.testing.assert_close(few, 2 * many)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"width": 30}, "multiple of 4"),
        ({"width": 36, "heads": 8}, "multiple of 4 and of heads"),
        ({"width": 12, "heads": 4}, "even width"),
        ({"width": 16, "heads": 4, "layout": "full"}, "6 or more, not 4"),
        ({"patch": (2, 2, 2)}, "one latent frame"),
        ({"patch": (1, 0, 2)}, "one latent frame"),
        ({"plain_time": True, "layout": "full"}, "joined"),
        ({"layout": "full", "rope": "time"}, "not over time alone"),
        ({"conditions": ("colour",)}, "conditions"),
        ({"heads": 0}, "greater than"),
        ({"typo": 1}, "typo"),
    ],
)
def test_a_shape_that_cannot_work_is_refused(shape, said):
    with pytest.raises(ValueError, match=said):
        STDiTConfig(**{"in_channels": C, "text_width": TEXT, "width": 32, "heads": 4} | shape)


@pytest.mark.parametrize("hidden", [61, 115, 448])
def test_any_hidden_width_can_be_asked_for_as_a_ratio(hidden):
    block = STDiTBlock(
        STDiTConfig(in_channels=C, text_width=TEXT, width=112, heads=4, mlp_ratio=hidden / 112), ("space",)
    )
    assert block.mlp.up.out_features == hidden


def attend(attention, x, allowed, angles=None):
    """Attention of x (B N D) to all of itself where ``allowed`` (N N), written down plainly."""
    query, key, value = (
        y.unflatten(-1, (attention.heads, -1)) for y in (attention.query(x), *attention.key_value(x).chunk(2, dim=-1))
    )
    if isinstance(attention.query_norm, torch.nn.RMSNorm):
        query = query / (query.square().mean(-1, True) + 1e-6).sqrt() * attention.query_norm.weight
        key = key / (key.square().mean(-1, True) + 1e-6).sqrt() * attention.key_norm.weight
    if angles is not None:
        turns = torch.polar(torch.ones_like(angles), angles)[:, None]  # N 1 d/2
        query, key = (
            torch.view_as_real(torch.view_as_complex(y.unflatten(-1, (-1, 2)).contiguous()) * turns).flatten(-2)
            for y in (query, key)
        )
    scores = torch.einsum("bnhd,bmhd->bhnm", query, key) / math.sqrt(query.shape[-1])
    weights = scores.masked_fill(~allowed, -math.inf).softmax(-1)
    return attention.out(torch.einsum("bhnm,bmhd->bnhd", weights, value).flatten(2))


class TestFactorisedAttention:
    """Attention within frames, or of a place over time, is attention to the whole video under a mask."""

    @settings(deadline=None, max_examples=40)
    @given(
        layout=st.sampled_from(["own", "alternating", "full", "opensora_v3"]),
        frames=st.integers(1, 4),
        rows=st.integers(1, 4),
        columns=st.integers(1, 4),
        seed=st.integers(0, 99),
    )
    def test_is_full_attention_under_a_mask(self, layout, frames, rows, columns, seed):
        shape = {"in_channels": C, "text_width": TEXT, "width": 24, "heads": 2, "depth": 1}
        config = STDiTConfig(**shape | LAYOUTS[layout])
        places = rows * columns
        index = [torch.arange(frames), *grid_coordinates("centred", rows, columns, 8.0, torch.device("cpu"))]
        frame, place = index[0].repeat_interleave(places), torch.arange(places).repeat(frames)
        row, column = index[1].repeat(frames), index[2].repeat(frames)
        masks = {"space": frame[:, None] == frame, "time": place[:, None] == place}
        masks["full"] = torch.ones_like(masks["space"])
        turns = {
            "space": rope_axes((row, column), 12, config.period).double() if config.rope == "space_time" else None,
            "time": rope_axes((frame,), 12, config.period).double(),
            "full": rope_axes((frame, row, column), 12, config.period).double(),
        }
        model = STDiT(config)
        angles, _ = model._positions_in_time(frames, *index[1:])
        torch.manual_seed(seed)
        x, shared = torch.randn(2, frames, places, 24).double(), torch.randn(2, frames, 9, 24).double()
        text = pack_tokens(torch.randn(2, 3, 24).double(), torch.tensor([[True, True, True], [False, True, False]]))
        for axes in block_axes(config):
            block = STDiTBlock(config, axes).double()
            torch.nn.init.normal_(block.cross.out.weight)
            ours = block(x, shared[:, :, : len(block.modulation)], text, angles)
            parts = (shared[:, :, : len(block.modulation)] + block.modulation)[:, frame].split(3, dim=2)  # B N 3 D
            y = x.flatten(1, 2)
            for axis, part in zip(axes, parts[:-1], strict=True):
                shift, scale, gate = part.unbind(2)
                normed = torch.nn.functional.layer_norm(y, (24,), eps=1e-6)
                y = y + gate * attend(block.attention[axis], modulate(normed, shift, scale), masks[axis], turns[axis])
            y = y + block.cross(y, text)
            shift, scale, gate = parts[-1].unbind(2)
            y = y + gate * block.mlp(modulate(torch.nn.functional.layer_norm(y, (24,), eps=1e-6), shift, scale))
            torch.testing.assert_close(ours, y.view_as(ours), atol=1e-6, rtol=1e-6)
