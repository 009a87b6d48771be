"""Guidance: each formula by hand, and no run of the model that says nothing new."""

import pytest
import torch

from kineograph.config import parse_config
from kineograph.diffusion.guidance import GuidanceConfig, combine, deviation, guided_call
from kineograph.errors import RecipeError

X, TIMESTEP = torch.randn(2, 3, 4, 2, 2), torch.full((2, 4), 0.5)


def output_of(*numbers, shape=(1, 2, 3, 2, 2)):
    """Outputs of a model: some tensors."""
    return [torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in numbers]


class Passes:
    """A model whose output names its pass: 1 for nothing, + 2 with text, + 10 with the image. Remembers its calls."""

    def __init__(self, factor=1):
        self.factor, self.calls = factor, []

    def __call__(self, x, time, text_on, image_on):
        self.calls.append((x, time, text_on, image_on))
        value = 1.0 + 2.0 * text_on + 10.0 * image_on
        return value[:, None, None, None, None].expand_as(x).repeat(1, self.factor, 1, 1, 1)


def call_once(model, given=None, time=500.0, x=X, **config):
    return guided_call(GuidanceConfig(**config), model, given)(x, torch.full((2, 4), time))


GIVEN = torch.tensor([[True, False, False, False]] * 2)


def test_two_outputs_are_combined_as_classifier_free_guidance_says():
    without, full = output_of(0, 1)
    found = combine(GuidanceConfig(scale=3.0), without, full)
    torch.testing.assert_close(found, -2 * without + 3 * full)


def test_three_outputs_are_combined_as_instruct_pix2pix_says():
    without, full, image = output_of(0, 1, 2)
    found = combine(GuidanceConfig(scale=7.5, image_scale=1.5), without, full, image)
    torch.testing.assert_close(found, (1 - 1.5) * without + (1.5 - 7.5) * image + 7.5 * full)


def test_three_outputs_need_an_image_scale():
    with pytest.raises(ValueError, match="image_scale"):
        combine(GuidanceConfig(), *output_of(0, 1, 2))


@pytest.mark.parametrize("rescale", [0.3, 1.0])
def test_the_rescale_takes_back_the_deviation_that_guidance_adds(rescale):
    without, full = output_of(0, 1, shape=(3, 2, 3, 2, 2))
    plain = combine(GuidanceConfig(scale=5.0), without, full)
    found = combine(GuidanceConfig(scale=5.0, rescale=rescale), without, full)
    for one in range(3):  # each video by itself
        rescaled = plain[one] * (full[one].std() / plain[one].std())
        torch.testing.assert_close(found[one], rescale * rescaled + (1 - rescale) * plain[one])


def test_the_rescale_counts_only_the_frames_that_are_asked():
    without, full = output_of(0, 1)
    config = GuidanceConfig(scale=5.0, rescale=1.0)
    counted = torch.tensor([[False, True, True]])
    found = combine(config, without, full, counted=counted)
    torch.testing.assert_close(found[:, :, 1:], combine(config, without[:, :, 1:], full[:, :, 1:]))
    assert torch.equal(deviation(full, torch.ones(1, 3, dtype=torch.bool)), deviation(full))


def test_an_output_of_zeros_stays_zero():
    zeros = torch.zeros(1, 2, 3, 2, 2)  # what a model with adaLN-zero says before training
    assert torch.equal(combine(GuidanceConfig(rescale=0.7), zeros, zeros), zeros)


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize(("channels", "guided"), [(None, 3), (1, 1), (2, 2), (8, 3)])
def test_only_the_first_channels_are_guided(channels, guided, factor):
    """Of 3 channels, with or without a variance behind them, by DiT's formula."""
    model = Passes(factor)
    output = call_once(model, scale=5.0, channels=channels)
    assert output.shape[1] == 3 * factor
    assert (output[:, :guided] == 11 + 5 * (13 - 11)).all()
    assert (output[:, guided:] == 13).all()


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_a_learned_variance_is_the_conditional_ones(rescale):
    without, full = output_of(0, 1, shape=(1, 4, 3, 2, 2))
    config = GuidanceConfig(scale=5.0, rescale=rescale)
    found = combine(config, without, full, channels=2)
    assert torch.equal(found[:, 2:], full[:, 2:])
    assert torch.equal(found[:, :2], combine(config, without[:, :2], full[:, :2]))


def test_a_scale_of_one_is_one_pass_and_its_output_bitwise():
    model = Passes()
    found = call_once(model, scale=1.0, rescale=0.7)
    ((x, _, text_on, image_on),) = model.calls
    assert x is X
    assert text_on.tolist() == image_on.tolist() == [True, True]
    assert torch.equal(found, torch.full_like(X, 13.0))


@pytest.mark.parametrize(
    ("config", "given", "flags", "expected"),  # the model says 1, 3 with text, 11 with the image, 13 with both
    [
        ({"scale": 1.0}, GIVEN, [(1, 1)], 13),
        ({"scale": 1.0, "image_scale": 1.0}, GIVEN, [(1, 1)], 13),
        ({"scale": 4.0}, None, [(0, 1), (1, 1)], 11 + 4 * 2),
        ({"scale": 4.0, "image_scale": 1.5}, None, [(0, 1), (1, 1)], 11 + 4 * 2),
        ({"scale": 4.0}, GIVEN, [(0, 1), (1, 1)], 11 + 4 * 2),
        ({"scale": 4.0, "image_scale": 1.0}, GIVEN, [(0, 1), (1, 1)], 11 + 4 * 2),
        ({"scale": 4.0, "image_scale": 4.0}, GIVEN, [(0, 0), (1, 1)], 1 + 4 * 12),
        ({"scale": 4.0, "image_scale": 1.5}, GIVEN, [(0, 0), (0, 1), (1, 1)], 1 + 1.5 * 10 + 4 * 2),
        ({"scale": 1.0, "image_scale": 1.5}, GIVEN, [(0, 0), (0, 1), (1, 1)], 1 + 1.5 * 10 + 2),
        ({"scale": 0.0}, None, [(0, 1), (1, 1)], 11),
    ],
)
def test_only_the_passes_that_the_formula_takes_are_run_in_one_batch(config, given, flags, expected):
    model = Passes()
    found = call_once(model, given, **config)
    ((x, time, text_on, image_on),) = model.calls
    assert [(int(t), int(i)) for t, i in zip(text_on, image_on, strict=True)] == [f for f in flags for _ in range(2)]
    assert torch.equal(x, torch.cat([X] * len(flags)))
    assert time.shape == (2 * len(flags), 4)
    assert torch.equal(found, torch.full_like(X, expected))


@pytest.mark.parametrize(("time", "expected"), [(99.0, 13), (100.0, 19), (500.0, 19), (800.0, 19), (801.0, 13)])
def test_outside_of_the_interval_the_model_is_as_it_is_in_one_pass(time, expected):
    model = Passes()
    found = call_once(model, time=time, scale=4.0, interval=(100.0, 800.0))
    assert torch.equal(found, torch.full_like(X, expected))
    assert len(model.calls[0][0]) == (2 if expected == 13 else 4)


def test_given_frames_do_not_move_a_step_out_of_the_interval():
    model = Passes()
    time = torch.full((2, 4), 500.0).masked_fill(GIVEN, 0.0)
    found = guided_call(GuidanceConfig(scale=4.0, interval=(100.0, 800.0)), model, GIVEN)(X, time)
    assert torch.equal(found, torch.full_like(X, 19.0))


def test_the_variance_of_a_model_that_learns_it_comes_through():
    found = call_once(Passes(factor=2), scale=4.0)
    assert torch.equal(found, torch.cat([torch.full_like(X, 19.0), torch.full_like(X, 13.0)], dim=1))


def test_what_the_model_says_of_given_frames_does_not_change_the_others():
    outputs = torch.cat(output_of(0, 1, shape=X.shape))
    garbage = outputs.masked_fill(GIVEN.repeat(2, 1)[:, None, :, None, None], 100.0)
    config = GuidanceConfig(scale=5.0, rescale=0.7)
    both = [guided_call(config, lambda *_, o=o: o, GIVEN)(X, TIMESTEP) for o in (outputs, garbage)]
    assert torch.equal(both[0][:, :, 1:], both[1][:, :, 1:])


@pytest.mark.parametrize("interval", [[800, 100], [-1, 500], [0, 1001]])
def test_an_interval_that_is_none_is_refused(interval):
    with pytest.raises(RecipeError, match="interval is a lower and an upper model time"):
        parse_config({"interval": interval}, GuidanceConfig)
