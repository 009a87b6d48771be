"""Given frames: never changed, never without a place, never in the loss."""

import torch

from kineograph.diffusion.conditioning import (
    first_given,
    hold_given,
    masked_flow_loss,
    sample_first_frame_first,
    sample_given,
)
from kineograph.diffusion.flow import flow_loss, velocity

SHAPE = (2, 3, 4, 2, 2)


def tensors(count, seed=0):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed)).unbind(0)


def test_given_frames_are_without_noise():
    given = torch.tensor([[True, False, False, True]])
    assert hold_given(torch.full((1, 4), 0.7), given)[0].tolist() == torch.tensor([0, 0.7, 0.7, 0]).tolist()


def test_given_frames_have_no_loss():
    data, noise, predicted = tensors(3)
    given = torch.tensor([[True, False, False, False]] * 2)
    before = masked_flow_loss(predicted, data, noise, given)
    predicted[:, :, 0] += 100
    assert torch.equal(masked_flow_loss(predicted, data, noise, given), before)


def test_the_loss_is_a_mean_over_the_frames_that_are_asked():
    data, noise = tensors(2)
    given = torch.tensor([[True, True, False, False]] * 2)
    predicted = velocity(data, noise) + 3
    torch.testing.assert_close(masked_flow_loss(predicted, data, noise, given), torch.full((2,), 9.0))


def test_with_nothing_given_the_loss_is_that_of_the_flow():
    data, noise, predicted = tensors(3)
    none = torch.zeros(2, 4, dtype=torch.bool)
    torch.testing.assert_close(masked_flow_loss(predicted, data, noise, none), flow_loss(predicted, data, noise))


def test_given_frames_come_back_unchanged():
    noise, frames = tensors(2)
    given = torch.tensor([[True, False, True, False], [False, False, False, True]])
    sampled = sample_given(lambda x, t: torch.sin(5 * x), noise, frames, given, steps=3)
    keep = given[:, None, :, None, None].expand_as(frames)
    assert torch.equal(sampled[keep], frames[keep])


def test_the_model_sees_given_frames_clean_and_at_timestep_zero():
    noise, frames = tensors(2)
    given = torch.tensor([[False, True, False, False]] * 2)
    seen = []

    def predict(x, timestep):
        seen.append((x[:, :, 1].clone(), timestep[:, 1].clone()))
        return torch.ones_like(x)

    sample_given(predict, noise, frames, given, steps=3)
    assert all(torch.equal(x, frames[:, :, 1]) and not t.any() for x, t in seen)


def test_with_the_true_velocity_the_other_frames_end_at_the_data():
    noise, frames = tensors(2)
    given = first_given(frames)
    sampled = sample_given(lambda x, t: velocity(frames, noise), noise, frames, given, steps=4)
    torch.testing.assert_close(sampled, frames, atol=1e-5, rtol=0)


def test_the_first_frame_is_sampled_alone_and_then_given():
    noise = tensors(1)[0]
    seen = []

    def predict(x, timestep):
        seen.append((x.shape[2], bool(timestep[0, 0] == 0)))  # frames, and whether the first is given
        return torch.full_like(x, 2.0 if seen[-1][1] else 1.0)

    sampled = sample_first_frame_first(predict, noise, steps=2)
    assert seen == [(1, False)] * 2 + [(4, True)] * 2
    torch.testing.assert_close(sampled[:, :, 0], noise[:, :, 0] - 1)
    torch.testing.assert_close(sampled[:, :, 1:], noise[:, :, 1:] - 2)


def test_with_the_true_velocity_first_frame_first_ends_at_the_data():
    data, noise = tensors(2)
    truth = velocity(data, noise)
    sampled = sample_first_frame_first(lambda x, t: truth[:, :, : x.shape[2]], noise, steps=4)
    torch.testing.assert_close(sampled, data, atol=1e-5, rtol=0)


def test_an_image_is_sampled_once():
    calls = []

    def predict(x, timestep):
        calls.append(timestep)
        return x

    sample_first_frame_first(predict, torch.zeros(1, 3, 1, 2, 2), steps=3)
    assert len(calls) == 3


def test_the_first_frame_is_the_one_given():
    assert first_given(torch.zeros(2, 3, 4, 1, 1)).tolist() == [[True, False, False, False]] * 2
