"""Samplers: they end at the data, converge at their order, keep the variance that theory says, and refuse what they
cannot walk. That their steps are the published ones is checked in test_samplers_diffusers."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kineograph.config import parse_config
from kineograph.diffusion.process import Denoised, Path
from kineograph.diffusion.samplers import SamplerConfig, sample
from kineograph.errors import RecipeError, UserError

SHAPE = (2, 3, 4, 2, 2)  # B C T H W
ANY_PROCESS = ["dpm_solver++", "ddim", "ancestral"]
EVERY = ["euler", "heun", *ANY_PROCESS]


def normal(seed=0, shape=SHAPE):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def path_of(sigmas, kind):
    """A path through falling noise levels, then to the clean data."""
    sigmas = torch.tensor([*sigmas, 0.0], dtype=torch.float64)
    alphas = 1 - sigmas if kind == "flow" else (1 - sigmas**2).sqrt()
    return Path(sigmas, alphas, sigmas)


def even(steps, kind="flow", start=1.0):
    return path_of(torch.linspace(start, 0, steps + 1)[:-1].tolist(), kind)


def knowing(data, path):
    """A denoiser that knows the data, and reads the noise off x."""

    def denoise(x, node):
        return Denoised(data.expand_as(x), (x - path.alphas[node] * data) / path.sigmas[node], None)

    return denoise


def of_normal_data(path, mean=0.0, deviation=1.0):
    """The best denoiser for data whose elements are normal: E[x_0 | x] is linear in x."""

    def denoise(x, node):
        alpha, sigma = float(path.alphas[node]), float(path.sigmas[node])
        kept = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2)
        clean = mean + kept * (x - alpha * mean)
        return Denoised(clean, (x - alpha * clean) / sigma, None)

    return denoise


sigma_lists = st.lists(st.integers(1, 100), min_size=1, max_size=8, unique=True).map(
    lambda values: [value / 100 for value in sorted(values, reverse=True)]
)


@settings(deadline=None, max_examples=40)
@given(sigmas=sigma_lists, name=st.sampled_from(EVERY), seed=st.integers(0, 99))
def test_with_the_true_data_every_sampler_ends_at_them(sigmas, name, seed):
    for kind in ["flow"] if name in ("euler", "heun") else ["flow", "vp"]:
        path, data = path_of(sigmas, kind), normal(1)
        sampled = sample(name, knowing(data, path), normal(seed), path, step_noise=normal)
        torch.testing.assert_close(sampled, data, atol=1e-9, rtol=0)


@settings(deadline=None, max_examples=40)
@given(sigmas=sigma_lists, name=st.sampled_from(EVERY))
def test_the_last_step_is_the_last_estimate(sigmas, name):
    path, previews = path_of(sigmas, "flow"), {}
    denoise = of_normal_data(path, 0.3, 0.5)
    sampled = sample(name, denoise, normal(), path, step_noise=normal, on_step=previews.__setitem__)
    assert list(previews) == list(range(len(sigmas)))
    torch.testing.assert_close(sampled, previews[len(sigmas) - 1], atol=1e-12, rtol=1e-12)


@settings(deadline=None, max_examples=40)
@given(sigmas=sigma_lists, kind=st.sampled_from(["flow", "vp"]))
def test_ddim_with_all_its_noise_is_ancestral(sigmas, kind):
    path = path_of(sigmas, kind)
    denoise = of_normal_data(path, 0.3, 0.5)
    ddim = sample(SamplerConfig(name="ddim", eta=1), denoise, normal(), path, step_noise=normal)
    torch.testing.assert_close(ddim, sample("ancestral", denoise, normal(), path, normal), atol=1e-9, rtol=0)


@settings(deadline=None, max_examples=40)
@given(sigmas=sigma_lists)
def test_ddim_on_a_flow_is_euler(sigmas):
    path = path_of(sigmas, "flow")
    denoise = of_normal_data(path, 0.3, 0.5)
    euler, ddim = (sample(name, denoise, normal(), path) for name in ("euler", "ddim"))
    torch.testing.assert_close(ddim, euler, atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", ["flow", "vp"])
@pytest.mark.parametrize("steps", [1, 2])
def test_two_steps_of_dpm_solver_are_of_first_order(kind, steps):
    path = even(steps, kind, 0.9)
    denoise = of_normal_data(path, 0.3, 0.5)
    solver, ddim = (sample(name, denoise, normal(), path) for name in ("dpm_solver++", "ddim"))
    torch.testing.assert_close(solver, ddim, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["flow", "vp"])
@pytest.mark.parametrize("name", ANY_PROCESS)
def test_noise_without_any_data_is_the_limit_of_noise_with_hardly_any(name, kind):
    at_one = even(5, kind)
    alphas = at_one.alphas.clone()
    alphas[0] = 1e-300
    nearly = Path(at_one.timesteps, alphas, at_one.sigmas)
    found = [sample(name, of_normal_data(path, 0.3, 0.5), normal(), path, normal) for path in (at_one, nearly)]
    tolerance = 5e-3 if name == "dpm_solver++" else 1e-12  # its second order fades with 1 / -log(alpha)
    torch.testing.assert_close(*found, atol=tolerance, rtol=0)


def error_inside(name, kind, steps, mean=0.3, deviation=1.5):
    """Distance to the exact solution at sigma 0.2 after ``steps`` even steps from sigma 0.9, for normal data."""
    path = path_of(torch.linspace(0.9, 0.2, steps + 1).tolist(), kind)
    at, seen = of_normal_data(path, mean, deviation), {}

    def denoise(x, node):
        seen[node] = x  # the last x at a node is what the step to it made
        return at(x, node)

    def spread(node):  # the flow of the probability keeps (x - alpha·mean) / spread
        return math.hypot(float(path.alphas[node]) * deviation, float(path.sigmas[node]))

    sample(name, denoise, normal(), path)
    units = (seen[0] - path.alphas[0] * mean) / spread(0)
    exact = path.alphas[steps] * mean + spread(steps) * units
    return float((seen[steps] - exact).abs().max())


@pytest.mark.parametrize(
    ("name", "kind", "order"),
    [
        ("euler", "flow", 1),
        ("heun", "flow", 2),
        ("ddim", "vp", 1),
        ("ddim", "flow", 1),
        ("dpm_solver++", "vp", 2),
        ("dpm_solver++", "flow", 2),
    ],
)
def test_halving_the_steps_halves_the_error_as_often_as_the_order_says(name, kind, order):
    errors = [error_inside(name, kind, steps) for steps in (64, 128, 256)]
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert orders == pytest.approx([order, order], abs=0.1)


def variances(config, path, denoise_of):
    """The variance of x at every node, exactly: x is linear in its independent noises, so their factors are tracked."""
    steps = len(path.sigmas) - 1
    factors = torch.eye(steps + 1, dtype=torch.float64).view(steps + 1, 1, 1, 1, steps + 1)
    seen = []

    def denoise(x, node):
        seen.append(float(x.square().sum()))
        return denoise_of(x, node)

    result = sample(config, denoise, factors[0][None], path, step_noise=lambda step: factors[step + 1][None])
    return [*seen, float(result.square().sum())]


@pytest.mark.parametrize("kind", ["flow", "vp"])
@pytest.mark.parametrize("steps", [2, 7])
def test_the_small_variance_is_exact_for_data_that_do_not_vary(kind, steps):
    path = even(steps, kind)
    found = variances(SamplerConfig(name="ancestral"), path, of_normal_data(path, deviation=0.0))
    assert found == pytest.approx([float(s) ** 2 for s in path.sigmas], abs=1e-12)


@pytest.mark.parametrize("steps", [2, 7])
def test_the_large_variance_is_exact_for_standard_normal_data(steps):
    path = even(steps, "vp")
    found = variances(SamplerConfig(name="ancestral", variance="fixed_large"), path, of_normal_data(path))
    assert found[:-1] == pytest.approx([1.0] * steps, abs=1e-12)  # the last step adds no noise


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ancestral_sampling_in_many_steps_has_the_variance_of_the_data(variance):
    path = path_of(torch.linspace(0.9999, 0.01, 1000).tolist(), "vp")
    found = variances(SamplerConfig(name="ancestral", variance=variance), path, of_normal_data(path, deviation=0.6))
    assert found[-1] == pytest.approx(0.6**2, rel=0.03)


@pytest.mark.parametrize(("share", "variance"), [(0.0, "fixed_small"), (1.0, "fixed_large")])
def test_a_learned_variance_goes_from_the_small_to_the_large(share, variance):
    path = even(4, "vp", 0.95)
    at = of_normal_data(path, 0.3, 0.5)

    def learned(x, node):
        return at(x, node)._replace(variance=torch.full_like(x, share))

    fixed = sample(SamplerConfig(name="ancestral", variance=variance), at, normal(), path, normal)
    torch.testing.assert_close(sample("ancestral", learned, normal(), path, normal), fixed, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_a_sampler_of_flows_refuses_other_paths_in_one_line(name):
    path = even(3, "vp", 0.9)
    with pytest.raises(UserError, match=r"for flow models: use dpm_solver\+\+, ddim or ancestral") as error:
        sample(name, of_normal_data(path), normal(), path)
    assert "\n" not in str(error.value)


def test_a_path_that_ends_before_the_data_is_refused():
    path = Path(*(torch.tensor(v, dtype=torch.float64) for v in ([1.0, 0.5], [0.0, 0.5], [1.0, 0.5])))
    with pytest.raises(ValueError, match="last node is clean"):
        sample("euler", of_normal_data(path), normal(), path)


@pytest.mark.parametrize("config", [SamplerConfig(name="ancestral"), SamplerConfig(name="ddim", eta=0.5)])
def test_noise_is_asked_for_by_step_and_not_in_the_last(config):
    path, asked = even(4, "vp", 0.9), []
    sample(config, of_normal_data(path), normal(), path, step_noise=lambda step: asked.append(step) or normal(step))
    assert asked == [0, 1, 2]
    with pytest.raises(ValueError, match="give step_noise"):
        sample(config, of_normal_data(path), normal(), path)


@pytest.mark.parametrize("name", ["euler", "heun", "dpm_solver++", "ddim"])
def test_deterministic_samplers_ask_for_no_noise(name):
    path, asked = even(4), []
    sample(name, of_normal_data(path), normal(), path, step_noise=asked.append)
    assert not asked


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latents_keep_their_dtype_and_carry_no_gradient(name, dtype):
    path = even(4)
    noise = normal().to(dtype).requires_grad_()
    sampled = sample(name, of_normal_data(path), noise, path, step_noise=lambda step: normal(step).float())
    assert sampled.dtype == dtype
    assert sampled.shape == noise.shape
    assert not sampled.requires_grad


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_model_is_called_once_a_step_and_twice_by_heun(name, steps):
    path, calls = even(steps), []
    at = of_normal_data(path)
    sample(name, lambda x, node: calls.append(node) or at(x, node), normal(), path, step_noise=normal)
    assert len(calls) == (2 * steps - 1 if name == "heun" else steps)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eta=0.5", "eta is of the sampler ddim and does nothing in euler"),
        ("name=plms", "'name'"),
        ("eta=2", "'eta'"),
        ("rho=0", "'rho'"),
    ],
)
def test_a_sampler_that_cannot_be_is_refused(override, message):
    with pytest.raises(RecipeError, match=message):
        parse_config({}, SamplerConfig, [override])


def test_timesteps_and_spacing_are_not_given_at_once():
    with pytest.raises(RecipeError, match="give one of them"):
        parse_config({"timesteps": [900, 300], "spacing": "karras"}, SamplerConfig)
