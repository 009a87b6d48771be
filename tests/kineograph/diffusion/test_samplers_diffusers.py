"""Every sampler against its scheduler in diffusers, at each call of the model, on the same outputs of a model."""

import numpy as np
import pytest
import torch

from kineograph.diffusion.process import Denoised, Path
from kineograph.diffusion.samplers import SamplerConfig, sample
from kineograph.models.torchvision_shim import ensure_torchvision_importable

ensure_torchvision_importable()

from diffusers.schedulers import scheduling_ddim, scheduling_ddpm, scheduling_dpmsolver_multistep  # noqa: E402
from diffusers.schedulers import scheduling_flow_match_euler_discrete as scheduling_flow_euler  # noqa: E402
from diffusers.schedulers import scheduling_flow_match_heun_discrete as scheduling_flow_heun  # noqa: E402

STEPS = [1, 2, 3, 4, 20, 50]
TOLERANCE = 1e-9
ALPHAS_CUMPROD = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)


def numbers(*seed):
    shape = (2, 3, 2, 2, 2)  # B C T H W
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def model(x, time, channels=1):
    """Some smooth function of x and time."""
    outputs = [torch.sin(1.3 * x + k + time / 300) + 0.2 * x for k in range(channels)]
    return torch.cat([*outputs[:1], *(o.clamp(-1, 1) for o in outputs[1:])], dim=1)


class Recorder:
    """Our denoiser on a path: the model's output read as ``prediction``. Remembers every x that the model saw."""

    def __init__(self, path, prediction, learned=False):
        self.path, self.prediction, self.learned, self.seen = path, prediction, learned, []

    def __call__(self, x, node):
        self.seen.append(x)
        output = model(x, float(self.path.timesteps[node]), 1 + self.learned)
        output, variance = output.chunk(2, dim=1) if self.learned else (output, None)
        alpha, sigma = float(self.path.alphas[node]), float(self.path.sigmas[node])
        if self.prediction == "epsilon":
            clean, noise = (x - sigma * output) / alpha, output
        elif self.prediction == "sample":
            clean, noise = output, (x - alpha * output) / sigma
        elif self.prediction == "v_prediction":
            clean, noise = alpha * x - sigma * output, alpha * output + sigma * x
        else:
            clean, noise = x - sigma * output, x + (1 - sigma) * output
        return Denoised(clean, noise, None if variance is None else (variance + 1) / 2)


class DoubleTorch:
    """torch, but its float32 is float64: the schedulers round x to it in every step."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


def theirs(scheduler, step, channels=1):
    """Every x that the model sees, and the result, when ``step(index, output, timestep, x)`` is theirs."""
    x, seen = numbers(0), []
    for index, timestep in enumerate(scheduler.timesteps):
        seen.append(x)
        x = step(index, model(x, float(timestep), channels), timestep, x)
    return [*seen, x]


def ours(sampler, path, prediction, learned=False):
    denoise = Recorder(path, prediction, learned)
    result = sample(sampler, denoise, numbers(0), path, step_noise=lambda step: numbers(1, step))
    return [*denoise.seen, result]


def assert_same(mine, oracle):
    assert len(mine) == len(oracle)
    for a, b in zip(mine, oracle, strict=True):
        torch.testing.assert_close(a, b, atol=TOLERANCE, rtol=TOLERANCE)


def variance_preserving(timesteps, ratio=None):
    """The path over integer timesteps, or of given sigma / alpha with the clean node behind."""
    if ratio is None:
        kept = torch.cat([ALPHAS_CUMPROD[timesteps.long()], torch.ones(1, dtype=torch.float64)])
    else:
        kept = 1 / (1 + ratio**2)
    return Path(torch.cat([timesteps.double(), torch.zeros(1).double()]), kept.sqrt(), (1 - kept).sqrt())


def flow_path(timesteps, sigmas):
    return Path(torch.cat([timesteps.double(), torch.zeros(1).double()]), 1 - sigmas, sigmas)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_ancestral_sampling_is_ddpm(monkeypatch, steps, prediction, variance):
    scheduler = scheduling_ddpm.DDPMScheduler(
        variance_type=variance, prediction_type=prediction, clip_sample=False, timestep_spacing="linspace"
    )
    scheduler.alphas_cumprod, scheduler.one = ALPHAS_CUMPROD, torch.tensor(1.0).double()  # theirs are float32
    scheduler.set_timesteps(steps)

    def step(index, output, timestep, x):
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: numbers(1, index))
        return scheduler.step(output, timestep, x).prev_sample

    learned = variance == "learned_range"
    config = SamplerConfig(name="ancestral", variance="fixed_small" if learned else variance)
    mine = ours(config, variance_preserving(scheduler.timesteps), prediction, learned)
    assert_same(mine, theirs(scheduler, step, 1 + learned))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_ddim_is_theirs(steps, prediction, eta):
    scheduler = scheduling_ddim.DDIMScheduler(prediction_type=prediction, clip_sample=False)
    scheduler.alphas_cumprod, scheduler.final_alpha_cumprod = ALPHAS_CUMPROD, torch.tensor(1.0).double()
    scheduler.set_timesteps(steps)

    def step(index, output, timestep, x):
        fresh = numbers(1, index) if eta else None
        return scheduler.step(output, timestep, x, eta=eta, variance_noise=fresh).prev_sample

    mine = ours(SamplerConfig(name="ddim", eta=eta), variance_preserving(scheduler.timesteps), prediction)
    assert_same(mine, theirs(scheduler, step))


@pytest.fixture
def in_double(monkeypatch):
    """Their modules compute their steps in float64."""
    for module in (scheduling_dpmsolver_multistep, scheduling_flow_euler, scheduling_flow_heun):
        monkeypatch.setattr(module, "torch", DoubleTorch())


def plain_step(scheduler):
    return lambda index, output, timestep, x: scheduler.step(output, timestep, x).prev_sample


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.usefixtures("in_double")
def test_dpm_solver_is_theirs(steps, prediction, karras):
    scheduler = scheduling_dpmsolver_multistep.DPMSolverMultistepScheduler(
        prediction_type=prediction, use_karras_sigmas=karras
    )
    scheduler.set_timesteps(steps)
    scheduler.sigmas = scheduler.sigmas.double()  # rounded to float32, and so are those of our path
    scheduler.set_begin_index(0)
    mine = ours("dpm_solver++", variance_preserving(scheduler.timesteps, scheduler.sigmas), prediction)
    assert_same(mine, theirs(scheduler, plain_step(scheduler)))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.usefixtures("in_double")
def test_dpm_solver_is_theirs_on_a_flow(steps, shift):
    scheduler = scheduling_dpmsolver_multistep.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    scheduler.set_timesteps(steps)
    scheduler.sigmas = scheduler.sigmas.double()
    scheduler.set_begin_index(0)
    mine = ours("dpm_solver++", flow_path(scheduler.timesteps, scheduler.sigmas), "velocity")
    assert_same(mine, theirs(scheduler, plain_step(scheduler)))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name", ["euler", "heun"])
@pytest.mark.usefixtures("in_double")
def test_euler_and_heun_are_theirs(steps, shift, name):
    if name == "euler":
        scheduler = scheduling_flow_euler.FlowMatchEulerDiscreteScheduler(shift=shift)
    else:
        scheduler = scheduling_flow_heun.FlowMatchHeunDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    scheduler.sigmas = scheduler.sigmas.double()
    scheduler.set_begin_index(0)
    sigmas, times = scheduler.sigmas, scheduler.timesteps
    if name == "heun":  # inner nodes stand twice
        sigmas, times = torch.cat([sigmas[:-1:2], sigmas[-1:]]), torch.cat([times[:1], times[1::2]])
    mine = ours(name, flow_path(times, sigmas), "velocity")
    assert len(mine) == (2 * steps if name == "heun" else steps + 1)
    assert_same(mine, theirs(scheduler, plain_step(scheduler)))
