"""Layers: rotation knows distances only, and what is masked does not exist."""

import pytest
import torch

from kineograph.models.layers import Attention, grid_coordinates, rotary_angles, rotate


def rotated(vector, position):
    return rotate(vector[None], rotary_angles(torch.tensor([position]), vector.numel()))[0]


@pytest.mark.parametrize("offset", [0, 1, 5])
def test_a_rotary_score_depends_on_the_distance_alone(offset):
    query, key = torch.randn(2, 16, generator=torch.Generator().manual_seed(0)).double()
    scores = [rotated(query, p + offset) @ rotated(key, p) for p in (0, 3, 40)]
    torch.testing.assert_close(scores[1:], [scores[0]] * 2, atol=1e-4, rtol=0)


def test_a_rotary_score_tells_one_distance_from_another():
    query = torch.ones(16)
    assert abs(rotated(query, 1) @ rotated(query, 0) - rotated(query, 2) @ rotated(query, 0)) > 0.1


def test_a_rotation_keeps_lengths():
    x = torch.randn(3, 7, 8)
    torch.testing.assert_close(rotate(x, rotary_angles(torch.arange(7), 8)).norm(dim=-1), x.norm(dim=-1))


def test_a_grid_covers_the_same_square_at_any_resolution():
    rows = [grid_coordinates(n, n, 8.0, torch.device("cpu"))[0] for n in (4, 16)]
    spans = [float(r.max() - r.min() + 8 / n) for r, n in zip(rows, (4, 16), strict=True)]
    assert spans == pytest.approx([8, 8])


@pytest.fixture
def attention():
    torch.manual_seed(0)
    return Attention(16, 4)


def test_masked_context_is_as_if_it_were_not_there(attention):
    x, context = torch.randn(2, 5, 16), torch.randn(2, 3, 16)
    padded = torch.cat([context, torch.full((2, 4, 16), 7.0)], dim=1)
    mask = torch.tensor([[True] * 3 + [False] * 4] * 2)
    torch.testing.assert_close(attention(x, padded, mask), attention(x, context), atol=1e-5, rtol=0)


def test_attention_without_rotation_does_not_know_the_order_of_its_context(attention):
    x, context = torch.randn(2, 5, 16), torch.randn(2, 6, 16)
    torch.testing.assert_close(attention(x, context.flip(1)), attention(x, context), atol=1e-5, rtol=0)


def test_a_width_that_does_not_divide_into_heads_is_refused():
    with pytest.raises(ValueError, match="not a multiple"):
        Attention(10, 4)
