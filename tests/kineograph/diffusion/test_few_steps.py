"""Paths of few steps: nodes of the fine path, where the spacing says."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kineograph.diffusion.few_steps import sampling_path
from kineograph.diffusion.flow import FlowConfig, RectifiedFlow
from kineograph.diffusion.process import Path
from kineograph.diffusion.samplers import SamplerConfig
from kineograph.errors import UserError

KEPT = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)


def chain(steps):
    """A DDPM, in all of its 1000 steps or in some that are even."""
    timesteps = torch.linspace(999, 0, steps, dtype=torch.float64).round()
    kept = torch.cat([KEPT[timesteps.long()], torch.ones(1, dtype=torch.float64)])
    return Path(torch.cat([timesteps, torch.zeros(1).double()]), kept.sqrt(), (1 - kept).sqrt())


def flow(steps):
    return RectifiedFlow(FlowConfig(shift=3.0)).path(steps, 64 * 64, 4)


def log_snr(path):
    return (path.alphas / path.sigmas)[:-1].log()


def test_by_default_the_steps_are_the_processs():
    path = sampling_path(SamplerConfig(), flow, 7)
    assert torch.equal(path.timesteps, flow(7).timesteps)


@settings(deadline=None, max_examples=30)
@given(
    steps=st.integers(1, 1000),
    spacing=st.sampled_from(["log_snr", "karras"]),
    rho=st.floats(0.5, 20),
    process=st.sampled_from([chain, flow]),
)
def test_a_spacing_makes_as_many_steps_as_asked_from_noise_to_data(steps, spacing, rho, process):
    fine = process(1000)
    path = sampling_path(SamplerConfig(spacing=spacing, rho=rho), process, steps)
    assert len(path.timesteps) == steps + 1
    assert path.timesteps[0] == fine.timesteps[0]
    assert (path.alphas[-1], path.sigmas[-1]) == (1, 0)
    assert (path.sigmas.diff() < 0).all()
    nodes = set(zip(fine.timesteps.tolist(), fine.alphas.tolist(), fine.sigmas.tolist(), strict=True))
    assert nodes >= set(zip(path.timesteps.tolist(), path.alphas.tolist(), path.sigmas.tolist(), strict=True))


@pytest.mark.parametrize("steps", [2, 5, 12])
def test_steps_even_in_log_snr_are_even_to_the_grain_of_the_chain(steps):
    found = log_snr(sampling_path(SamplerConfig(spacing="log_snr"), chain, steps))
    ends = log_snr(chain(1000))[[0, -1]].tolist()
    assert found.tolist() == pytest.approx(np.linspace(*ends, steps), abs=float(log_snr(chain(1000)).diff().max()) / 2)


@pytest.mark.parametrize("steps", [2, 5, 12])
def test_karras_steps_are_even_in_the_root_of_sigma(steps):
    found = (-log_snr(sampling_path(SamplerConfig(spacing="karras", rho=7.0), chain, steps)) / 7).exp()
    fine = (-log_snr(chain(1000)) / 7).exp()
    assert found.tolist() == pytest.approx(
        np.linspace(float(fine[0]), float(fine[-1]), steps), abs=float(-fine.diff().min()) / 2
    )


def test_timesteps_may_be_given():
    path = sampling_path(SamplerConfig(timesteps=(999, 749, 499, 249)), chain, 50)
    assert path.timesteps.tolist() == [999, 749, 499, 249, 0]
    assert path.alphas[1] == KEPT[749].sqrt()
    assert path.alphas[-1] == 1


def test_timesteps_of_a_flow_are_its_own_to_the_grain_of_the_fine_path():
    path = sampling_path(SamplerConfig(timesteps=(1.0, 0.75, 0.5)), flow, 50)
    assert path.timesteps.tolist() == pytest.approx([1.0, 0.75, 0.5, 0.0], abs=1.5e-3)


@pytest.mark.parametrize(
    ("timesteps", "message"),
    [
        ((100, 900), "must fall"),
        ((900, 900), "must fall"),
        ((1200, 10), "leave the path"),
        ((10, -1), "leave the path"),
    ],
)
def test_timesteps_that_are_no_path_are_refused_in_one_line(timesteps, message):
    with pytest.raises(UserError, match=message) as error:
        sampling_path(SamplerConfig(timesteps=timesteps), chain, 2)
    assert "\n" not in str(error.value)


def test_more_steps_than_the_chain_has_are_refused():
    with pytest.raises(UserError, match="ask for 1 to 1000"):
        sampling_path(SamplerConfig(spacing="karras"), chain, 1001)
