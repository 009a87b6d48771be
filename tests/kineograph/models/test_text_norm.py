"""TextNorm: what all captions share is taken out, and nothing is blown up."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kineograph.models.text_norm import TextNorm


def draw_captions(count=400, length=6):
    """States whose channels differ in place and spread, the last hardly at all."""
    g = torch.Generator().manual_seed(4)
    spread = torch.tensor([3.0, 1.0, 0.5, 0.2])
    base = torch.randn(count, 1, 4, generator=g) * spread
    return base + 0.1 * torch.randn(count, length, 4, generator=g) * spread + 5


@pytest.fixture(scope="module")
def captions():
    return draw_captions()


@pytest.fixture(scope="module")
def norm(captions):
    norm = TextNorm(4)
    norm.fit(list(captions))
    return norm


def everywhere(states):
    return torch.ones(states.shape[:2], dtype=torch.bool)


def test_tokens_are_standardised(norm, captions):
    states, _ = norm(captions, everywhere(captions))
    flat = states.flatten(0, 1)
    torch.testing.assert_close(flat.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(flat.std(0), torch.ones(4), atol=1e-3, rtol=0)


def test_pooled_captions_are_white(norm, captions):
    _, pooled = norm(captions, everywhere(captions))
    # Every direction is shrunk by variance / (variance + floor·largest), which is above 0.99 for these.
    torch.testing.assert_close(pooled.mean(0), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.cov(pooled.T), torch.eye(4), atol=0.01, rtol=0)


def test_captions_of_different_lengths_weigh_the_same():
    """As captions, in what is pooled; their tokens are counted as tokens."""
    captions = [c[: 1 + i % 6] for i, c in enumerate(draw_captions())]
    norm = TextNorm(4)
    norm.fit(captions)
    pooled = torch.cat([norm(c[None], everywhere(c[None]))[1] for c in captions])
    torch.testing.assert_close(torch.cov(pooled.T), torch.eye(4), atol=0.01, rtol=0)


def test_a_direction_without_variance_is_not_blown_up():
    g = torch.Generator().manual_seed(5)
    line = torch.randn(200, 1, 1, generator=g) * torch.tensor([1.0, 1.0])  # nothing in (1, -1)
    norm = TextNorm(2)
    norm.fit(list(line + 1e-5 * torch.randn(200, 1, 2, generator=g)))
    assert float(norm.whitening.abs().max()) < 1 / norm.floor


def test_a_row_without_tokens_pools_to_zero(norm):
    _, pooled = norm(torch.randn(2, 3, 4), torch.tensor([[False] * 3, [True] * 3]))
    assert not pooled[0].any()
    assert pooled[1].any()


@settings(deadline=None, max_examples=20)
@given(tokens=st.integers(1, 5), padding=st.integers(1, 4), filler=st.floats(-1e4, 1e4))
def test_padding_is_not_pooled(norm, tokens, padding, filler):
    states = torch.randn(1, tokens, 4)
    padded = torch.cat([states, torch.full((1, padding, 4), filler)], dim=1)
    mask = torch.arange(tokens + padding)[None] < tokens
    torch.testing.assert_close(norm(padded, mask)[1], norm(states, everywhere(states))[1], atol=1e-4, rtol=1e-5)


def test_unfitted_it_changes_nothing():
    states = torch.randn(2, 3, 4)
    same, pooled = TextNorm(4)(states, everywhere(states))
    assert torch.equal(same, states)
    torch.testing.assert_close(pooled, states.mean(1))


def test_a_single_caption_leaves_it_as_it_is():
    norm = TextNorm(4)
    norm.fit([torch.randn(3, 4)])
    assert torch.equal(norm.whitening, torch.eye(4))


def test_equal_captions_stay_finite():
    norm = TextNorm(4)
    norm.fit([torch.ones(3, 4)] * 2)
    states, pooled = norm(torch.ones(1, 3, 4), everywhere(torch.ones(1, 3, 4)))
    assert states.isfinite().all()
    assert pooled.isfinite().all()
