"""The loss: a sum over slots that does not know how many ranks there are, and what each clip draws."""

from dataclasses import replace

import pytest
import torch

from kineograph.diffusion.processes import build_process
from kineograph.models.stdit import STDiT, STDiTConfig
from kineograph.store.loader import Batch
from kineograph.store.shards import RowAddress
from pipelines.train.kinds.diffusion.config import DiffusionRecipe
from pipelines.train.kinds.diffusion.objective import slot_losses
from pipelines.train.kinds.diffusion.timesteps import Timesteps
from pipelines.train.plan.plan import Slot

CLIPS = 7
LATENTS = torch.randn(CLIPS, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def config(**parts):
    return DiffusionRecipe.model_validate({"steps": 100, "diffusion": {"prediction": "velocity"}, **parts})


WHOLE = {"factorised": False, "tasks": {"text": 1, "image": 0}}
"""Videos as one prediction with nothing given."""


def losses_of(model, batch, latents, slots, settings):
    process = build_process(settings.diffusion)
    return slot_losses(process, Timesteps(settings.diffusion, process), model, batch, latents, slots, settings)


def batch(frames=3):
    text = torch.randn(CLIPS, 5, 6, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(CLIPS, 5, dtype=torch.bool)
    return Batch(torch.zeros(CLIPS, 3, frames, 1, 1), text, mask, torch.full((CLIPS,), 8.0), torch.ones(CLIPS, 2))


def part_of(whole, place):
    return Batch(*(t if t is None else t[place] for t in vars(whole).values()))


def clips_of(epoch=0):
    return tuple(Slot(RowAddress(0, 0, n), epoch, n, f"clip{n}") for n in range(CLIPS))


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = STDiT(STDiTConfig(in_channels=4, text_width=6, width=16, depth=1, heads=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


class Recorder:
    """A model that predicts zero and remembers what it was asked."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, timestep, text, text_mask, fps, size):
        self.calls.append((x, timestep, text_mask))
        self.text, self.fps = text, fps
        return torch.zeros_like(x)


def test_a_caption_that_is_left_out_is_what_the_model_says():
    """Such as Open-Sora's: its null tokens, as many as the caption has."""
    recorder, settings = Recorder(), config(conditioning={"caption_drop": 0.5})
    process, clips = build_process(settings.diffusion), batch()
    left = torch.full_like(clips.text, 7.0), clips.text_mask & (torch.arange(5) < 3)
    timesteps = Timesteps(settings.diffusion, process)
    slot_losses(process, timesteps, recorder, clips, LATENTS, clips_of(), settings, lambda text, mask: left)
    dropped = recorder.calls[-1][2].sum(1) == 3
    assert 0 < dropped.sum() < CLIPS
    torch.testing.assert_close(recorder.text[dropped], left[0][dropped])
    torch.testing.assert_close(recorder.text[~dropped], clips.text[~dropped])
    assert recorder.calls[-1][2][~dropped].all()


def test_an_image_is_told_the_frame_rate_of_the_recipe():
    recorder, settings = Recorder(), config(conditioning={"image_fps": 120.0})
    clips = replace(batch(1), fps=torch.tensor([0.0, 8.0] * 3 + [0.0]))
    losses_of(recorder, clips, LATENTS[:, :, :1], clips_of(), settings)
    assert recorder.fps.tolist() == [120.0, 8.0] * 3 + [120.0]


def recorded(latents=LATENTS, epoch=0, seed=0, **conditioning):
    """(what the model was asked, losses)."""
    recorder = Recorder()
    settings = config(seed=seed, conditioning=conditioning)
    losses = losses_of(recorder, batch(latents.shape[2]), latents, clips_of(epoch), settings)
    return recorder.calls, losses


@pytest.mark.parametrize("world", [2, 3, 7])
def test_the_loss_over_all_ranks_is_that_of_one(model, world):
    slots, whole = clips_of(), batch()
    alone = losses_of(model, whole, LATENTS, slots, config()).sum() / CLIPS
    parts = [
        losses_of(model, part_of(whole, place), LATENTS[place], slots[rank::world], config()).sum() / CLIPS
        for rank in range(world)
        for place in [slice(rank, None, world)]
    ]
    torch.testing.assert_close(sum(parts), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("world", [2, 3])
def test_the_gradient_over_all_ranks_is_that_of_one(model, world):
    slots, whole = clips_of(), batch()
    (losses_of(model, whole, LATENTS, slots, config()).sum() / CLIPS).backward()
    alone = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    for rank in range(world):
        place = slice(rank, None, world)
        losses = losses_of(model, part_of(whole, place), LATENTS[place], slots[rank::world], config())
        (losses.sum() / CLIPS).backward()
    summed = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(summed, alone, atol=1e-5, rtol=1e-4)


def test_an_epoch_has_noise_of_its_own():
    assert not torch.equal(recorded(epoch=0)[1], recorded(epoch=1)[1])


def test_a_seed_has_noise_of_its_own():
    assert not torch.equal(recorded(seed=0)[1], recorded(seed=1)[1])


@pytest.mark.parametrize("conditioning", [{}, WHOLE])
def test_all_captions_are_dropped_when_asked(conditioning):
    calls, _ = recorded(caption_drop=1, **conditioning)
    assert not any(mask.any() for _, _, mask in calls)


def test_no_caption_is_dropped_when_asked():
    calls, _ = recorded(caption_drop=0)
    assert all(mask.all() for _, _, mask in calls)


def test_a_factorised_video_is_its_first_frame_alone_and_the_rest_given_that():
    (rest, timestep, _), (first, _, _) = recorded(factorised=True)[0]
    assert (first.shape[2], rest.shape[2]) == (1, 3)
    assert not timestep[:, 0].any()
    assert torch.equal(rest[:, :, 0], LATENTS[:, :, 0])


def test_the_first_frame_that_is_predicted_is_noisy():
    _, (_, timestep, _) = recorded(factorised=True)[0]
    assert (timestep > 0).all()


def test_both_predictions_of_a_clip_share_its_caption():
    (_, _, first), (_, _, rest) = recorded(caption_drop=0.5)[0]
    assert torch.equal(first, rest)


def test_a_whole_video_is_one_prediction_at_one_timestep():
    ((x, timestep, _),) = recorded(**WHOLE)[0]
    assert x.shape[2] == 3
    assert torch.equal(timestep, timestep[:, :1].expand(-1, 3))


@pytest.mark.parametrize("conditioning", [{}, WHOLE])
def test_every_latent_frame_weighs_the_same(conditioning):
    """For a model that is off by the same everywhere, the loss is that one error squared, however it is factorised."""
    noise_free = torch.zeros_like(LATENTS)

    def model(x, timestep, *_):
        t = timestep[:, None, :, None, None] / 1000
        return x / t.clamp_min(1e-6) + 2  # x = t·ε for data of zero: ε + 2

    losses = losses_of(model, batch(), noise_free, clips_of(), config(conditioning=conditioning))
    torch.testing.assert_close(losses, torch.full((CLIPS,), 4.0), atol=1e-2, rtol=0)


def test_an_image_is_one_prediction():
    assert len(recorded(LATENTS[:, :, :1])[0]) == 1
