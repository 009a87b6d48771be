"""DDPM and IDDPM: against reference outputs of the DiT repository, Bayes' rule, and diffusers' scheduler."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from kineograph.config import parse_config
from kineograph.diffusion.gaussian import Gaussian, GaussianConfig
from kineograph.diffusion.likelihood import discretised_log_likelihood, normal_cdf, normal_kl
from kineograph.diffusion.schedules import sectioned_timesteps
from kineograph.errors import RecipeError
from kineograph.models.torchvision_shim import ensure_torchvision_importable

REFERENCE = Path(__file__).parents[2] / "data" / "reference" / "iddpm.safetensors"
SHAPE = (2, 3, 4, 2, 2)  # B C T H W
PREDICTIONS = ["epsilon", "clean", "velocity"]


def values(shape=SHAPE, number=2, seed=0):
    return torch.randn(number, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).unbind(0)


def places(steps, seed=0):
    """Timesteps (B T), those of the ends among them."""
    drawn = torch.randint(steps, SHAPE[::2][:2], generator=torch.Generator().manual_seed(seed))
    drawn[0, :3] = torch.tensor([0, 1, steps - 1])
    return drawn


def per_frame(table, timestep):
    return table[timestep][:, None, :, None, None]


def output_of(process, data, noise, timestep):
    """The output of a model that knows: exactly what ``process`` asks to predict."""
    alpha = per_frame(process.alphas_cumprod.sqrt(), timestep)
    sigma = per_frame((1 - process.alphas_cumprod).sqrt(), timestep)
    return {"epsilon": noise, "clean": data, "velocity": alpha * noise - sigma * data}[process.config.prediction]


@pytest.fixture(scope="module")
def fields():
    # Images are videos of one frame.
    return {k: v[:, :, None] if v.dim() == 4 else v for k, v in load_file(REFERENCE).items()}


class TestReference:
    """1000 linear steps with learned variance, in fp32: every number of the reference, within 1e-5."""

    process = Gaussian(GaussianConfig(variance="learned_range", spacing="ddim"))

    def check(self, fields, name, ours, atol=1e-5):
        expected = fields[f"output.{name}"]
        difference = float((ours.double() - expected.double()).abs().max())
        print(f"{name} agrees within {difference:.1e}, at most {float(expected.abs().max()):.3g} in size")
        assert ours.shape == expected.shape
        assert difference <= atol

    def test_noise(self, fields):
        timestep = fields["input.timestep"][:, None]
        self.check(fields, "betas", self.process.betas)
        self.check(fields, "x_t", self.process.add_noise(fields["input.x_start"], fields["input.noise"], timestep))

    def test_posterior(self, fields):
        timestep = fields["input.timestep"][:, None]
        posterior = self.process.q_posterior(fields["input.x_start"], fields["output.x_t"], timestep)
        self.check(fields, "posterior_mean", posterior.mean)
        self.check(fields, "posterior_variance", posterior.variance)

    def test_model(self, fields):
        arguments = fields["input.model_output"], fields["output.x_t"], fields["input.timestep"][:, None]
        model = self.process.p_mean_variance(*arguments)
        self.check(fields, "mean", model.mean)
        self.check(fields, "variance", model.variance)
        self.check(fields, "log_variance", model.log_variance)
        self.check(fields, "pred_xstart", self.process.denoised(*arguments).clean)

    def test_loss(self, fields):
        timestep = fields["input.timestep"][:, None]
        output, data, noise = (fields[f"input.{name}"] for name in ("model_output", "x_start", "noise"))
        without_bound = Gaussian(GaussianConfig(variance="learned_range", vlb_weight=0))
        self.check(fields, "mse", without_bound.losses(output, data, noise, timestep)[:, 0])
        self.check(fields, "vb", self.process.vlb_terms(output, data, fields["output.x_t"], timestep)[:, 0])
        self.check(fields, "loss", self.process.losses(output, data, noise, timestep)[:, 0])

    def test_ddim_step(self, fields):
        path = self.process.path(50, 1, 1)
        self.check(fields, "ddim50_timesteps", path.timesteps[:-1].flip(0).long())
        node = 49 - torch.tensor([0, 1, 25, 49])  # the reference counts from the data
        estimate = self.process.denoised(
            fields["input.model_output"], fields["output.x_t"], path.timesteps[node][:, None]
        )
        alpha, sigma = (per_frame(table.float(), node[:, None] + 1) for table in (path.alphas, path.sigmas))
        self.check(fields, "ddim50_sample", alpha * estimate.clean + sigma * estimate.noise)

    def test_respacing(self, fields):
        self.check(fields, "respaced100_timesteps", sectioned_timesteps(1000, [100]))


configs = st.builds(
    GaussianConfig,
    steps=st.sampled_from([30, 1000]),
    schedule=st.sampled_from(["linear", "scaled_linear", "cosine"]),
    prediction=st.sampled_from(PREDICTIONS),
)


@given(config=configs, seed=st.integers(0, 9))
@settings(deadline=None, max_examples=40)
def test_the_right_output_of_any_prediction_denoises_to_data_and_noise(config, seed):
    process, timestep = Gaussian(config), places(config.steps, seed)
    data, noise = values(seed=seed)
    noisy = process.add_noise(data, noise, timestep)
    estimate = process.denoised(output_of(process, data, noise, timestep), noisy, timestep)
    assert estimate.clean.dtype == torch.float64
    # A cosine schedule ends at an alpha of 5e-5, whose inverse amplifies rounding.
    torch.testing.assert_close(estimate.clean, data, atol=1e-10, rtol=0)
    torch.testing.assert_close(estimate.noise, noise, atol=1e-10, rtol=0)
    assert estimate.variance is None


@pytest.mark.parametrize("prediction", ["clean", "velocity"])
def test_noise_alone_denoises_too(prediction):
    process = Gaussian(GaussianConfig(zero_terminal_snr=True, prediction=prediction, variance="learned_range"))
    data, noise = values()
    timestep = torch.full((2, 4), 999)
    noisy = process.add_noise(data, noise, timestep)
    assert torch.equal(noisy, noise)
    output = torch.cat([output_of(process, data, noise, timestep), noise], dim=1)
    estimate = process.denoised(output, noisy, timestep)
    torch.testing.assert_close(estimate.clean, data)
    torch.testing.assert_close(estimate.noise, noise)
    assert bool(process.losses(output, data, noise, timestep).isfinite().all())


def test_noise_alone_cannot_be_denoised_by_predicting_it():
    with pytest.raises(RecipeError, match="use prediction velocity"):
        parse_config({"zero_terminal_snr": True}, GaussianConfig)


def test_every_frame_is_treated_by_its_own_timestep():
    process = Gaussian(GaussianConfig(variance="learned_range", min_snr_gamma=5.0))
    timestep = places(1000)
    data, noise = values()
    output = torch.cat(values(seed=1), dim=1)
    noisy = process.add_noise(data, noise, timestep)
    losses = process.losses(output, data, noise, timestep)
    assert losses.shape == (2, 4)
    for t in range(4):
        frame, one = slice(t, t + 1), timestep[:, t : t + 1]
        alone = process.add_noise(data[:, :, frame], noise[:, :, frame], one)
        assert torch.equal(noisy[:, :, frame], alone)
        torch.testing.assert_close(
            losses[:, frame], process.losses(output[:, :, frame], data[:, :, frame], noise[:, :, frame], one)
        )


@given(config=configs, seed=st.integers(0, 9))
@settings(deadline=None, max_examples=30)
def test_the_posterior_is_bayes_rule(config, seed):
    process, timestep = Gaussian(config), places(config.steps, seed).clamp_min(1)
    clean, noisy = values(seed=seed)
    beta, before = per_frame(process.betas, timestep), per_frame(process.alphas_cumprod, timestep - 1)
    # N(√ᾱ_{t-1}·x_0, 1 - ᾱ_{t-1}) of x_{t-1}, times N(√(1 - β)·x_{t-1}, β) of x_t: precisions add.
    precision = 1 / (1 - before) + (1 - beta) / beta
    mean = (before.sqrt() * clean / (1 - before) + (1 - beta).sqrt() * noisy / beta) / precision
    posterior = process.q_posterior(clean, noisy, timestep)
    torch.testing.assert_close(posterior.mean, mean, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(posterior.variance, (1 / precision).expand_as(mean), atol=0, rtol=1e-8)
    torch.testing.assert_close(posterior.log_variance.exp(), posterior.variance)


def test_the_last_step_to_the_data_has_no_variance_but_its_log_is_finite():
    process = Gaussian(GaussianConfig())
    data, noisy = values()
    posterior = process.q_posterior(data, noisy, torch.zeros(2, 4))
    torch.testing.assert_close(posterior.mean, data)
    assert float(posterior.variance.abs().max()) == 0
    later = process.q_posterior(data, noisy, torch.ones(2, 4))
    assert torch.equal(posterior.log_variance, later.log_variance)


def test_the_large_fixed_variance_of_the_first_timestep_is_the_posteriors_of_the_second():
    process = Gaussian(GaussianConfig(variance="fixed_large"))
    noisy, output = values()
    model = process.p_mean_variance(output, noisy, torch.tensor([[0, 1, 2, 999]] * 2))
    second = process.q_posterior(noisy, noisy, torch.ones(2, 4)).variance[0, 0, 0, 0, 0]
    expected = torch.stack([second, *process.betas[[1, 2, 999]]])
    torch.testing.assert_close(model.variance[1, 0, :, 0, 0], expected)


def test_a_learned_variance_lies_between_the_posteriors_and_beta_in_logs():
    process, timestep = Gaussian(GaussianConfig(variance="learned_range")), places(1000)
    noisy, predicted = values()
    low = process.q_posterior(noisy, noisy, timestep).log_variance
    high = per_frame(process.betas, timestep).log().expand_as(low)
    for raw, expected in [(-1.0, low), (0.0, (low + high) / 2), (1.0, high)]:
        output = torch.cat([predicted, torch.full_like(predicted, raw)], dim=1)
        torch.testing.assert_close(process.p_mean_variance(output, noisy, timestep).log_variance, expected)
        assert float((process.denoised(output, noisy, timestep).variance - (raw + 1) / 2).abs().max()) == 0


@pytest.mark.parametrize(("variance", "factor"), [("fixed_small", 1), ("fixed_large", 1), ("learned_range", 2)])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("clip", [None, 1.0])
def test_ancestral_steps_agree_with_diffusers(variance, factor, prediction, clip):
    ensure_torchvision_importable()
    from diffusers import DDPMScheduler

    names = {"clean": "sample", "velocity": "v_prediction", "epsilon": "epsilon"}
    theirs = DDPMScheduler(
        variance_type=variance, prediction_type=names[prediction], clip_sample=clip is not None, clip_sample_range=clip
    )
    config = GaussianConfig(variance=variance, prediction=prediction, clip=clip)
    process = Gaussian(config)
    assert process.output_factor == factor
    theirs.betas, theirs.alphas, theirs.alphas_cumprod = process.betas, 1 - process.betas, process.alphas_cumprod
    noisy, output, noise = (x[:, :, :1] for x in values(number=3))
    if factor == 2:
        output = torch.cat([output, noise.tanh()], dim=1)
    for t in [1, 17, 500, 999]:
        timestep = torch.full((2, 1), t)
        model = process.p_mean_variance(output, noisy, timestep)
        expected = theirs.step(output, t, noisy, generator=torch.Generator().manual_seed(0))
        drawn = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        clean = process.denoised(output, noisy, timestep).clean
        torch.testing.assert_close(clean, expected.pred_original_sample, atol=1e-9, rtol=0)
        torch.testing.assert_close(model.mean + model.variance.sqrt() * drawn, expected.prev_sample, atol=1e-9, rtol=0)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear"])
def test_noise_and_velocity_agree_with_diffusers(schedule):
    ensure_torchvision_importable()
    from diffusers import DDPMScheduler

    process = Gaussian(GaussianConfig(schedule=schedule, prediction="velocity"))
    theirs = DDPMScheduler(
        beta_schedule=schedule, beta_start=float(process.betas[0]), beta_end=float(process.betas[-1])
    )
    data, noise = (x[:, :, :1] for x in values())
    timestep = torch.tensor([[3], [800]])
    noisy = process.add_noise(data, noise, timestep)
    torch.testing.assert_close(noisy, theirs.add_noise(data, noise, timestep[:, 0]), atol=1e-5, rtol=0)
    velocity = theirs.get_velocity(data, noise, timestep[:, 0])
    torch.testing.assert_close(
        process.losses(velocity, data, noise, timestep), torch.zeros(2, 1).double(), atol=1e-9, rtol=0
    )


def test_a_clipped_estimate_still_explains_the_noisy_latents():
    process, timestep = Gaussian(GaussianConfig(clip=0.5)), places(1000)
    noisy, output = values()
    estimate = process.denoised(output, noisy, timestep)
    assert float(estimate.clean.abs().max()) == 0.5
    torch.testing.assert_close(process.add_noise(estimate.clean, estimate.noise, timestep), noisy)


@given(gamma=st.floats(0.5, 20), seed=st.integers(0, 9), steps=st.sampled_from([30, 1000]))
@settings(deadline=None, max_examples=30)
def test_min_snr_weighs_the_same_error_of_the_data_alike_whatever_is_predicted(gamma, seed, steps):
    data, noise, wrong = values(number=3, seed=seed)
    timestep = places(steps, seed)
    for prediction in PREDICTIONS:
        process = Gaussian(GaussianConfig(steps=steps, prediction=prediction, min_snr_gamma=gamma))
        noisy = process.add_noise(data, noise, timestep)
        as_clean = Gaussian(GaussianConfig(steps=steps, prediction="clean")).denoised(wrong, noisy, timestep)
        output = output_of(process, wrong, as_clean.noise, timestep)
        snr = (process.alphas_cumprod / (1 - process.alphas_cumprod))[timestep]
        expected = snr.clamp_max(gamma) * (wrong - data).square().mean((1, 3, 4))
        torch.testing.assert_close(process.losses(output, data, noise, timestep), expected, atol=1e-9, rtol=1e-9)


def test_the_bound_teaches_the_variance_alone():
    process, timestep = Gaussian(GaussianConfig(variance="learned_range")), places(1000)
    data, noise, predicted, raw = values(number=4)
    gradients = []
    for weight in (0.0, 0.001):
        process = Gaussian(GaussianConfig(variance="learned_range", vlb_weight=weight))
        output = torch.cat([predicted, raw], dim=1).requires_grad_()
        process.losses(output, data, noise, timestep).sum().backward()
        gradients.append(output.grad.chunk(2, dim=1))
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert float(gradients[0][1].abs().max()) == 0
    assert float(gradients[1][1].abs().min()) > 0


def test_the_bound_is_none_for_the_true_posterior_and_counts_all_timesteps():
    config = GaussianConfig(variance="learned_range", steps=100)
    process, timestep = Gaussian(config), places(100).clamp_min(1)
    data, noise = values()
    noisy = process.add_noise(data, noise, timestep)
    perfect = torch.cat([noise, -torch.ones_like(noise)], dim=1)
    torch.testing.assert_close(
        process.vlb_terms(perfect, data, noisy, timestep), torch.zeros(2, 4).double(), atol=1e-12, rtol=0
    )
    off = torch.cat([noise, torch.zeros_like(noise)], dim=1)
    bits = process.vlb_terms(off, data, noisy, timestep)
    torch.testing.assert_close(process.losses(off, data, noise, timestep), 0.001 * 100 * bits)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_with_a_fixed_variance_a_variance_that_the_model_says_is_left_aside(prediction, variance):
    process, timestep = Gaussian(GaussianConfig(prediction=prediction, variance=variance)), places(1000)
    data, noise, output, said = values(number=4)
    both = torch.cat([output, said], dim=1)
    assert torch.equal(process.losses(both, data, noise, timestep), process.losses(output, data, noise, timestep))
    noisy = process.add_noise(data, noise, timestep)
    for one, other in zip(
        process.denoised(both, noisy, timestep), process.denoised(output, noisy, timestep), strict=True
    ):
        assert other is one is None or torch.equal(one, other)


def test_half_precision_outputs_have_losses_in_fp32():
    process, timestep = Gaussian(GaussianConfig(variance="learned_range")), places(1000)
    data, noise = (x.bfloat16() for x in values())
    losses = process.losses(torch.cat([noise, noise], dim=1), data, noise, timestep)
    assert losses.dtype == torch.float32
    assert process.add_noise(data, noise, timestep).dtype == torch.bfloat16


def test_models_are_told_the_index_scaled_to_a_thousand():
    index = torch.arange(1000)
    assert torch.equal(Gaussian(GaussianConfig()).model_time(index), index.float())
    assert Gaussian(GaussianConfig(steps=4000)).model_time(torch.tensor([[0, 2, 3999]])).tolist() == [[0, 0.5, 999.75]]
    assert Gaussian(GaussianConfig()).model_time(torch.tensor(7.0).double()).dtype == torch.float64


def test_training_timesteps_are_uniform():
    normal = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    timesteps = Gaussian(GaussianConfig(steps=50)).draw_timesteps(normal, 1, 1)
    counts = timesteps.bincount(minlength=50).double()
    assert timesteps.dtype == torch.int64
    assert len(counts) == 50
    # Chi-squared with 49 degrees of freedom is above 85.4 once in a thousand times, and the seed is fixed.
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 85.4


@pytest.mark.parametrize("normal", [-40.0, 40.0])
def test_extreme_numbers_draw_timesteps_of_the_chain(normal):
    assert int(Gaussian(GaussianConfig()).draw_timesteps(torch.tensor([normal]), 1, 1)) in (0, 999)


def test_kl_is_that_of_normal_laws():
    mean, log_variance, other_mean, other_log_variance = values(number=4)
    law = torch.distributions.Normal(mean, (log_variance / 2).exp())
    other = torch.distributions.Normal(other_mean, (other_log_variance / 2).exp())
    torch.testing.assert_close(
        normal_kl(mean, log_variance, other_mean, other_log_variance), torch.distributions.kl_divergence(law, other)
    )


@given(mean=st.floats(-1.2, 1.2), log_variance=st.floats(-8, 1))
@settings(deadline=None, max_examples=50)
def test_the_likelihoods_of_all_pixel_values_add_up_to_one(mean, log_variance):
    pixels = torch.linspace(-1, 1, 256, dtype=torch.float64)
    total = (
        discretised_log_likelihood(pixels, torch.tensor(mean).double(), torch.tensor(log_variance).double()).exp().sum()
    )
    assert float(total) == pytest.approx(1, abs=1e-9)


def test_the_distribution_function_is_near_the_exact_one():
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64)
    assert float((normal_cdf(x) - torch.special.ndtr(x)).abs().max()) < 2e-4
    assert float(normal_cdf(torch.tensor(0.0))) == 0.5


def test_a_broad_law_gives_a_bin_its_density_times_its_width():
    spread = torch.tensor(50.0, dtype=torch.float64)
    log_likelihood = discretised_log_likelihood(torch.zeros(1).double(), torch.zeros(1).double(), 2 * spread.log())
    density = 1 / (math.sqrt(2 * math.pi) * 50)
    assert float(log_likelihood.exp()) == pytest.approx(density * 2 / 255, rel=1e-6)
