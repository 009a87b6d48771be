"""Layers: attention against its formula, and text of any length as if nothing were padded."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kineograph.models import layers
from kineograph.models.layers import (
    MLP,
    Attention,
    CrossAttention,
    ScalarEmbedding,
    layer_norm,
    modulate,
    pack_tokens,
)
from kineograph.models.positions import rope_axes

quick = settings(deadline=None, max_examples=40)
seeds = st.integers(0, 99)
head_counts = st.integers(1, 4)
head_widths = st.sampled_from([4, 8, 12])


def random_layer(kind, width, heads, qk_norm, seed):
    """A layer in float64 of which every parameter matters, those of the norms too."""
    torch.manual_seed(seed)
    layer = kind(width, heads, qk_norm).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def random_mask(batch, length, seed):
    """(B L) with a token at least in every row, at any places."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, length, generator=g) < 0.6
    mask[torch.arange(batch), torch.randint(length, (batch,), generator=g)] = True
    return mask


def heads_of(layer, x, states):
    """Queries of x (B N D), keys and values of states (B L D), each (B H . d), normed as the layer does."""

    def split(y):
        return y.unflatten(-1, (layer.heads, -1)).transpose(1, 2)

    def rms(y, norm):
        return y if isinstance(norm, torch.nn.Identity) else y / (y.square().mean(-1, True) + 1e-6).sqrt() * norm.weight

    key, value = layer.key_value(states).chunk(2, dim=-1)
    return rms(split(layer.query(x)), layer.query_norm), rms(split(key), layer.key_norm), split(value)


def turn(x, angles):
    """Neighbouring channels as complex numbers."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


class TestAttention:
    @quick
    @given(
        tokens=st.integers(1, 9), heads=head_counts, head=head_widths, norm=st.booleans(), rope=st.booleans(), s=seeds
    )
    def test_is_its_formula(self, tokens, heads, head, norm, rope, s):
        attention = random_layer(Attention, heads * head, heads, norm, s)
        x = torch.randn(2, tokens, heads * head).double()
        query, key, value = heads_of(attention, x, x)
        angles = rope_axes((torch.arange(tokens),), head, 100.0).double() if rope else None
        if angles is not None:
            query, key = turn(query, angles), turn(key, angles)
        weights = (torch.einsum("bhnd,bhmd->bhnm", query, key) / math.sqrt(head)).softmax(-1)
        expected = attention.out(torch.einsum("bhnm,bhmd->bnhd", weights, value).flatten(2))
        torch.testing.assert_close(attention(x, angles), expected, atol=1e-9, rtol=1e-9)

    @quick
    @given(tokens=st.integers(2, 9), s=seeds)
    def test_without_positions_order_does_not_matter(self, tokens, s):
        attention = random_layer(Attention, 16, 4, True, s)
        x, order = torch.randn(2, tokens, 16).double(), torch.randperm(tokens)
        torch.testing.assert_close(attention(x[:, order]), attention(x)[:, order], atol=1e-9, rtol=0)

    def test_with_positions_order_matters(self):
        attention = random_layer(Attention, 16, 4, True, 0)
        x, angles = torch.randn(1, 5, 16).double(), rope_axes((torch.arange(5),), 4, 100.0)
        assert (attention(x.flip(1), angles) - attention(x, angles).flip(1)).abs().max() > 1e-3

    def test_norms_hold_scores_however_large_tokens_are(self):
        attention = random_layer(Attention, 16, 4, True, 0)
        with torch.no_grad():
            attention.query.bias.zero_()
            attention.key_value.bias.zero_()
        x = torch.randn(1, 5, 16).double()
        bias = attention.out.bias
        torch.testing.assert_close((attention(1000 * x) - bias) / 1000, attention(x) - bias, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("kind", [Attention, CrossAttention])
    def test_a_width_that_does_not_divide_into_heads_is_refused(self, kind):
        with pytest.raises(ValueError, match="not a multiple"):
            kind(10, 4)


class TestPackedTokens:
    @quick
    @given(batch=st.integers(1, 5), length=st.integers(1, 8), seed=seeds)
    def test_hold_every_token_once_and_no_padding(self, batch, length, seed):
        mask, states = random_mask(batch, length, seed), torch.randn(batch, length, 3)
        text = pack_tokens(states, mask)
        starts = text.starts.tolist()
        assert starts[0] == 0
        assert starts[-1] == len(text.states) == int(mask.sum())
        assert text.starts.dtype == torch.int32
        assert text.mask.sum(1).tolist() == mask.sum(1).tolist()
        assert text.mask.shape[1] == int(mask.sum(1).max())
        for row in range(batch):
            tokens = states[row, mask[row]]
            assert torch.equal(text.states[starts[row] : starts[row + 1]], tokens)
            assert torch.equal(text.states[text.places[row, text.mask[row]]], tokens)


def attend_padded(cross, x, states, mask):
    """SDPA over all of the padded text, what is padding masked."""
    query, key, value = heads_of(cross, x, states)
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])
    return cross.out(attended.transpose(1, 2).flatten(2))


def segment_attention(query, key, value, query_starts, key_starts, query_longest, key_longest):
    """What a kernel for ragged rows computes: rows one after another, (N H d) and (M H d)."""
    rows = []
    for q, k in zip(query_starts.tolist()[:-1], range(len(key_starts) - 1), strict=True):
        q_end, k_start, k_end = query_starts[k + 1], key_starts[k], key_starts[k + 1]
        assert q_end - q <= query_longest
        assert k_end - k_start <= key_longest
        one, keys, values = (t.transpose(0, 1) for t in (query[q:q_end], key[k_start:k_end], value[k_start:k_end]))
        rows.append(F.scaled_dot_product_attention(one, keys, values).transpose(0, 1))
    return torch.cat(rows)


shapes = {
    "batch": st.integers(1, 4),
    "tokens": st.integers(1, 7),
    "length": st.integers(1, 8),
    "heads": head_counts,
    "head": head_widths,
    "norm": st.booleans(),
    "seed": seeds,
}


class TestCrossAttention:
    @quick
    @given(**shapes)
    def test_is_that_to_padded_text(self, batch, tokens, length, heads, head, norm, seed):
        """The output, and the gradients of every input and weight."""
        cross = random_layer(CrossAttention, heads * head, heads, norm, seed)
        mask = random_mask(batch, length, seed)
        x = torch.randn(batch, tokens, heads * head, dtype=torch.float64, requires_grad=True)
        states = torch.randn(batch, length, heads * head, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(batch, tokens, heads * head).double()
        results = []
        for said in (cross(x, pack_tokens(states, mask)), attend_padded(cross, x, states, mask)):
            leaves = [x, states, *cross.parameters()]
            results.append([said, *torch.autograd.grad((said * weight).sum(), leaves)])
        for ours, padded in zip(*results, strict=True):
            torch.testing.assert_close(ours, padded, atol=1e-9, rtol=1e-9)

    @quick
    @given(**shapes)
    def test_a_kernel_for_ragged_rows_gets_the_rows(self, batch, tokens, length, heads, head, norm, seed):
        cross = random_layer(CrossAttention, heads * head, heads, norm, seed)
        x, states = torch.randn(batch, tokens, heads * head).double(), torch.randn(batch, length, heads * head).double()
        mask = random_mask(batch, length, seed)
        query, key, value = heads_of(cross, x, states)  # B H . d
        packed_key, packed_value = (t.transpose(1, 2)[mask] for t in (key, value))  # M H d
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(layers, "varlen_attn", segment_attention)
            text = pack_tokens(states, mask)
            attended = layers._attend_packed(query.transpose(1, 2), packed_key, packed_value, text)
        expected = attend_padded(cross, x, states, mask)
        torch.testing.assert_close(cross.out(attended.flatten(2)), expected, atol=1e-9, rtol=1e-9)

    @pytest.mark.parametrize("autocast", [True, False])
    def test_the_kernel_is_chosen_by_what_attention_gets(self, monkeypatch, autocast):
        asked = []

        def ask(value):
            asked.append(value.dtype)
            return value.dtype == torch.bfloat16

        monkeypatch.setattr(layers, "_has_ragged_kernel", ask)
        monkeypatch.setattr(layers, "varlen_attn", segment_attention)
        cross = random_layer(CrossAttention, 16, 2, False, 0).float()
        x, states, mask = torch.randn(2, 3, 16), torch.randn(2, 5, 16), random_mask(2, 5, 1)
        expected = attend_padded(cross, x, states, mask)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            said = cross(x, pack_tokens(states, mask))
        assert asked == [torch.bfloat16 if autocast else torch.float32]
        assert (said.float() - expected).abs().max() < 0.03 * expected.abs().max()  # bf16 has 8 bits

    @pytest.mark.parametrize(
        ("dtype", "width", "gpu", "wanted"),
        [
            (torch.bfloat16, 72, (9, 0), True),
            (torch.float16, 64, (8, 0), True),
            (torch.float32, 64, (9, 0), False),
            (torch.bfloat16, 12, (9, 0), False),
            (torch.bfloat16, 264, (9, 0), False),
            (torch.bfloat16, 64, (7, 5), False),
            (torch.bfloat16, 64, None, False),
        ],
    )
    def test_ragged_rows_need_a_gpu_half_precision_and_heads_that_fit(self, monkeypatch, dtype, width, gpu, wanted):
        monkeypatch.setattr(layers, "varlen_attn", segment_attention)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: gpu)
        value = SimpleNamespace(dtype=dtype, is_cuda=gpu is not None, shape=(5, 2, width), device="cuda:0")
        assert layers._has_ragged_kernel(value) == wanted
        monkeypatch.setattr(layers, "varlen_attn", None)
        assert not layers._has_ragged_kernel(value)

    @pytest.mark.skipif(
        not torch.cuda.is_available() or layers.varlen_attn is None, reason="the kernel for ragged rows needs a GPU"
    )
    def test_on_a_gpu_it_is_that_to_padded_text(self):
        cross = random_layer(CrossAttention, 128, 2, True, 0).float().cuda()
        x, states = torch.randn(3, 50, 128).cuda(), torch.randn(3, 20, 128).cuda()
        mask = random_mask(3, 20, 0).cuda()
        expected = attend_padded(cross, x, states, mask)
        with torch.autocast("cuda", torch.bfloat16):
            mixed = cross(x, pack_tokens(states, mask))
        half = cross.bfloat16()(x.bfloat16(), pack_tokens(states.bfloat16(), mask))
        for said in (mixed, half):
            assert (said.float() - expected).abs().max() < 0.02 * expected.abs().max()  # bf16 has 8 bits

    @quick
    @given(length=st.integers(1, 5), padding=st.integers(1, 4), filler=st.sampled_from([0.0, 1e30, math.inf, math.nan]))
    def test_what_stands_in_the_padding_does_not_matter(self, length, padding, filler):
        cross = random_layer(CrossAttention, 16, 4, True, 0)
        x, states = torch.randn(1, 3, 16).double(), torch.randn(1, length, 16).double()
        padded = torch.cat([states, torch.full((1, padding, 16), filler).double()], dim=1)
        mask = torch.arange(length + padding)[None] < length
        alone = cross(x, pack_tokens(states, torch.ones(1, length, dtype=torch.bool)))
        assert torch.equal(cross(x, pack_tokens(padded, mask)), alone)

    def test_text_has_no_order_of_its_own(self):
        cross = random_layer(CrossAttention, 16, 4, True, 0)
        x, states, mask = torch.randn(2, 3, 16).double(), torch.randn(2, 5, 16).double(), random_mask(2, 5, 1)
        flipped = cross(x, pack_tokens(states.flip(1), mask.flip(1)))
        torch.testing.assert_close(flipped, cross(x, pack_tokens(states, mask)), atol=1e-9, rtol=0)


def test_modulation_of_zero_is_the_norm_alone():
    x = torch.randn(2, 3, 8).double() * 5 + 3
    normed = modulate(layer_norm(x), torch.zeros(8), torch.zeros(8))
    torch.testing.assert_close(normed.mean(-1), torch.zeros(2, 3).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(normed.var(-1, correction=0), torch.ones(2, 3).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("out", "expected"), [(None, 6), (3, 3)])
def test_an_mlp_is_two_layers_with_tanh_gelu_between(out, expected):
    mlp, x = MLP(6, 10, out), torch.randn(2, 6)
    up = x @ mlp.up.weight.T + mlp.up.bias
    bent = 0.5 * up * (1 + torch.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
    said = mlp(x)
    assert said.shape == (2, expected)
    torch.testing.assert_close(said, bent @ mlp.down.weight.T + mlp.down.bias)


@quick
@given(values=st.lists(st.floats(0, 1000, width=32), min_size=1, max_size=4))
def test_a_number_is_embedded_as_in_dit(values):
    embedding = ScalarEmbedding(12)
    angles = np.outer(np.float32(values), np.exp(-math.log(10_000) * np.arange(128) / 128))
    code = torch.from_numpy(np.concatenate([np.cos(angles), np.sin(angles)], axis=1)).float()
    expected = embedding.down(F.silu(embedding.up(code)))
    # The sinusoids of 1000 radians are exact to 3e-5 in fp32.
    torch.testing.assert_close(embedding(torch.tensor(values)), expected, atol=1e-4, rtol=0)


def test_a_number_is_embedded_wherever_it_stands():
    embedding, value = ScalarEmbedding(12), torch.rand(2, 3) * 1000
    assert embedding(value).shape == (2, 3, 12)
    torch.testing.assert_close(embedding(value)[1, 2], embedding(value[1, 2]))
