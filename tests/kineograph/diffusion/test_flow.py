"""Rectified flow: straight paths, exact integration of straight paths, and where timesteps fall."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kineograph.diffusion.flow import (
    FlowConfig,
    add_noise,
    flow_loss,
    sample_euler,
    shift_timestep,
    timesteps_from_normal,
    velocity,
)

SHAPE = (2, 3, 4, 2, 2)


def pair(seed=0):
    return torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(seed)).unbind(0)


def test_a_path_starts_at_data_and_ends_at_noise():
    data, noise = pair()
    assert torch.equal(add_noise(data, noise, torch.zeros(2, 4)), data)
    assert torch.equal(add_noise(data, noise, torch.ones(2, 4)), noise)


def test_the_velocity_leads_from_any_point_to_both_ends():
    data, noise = pair()
    timestep = torch.rand(2, 4)
    t = timestep[:, None, :, None, None]
    x = add_noise(data, noise, timestep)
    torch.testing.assert_close(x - t * velocity(data, noise), data)
    torch.testing.assert_close(x + (1 - t) * velocity(data, noise), noise)


def test_every_frame_has_noise_of_its_own_timestep():
    data, noise = pair()
    x = add_noise(data, noise, torch.tensor([[0.0, 1.0, 0.0, 1.0]] * 2))
    assert torch.equal(x[:, :, 0::2], data[:, :, 0::2])
    assert torch.equal(x[:, :, 1::2], noise[:, :, 1::2])


def test_the_loss_is_a_mean_over_all_but_the_clips():
    data, noise = pair()
    off = velocity(data, noise)
    off[1] += 2
    torch.testing.assert_close(flow_loss(off, data, noise), torch.tensor([0.0, 4.0]))


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("shift", [1.0, 4.0])
def test_with_the_true_velocity_sampling_ends_at_the_data(steps, shift):
    data, noise = pair()
    sampled = sample_euler(lambda x, t: velocity(data, noise), noise, steps, shift)
    torch.testing.assert_close(sampled, data, atol=1e-5, rtol=0)


def test_steps_are_eulers():
    noise = pair()[1]
    sampled = sample_euler(lambda x, t: x, noise, 4)  # dx/dt = x, from t = 1 to 0 in four steps of a quarter
    torch.testing.assert_close(sampled, noise * 0.75**4)


def test_the_model_is_asked_at_shifted_timesteps():
    asked = []

    def predict(x, timestep):
        asked.append(float(timestep[0, 0]))
        return torch.zeros_like(x)

    sample_euler(predict, torch.zeros(SHAPE), 2, shift=3.0)
    assert asked == pytest.approx([1.0, 0.75])


def test_sampling_in_no_steps_is_refused():
    with pytest.raises(ValueError, match="at least one step"):
        sample_euler(lambda x, t: x, torch.zeros(SHAPE), 0)


@given(shift=st.floats(0.1, 10), t=st.floats(0, 1))
def test_a_shift_is_undone_by_its_inverse(shift, t):
    timestep = torch.tensor(t, dtype=torch.float64)
    again = shift_timestep(shift_timestep(timestep, shift), 1 / shift)
    torch.testing.assert_close(again, timestep, atol=1e-9, rtol=0)


@given(shift=st.floats(1.01, 10), t=st.floats(0.01, 0.99))
def test_a_shift_above_one_leans_towards_noise(shift, t):
    assert t < float(shift_timestep(torch.tensor(t, dtype=torch.float64), shift)) < 1


NORMAL = torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.8, 0.5)])
def test_logits_of_timesteps_are_normal(mean, std):
    config = FlowConfig(logit_mean=mean, logit_std=std)
    logits = torch.logit(timesteps_from_normal(NORMAL, config))
    # Four standard errors of a mean and of a standard deviation.
    assert float(logits.mean()) == pytest.approx(mean, abs=4 * std / math.sqrt(len(NORMAL)))
    assert float(logits.std()) == pytest.approx(std, abs=4 * std / math.sqrt(2 * len(NORMAL)))


def test_uniform_timesteps_are_spread_evenly():
    timesteps = timesteps_from_normal(NORMAL, FlowConfig(timesteps="uniform")).sort().values
    even = torch.linspace(0, 1, len(NORMAL), dtype=torch.float64)
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) is passed by chance once in a thousand times, and the seed is fixed.
    assert float((timesteps - even).abs().max()) < 1.95 / math.sqrt(len(NORMAL))
