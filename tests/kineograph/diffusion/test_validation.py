"""Validation loss: fixed noise for each clip, so that checkpoints are compared on the same numbers."""

import pytest
import torch

from kineograph.diffusion.flow import FlowConfig, RectifiedFlow
from kineograph.diffusion.gaussian import Gaussian, GaussianConfig
from kineograph.diffusion.random import normal
from kineograph.diffusion.validation import validation_losses

LATENTS = torch.randn(3, 2, 2, 2, 2, generator=torch.Generator().manual_seed(0))
CLIPS = ["a", "b", "c"]
FLOW, GAUSSIAN = RectifiedFlow(FlowConfig(prediction="velocity")), Gaussian(GaussianConfig())
both = pytest.mark.parametrize("process", [FLOW, GAUSSIAN], ids=["flow", "gaussian"])


def losses(model, process=FLOW, latents=LATENTS, clips=CLIPS, times=(0.2, 0.8)):
    n = len(latents)
    text, mask = torch.zeros(n, 1, 4), torch.zeros(n, 1, dtype=torch.bool)
    return validation_losses(process, model, latents, text, mask, torch.zeros(n), torch.zeros(n, 2), clips, times)


def halve(x, *_):
    return x / 2


@both
def test_there_is_a_loss_for_each_clip_and_timestep(process):
    assert losses(halve, process).shape == (3, 2)
    assert (losses(halve, process) > 0).all()


@both
def test_a_model_that_knows_has_no_loss(process):
    noise = torch.stack([normal((2, 2, 2, 2), "validation", c) for c in CLIPS])
    assert not losses(lambda *_: noise - LATENTS if process is FLOW else noise, process).any()


@both
def test_a_clip_has_the_same_loss_beside_any_others(process):
    alone = losses(halve, process, LATENTS[1:2], CLIPS[1:2])[0]
    torch.testing.assert_close(alone, losses(halve, process)[1])


@both
def test_a_loss_is_the_same_each_time(process):
    assert torch.equal(losses(halve, process), losses(halve, process))


@pytest.mark.parametrize(("process", "told"), [(FLOW, 300.0), (GAUSSIAN, 300.0)], ids=["flow", "gaussian"])
def test_every_frame_is_at_the_time_and_the_model_is_told_it(process, told):
    asked = []

    def model(x, time, *_):
        asked.append(time)
        return x

    losses(model, process, times=(0.3,))
    torch.testing.assert_close(asked[0].float(), torch.full((3, 2), told), atol=1.0, rtol=0)


def test_nothing_is_kept_for_gradients():
    weight = torch.ones((), requires_grad=True)
    assert not losses(lambda x, *_: x * weight).requires_grad
