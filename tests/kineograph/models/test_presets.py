"""Presets are the models that they are called after, by their published sizes and costs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kineograph.errors import UserError
from kineograph.models.presets import PRESETS, Preset, find_preset
from kineograph.models.summary import parameters_by_part, summarise


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("opensora-v1-xl/2", 759_620_768), ("opensora-v3-xl/2", 1_207_643_972), ("vit-b/16", 86_567_656)],
)
def test_published_models_have_their_number_of_parameters(name, parameters):
    assert summarise(find_preset(name)).total == parameters


# Peebles & Xie 2022, tables 1 and 4: millions of parameters, and billions of multiply-adds ("Gflops").
@pytest.mark.parametrize(
    ("name", "millions", "gflops"),
    [
        ("dit-s/2", 33, 6.06),
        ("dit-b/2", 130, 23.01),
        ("dit-l/2", 458, 80.71),
        ("dit-xl/2", 675, 118.64),
        ("dit-xl/4", 675, 29.05),
        ("dit-xl/8", 676, 7.39),
    ],
)
def test_dit_is_of_its_papers_size_and_cost(name, millions, gflops):
    summary = summarise(find_preset(name))
    assert round(summary.total / 1e6) == millions
    assert summary.flops.forward / 2e9 == pytest.approx(gflops, rel=0.005)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_size_and_a_cost(name):
    summary = summarise(find_preset(name.upper()))  # in any case
    assert summary.total == sum(summary.parameters.values()) >= summary.trained > 0
    assert summary.flops.training == 3 * summary.flops.forward > 0
    assert summary.weight_bytes(torch.bfloat16) == 2 * summary.total


def test_frozen_parameters_cost_their_weights_alone():
    summary = summarise(find_preset("opensora-v3-xl/2"))
    frozen = summary.total - summary.trained
    assert frozen == 1152 // 16 // 2  # frequencies of the rotary code
    assert summary.training_bytes == 20 * summary.trained + 4 * frozen


def test_blocks_are_summed_by_part():
    model = torch.nn.Module()
    model.blocks = torch.nn.ModuleList(torch.nn.ModuleDict({"mlp": torch.nn.Linear(2, 3)}) for _ in range(4))
    model.head = torch.nn.Linear(3, 1)
    assert parameters_by_part(model) == {"blocks.mlp": 4 * 9, "head": 4}


@given(frames=st.integers(0, 20), rows=st.integers(1, 20), stride=st.integers(1, 8), less=st.integers(0, 7))
def test_latents_are_as_an_autoencoder_makes_them(frames, rows, stride, less):
    pixels = (1 + frames * stride, rows * stride, rows * stride)
    preset = Preset("", find_preset("stdit-tiny/2").config, pixels, (stride, stride, stride))
    assert preset.latent_size == (1 + frames, rows, rows)
    if frames:  # a stretch or side that is not whole counts as one
        shorter = (pixels[0] - less % stride, pixels[1] - less % stride, pixels[2])
        assert Preset("", preset.config, shorter, preset.strides).latent_size == (1 + frames, rows, rows)


@pytest.mark.parametrize(("name", "hint"), [("stdit-xxl/2", "stdit-xl/2"), ("opensora-xl/2", "opensora-v")])
def test_a_name_that_is_none_is_answered_with_the_nearest(name, hint):
    with pytest.raises(UserError, match=f"no model '{name}'.*did you mean '{hint}"):
        find_preset(name)
