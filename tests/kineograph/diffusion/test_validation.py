"""Validation loss: fixed noise for each clip, so that checkpoints are compared on the same numbers."""

import torch

from kineograph.diffusion.random import normal
from kineograph.diffusion.validation import validation_losses

LATENTS = torch.randn(3, 2, 2, 2, 2, generator=torch.Generator().manual_seed(0))
CLIPS = ["a", "b", "c"]


def losses(model, latents=LATENTS, clips=CLIPS, timesteps=(0.2, 0.8)):
    n = len(latents)
    text, mask = torch.zeros(n, 1, 4), torch.zeros(n, 1, dtype=torch.bool)
    return validation_losses(model, latents, text, mask, torch.zeros(n), torch.zeros(n, 2), clips, timesteps)


def halve(x, *_):
    return x / 2


def test_there_is_a_loss_for_each_clip_and_timestep():
    assert losses(halve).shape == (3, 2)


def test_a_model_that_knows_the_velocity_has_no_loss():
    noise = torch.stack([normal((2, 2, 2, 2), "validation", c) for c in CLIPS])
    assert not losses(lambda *_: noise - LATENTS).any()


def test_a_clip_has_the_same_loss_beside_any_others():
    torch.testing.assert_close(losses(halve, LATENTS[1:2], CLIPS[1:2])[0], losses(halve)[1])


def test_every_frame_is_at_the_timestep():
    asked = []

    def model(x, timestep, *_):
        asked.append(timestep)
        return x

    losses(model, timesteps=(0.3,))
    assert torch.equal(asked[0], torch.full((3, 2), 0.3))
