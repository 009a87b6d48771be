"""Classifier-free guidance: the formula, and one run of the model where it says nothing new."""

import pytest
import torch

from kineograph.diffusion.guidance import guided

X, TIMESTEP = torch.randn(2, 3, 4, 2, 2), torch.full((2, 4), 0.5)
TEXT, MASK = torch.randn(2, 5, 6), torch.ones(2, 5, dtype=torch.bool)
FPS, SIZE = torch.tensor([8.0, 4.0]), torch.tensor([[32.0, 32.0]] * 2)


class Model:
    """Says 1 without a caption and 3 with one; remembers what it was asked."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, timestep, text, text_mask, fps, size):
        self.calls.append((x, timestep, text, text_mask, fps, size))
        return torch.where(text_mask.any(1), 3.0, 1.0)[:, None, None, None, None].expand_as(x)


@pytest.mark.parametrize(("scale", "expected"), [(1.0, 3.0), (4.0, 9.0), (0.0, 1.0), (1.5, 4.0)])
def test_guidance_goes_on_from_the_unconditional_through_the_conditional(scale, expected):
    predict = guided(Model(), TEXT, MASK, FPS, SIZE, scale)
    assert torch.equal(predict(X, TIMESTEP), torch.full_like(X, expected))


def test_a_scale_of_one_runs_the_model_once_on_what_is_asked():
    model = Model()
    guided(model, TEXT, MASK, FPS, SIZE, 1.0)(X, TIMESTEP)
    (call,) = model.calls
    assert all(got is asked for got, asked in zip(call, (X, TIMESTEP, TEXT, MASK, FPS, SIZE), strict=True))


def test_both_halves_share_everything_but_the_caption():
    model = Model()
    guided(model, TEXT, MASK, FPS, SIZE, 4.0)(X, TIMESTEP)
    (call,) = model.calls
    halves = [value.chunk(2) for value in call]
    assert [torch.equal(a, b) for a, b in halves] == [True, True, True, False, True, True]


def test_the_unconditional_half_has_no_tokens():
    model = Model()
    guided(model, TEXT, MASK, FPS, SIZE, 4.0)(X, TIMESTEP)
    _, without = model.calls[0][3].chunk(2)
    assert not without.any()
