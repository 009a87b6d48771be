"""Rectified flow: straight paths, three ways to say a velocity, and where timesteps fall."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kineograph.diffusion.flow import LEAST_TIMESTEP, FlowConfig, RectifiedFlow, SizeShift, shift_timestep
from kineograph.diffusion.samplers import sample
from kineograph.errors import UserError

SHAPE = (2, 3, 4, 2, 2)  # B C T H W
PREDICTIONS = ["clean", "velocity", "reverse_velocity"]
quick = settings(deadline=None, max_examples=60)
shifts = st.floats(0.1, 10)


def flow(**config):
    return RectifiedFlow(FlowConfig(**config))


def draw(number, seed=0, dtype=torch.float64):
    return torch.randn(number, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=dtype).unbind(0)


def timesteps(low=LEAST_TIMESTEP, seed=0):
    return low + (1 - low) * torch.rand(2, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def per_frame(timestep):
    return timestep[:, None, :, None, None]


def truth(prediction, data, noise):
    """What a model that knows says."""
    return {"clean": data, "velocity": noise - data, "reverse_velocity": data - noise}[prediction]


class TestPath:
    """Between data and noise."""

    def test_starts_at_data_and_ends_at_noise(self):
        data, noise = draw(2)
        assert torch.equal(flow().add_noise(data, noise, torch.zeros(2, 4)), data)
        assert torch.equal(flow().add_noise(data, noise, torch.ones(2, 4)), noise)

    def test_is_straight(self):
        data, noise = draw(2)
        for t in (0.25, 0.5, 0.9):
            x = flow().add_noise(data, noise, torch.full((2, 4), t, dtype=torch.float64))
            torch.testing.assert_close(x, (1 - t) * data + t * noise, atol=1e-12, rtol=0)

    def test_has_a_place_of_its_own_for_every_frame(self):
        data, noise = draw(2)
        x = flow().add_noise(data, noise, torch.tensor([[0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0]]))
        expected = [[data, noise, data, noise], [noise, noise, data, data]]
        for clip, ends in enumerate(expected):
            for frame, end in enumerate(ends):
                assert torch.equal(x[clip, :, frame], end[clip, :, frame])

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_is_in_the_dtype_of_the_data(self, dtype):
        data, noise, output = draw(3, dtype=dtype)
        process, timestep = flow(), torch.rand(2, 4)
        noisy = process.add_noise(data, noise, timestep)
        found = process.denoised(output, noisy, timestep)
        assert {noisy.dtype, found.clean.dtype, found.noise.dtype} == {dtype}
        assert process.losses(output, data, noise, timestep).dtype == torch.promote_types(dtype, torch.float32)


class TestPrediction:
    @quick
    @given(prediction=st.sampled_from(PREDICTIONS), seed=st.integers(0, 99))
    def test_of_a_model_that_knows_leads_to_both_ends(self, prediction, seed):
        data, noise = draw(2, seed)
        process, timestep = flow(prediction=prediction), timesteps(seed=seed)
        noisy = process.add_noise(data, noise, timestep)
        found = process.denoised(truth(prediction, data, noise), noisy, timestep)
        torch.testing.assert_close(found.clean, data, atol=1e-9, rtol=0)
        torch.testing.assert_close(found.noise, noise, atol=1e-9, rtol=0)
        assert found.variance is None

    @quick
    @given(seed=st.integers(0, 99))
    def test_means_the_same_in_each_parameterisation(self, seed):
        """Any velocity, said in three ways, gives one estimate and one loss."""
        data, noise, velocity = draw(3, seed)
        timestep = timesteps(seed=seed)
        noisy = flow().add_noise(data, noise, timestep)
        outputs = {
            "clean": noisy - per_frame(timestep) * velocity,
            "velocity": velocity,
            "reverse_velocity": -velocity,
        }
        clean = noisy - per_frame(timestep) * velocity
        loss = (velocity - noise + data).square().mean((1, 3, 4))
        for prediction, output in outputs.items():
            process = flow(prediction=prediction)
            torch.testing.assert_close(process.denoised(output, noisy, timestep).clean, clean, atol=1e-9, rtol=0)
            torch.testing.assert_close(process.losses(output, data, noise, timestep), loss, atol=1e-9, rtol=1e-9)

    def test_of_clean_latents_near_the_data_stays_finite(self):
        data, noise, output = draw(3)
        timestep = torch.zeros(2, 4)
        found = flow().denoised(output, data, timestep)
        torch.testing.assert_close(found.clean, data)
        torch.testing.assert_close(found.noise, data + (data - output) / LEAST_TIMESTEP)
        assert flow().losses(output, data, noise, timestep).isfinite().all()

    @pytest.mark.parametrize("prediction", PREDICTIONS)
    def test_a_variance_behind_it_is_left_aside(self, prediction):
        data, noise, output = draw(3)
        process, timestep = flow(prediction=prediction), timesteps()
        behind = torch.cat([output, output * 100], dim=1)
        noisy = process.add_noise(data, noise, timestep)
        found, alone = (process.denoised(o, noisy, timestep) for o in (behind, output))
        assert torch.equal(found.clean, alone.clean)
        losses = [process.losses(o, data, noise, timestep) for o in (behind, output)]
        assert torch.equal(*losses)


class TestLoss:
    def test_is_the_velocitys_squared_error_frame_by_frame(self):
        data, noise = draw(2)
        output = noise - data
        output[1, :, 2] += 2
        output[0, 0, 1, 1, 1] += 6  # one of 3 channels × 4 places: 36 / 12
        loss = flow(prediction="velocity").losses(output, data, noise, timesteps())
        torch.testing.assert_close(loss, torch.tensor([[0.0, 3, 0, 0], [0, 0, 4, 0]]).double(), atol=1e-9, rtol=0)

    def test_of_clean_latents_weighs_less_noise_more(self):
        data, noise = draw(2)
        timestep = torch.tensor([[1.0, 0.5, 0.25, 0.01]] * 2)  # the last below the least: as at 0.05
        loss = flow(prediction="clean").losses(data + 1, data, noise, timestep)
        torch.testing.assert_close(loss[0, :3], torch.tensor([1.0, 4, 16]).double())
        at_data = (0.01 * (noise - data) - 1) / 0.05 - (noise - data)
        torch.testing.assert_close(loss[:, 3], at_data[:, :, 3].square().mean((1, 2, 3)), atol=1e-5, rtol=1e-5)


class TestTime:
    def test_the_model_is_told_thousandths(self):
        assert flow().model_time(torch.tensor([0.0, 0.25, 1.0])).tolist() == [0, 250, 1000]

    def test_a_timestep_at_a_time_is_that_time(self):
        assert float(flow(shift=3.0).timestep_at(0.25)) == 0.25

    @quick
    @given(shift=shifts, t=st.floats(0, 1))
    def test_a_shift_is_undone_by_its_inverse(self, shift, t):
        timestep = torch.tensor(t, dtype=torch.float64)
        torch.testing.assert_close(
            shift_timestep(shift_timestep(timestep, shift), 1 / shift), timestep, atol=1e-9, rtol=0
        )

    @quick
    @given(shift=st.floats(1.01, 10), t=st.floats(0.01, 0.99))
    def test_a_shift_above_one_leans_towards_noise(self, shift, t):
        assert t < float(shift_timestep(torch.tensor(t, dtype=torch.float64), shift)) < 1

    @quick
    @given(
        height=st.integers(16, 2048),
        width=st.integers(16, 2048),
        frames=st.integers(1, 64),
        pixels=st.integers(1, 512**2),
        base_frames=st.integers(1, 8),
        t=st.floats(0, 1),
    )
    def test_a_shift_by_size_is_open_soras(self, height, width, frames, pixels, base_frames, t):
        """Its timestep_transform: ratio = √(pixels / base pixels) · √(frames / base frames)."""
        process = flow(shift=1.5, shift_by_size=SizeShift(pixels=pixels, frames=base_frames))
        ratio = math.sqrt(height * width / pixels) * math.sqrt(frames / base_frames) * 1.5
        assert process.shift(height * width, frames) == pytest.approx(ratio)
        normal = torch.logit(torch.tensor([t], dtype=torch.float64), eps=1e-6)
        before = torch.sigmoid(normal)
        expected = ratio * before / (1 + (ratio - 1) * before)
        torch.testing.assert_close(process.draw_timesteps(normal, height * width, frames), expected)

    def test_without_sizes_the_shift_is_one_for_all(self):
        assert flow(shift=3.0).shift(16, 1) == flow(shift=3.0).shift(10**6, 60) == 3.0


NORMAL = torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class TestDrawing:
    @pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.8, 0.5)])
    @pytest.mark.parametrize("shift", [1.0, 3.0])
    def test_logits_are_normal_and_the_shift_moves_their_mean(self, mean, std, shift):
        """logit(shift·t / (1 + (shift - 1)·t)) = logit(t) + log(shift)."""
        drawn = flow(logit_mean=mean, logit_std=std, shift=shift).draw_timesteps(NORMAL, 1, 1)
        logits = torch.logit(drawn)
        # Four standard errors of a mean and of a standard deviation.
        assert float(logits.mean()) == pytest.approx(mean + math.log(shift), abs=4 * std / math.sqrt(len(NORMAL)))
        assert float(logits.std()) == pytest.approx(std, abs=4 * std / math.sqrt(2 * len(NORMAL)))

    @pytest.mark.parametrize("shift", [1.0, 3.0])
    def test_uniform_timesteps_are_spread_evenly_before_the_shift(self, shift):
        drawn = flow(timesteps="uniform", shift=shift).draw_timesteps(NORMAL, 1, 1)
        even = torch.linspace(0, 1, len(NORMAL), dtype=torch.float64)
        away = (shift_timestep(drawn, 1 / shift).sort().values - even).abs().max()
        # Kolmogorov-Smirnov: 1.95 / √n is passed by chance once in a thousand times, and the seed is fixed.
        assert float(away) < 1.95 / math.sqrt(len(NORMAL))

    @pytest.mark.parametrize("kind", ["uniform", "logit_normal"])
    def test_timesteps_are_inside_the_path(self, kind):
        drawn = flow(timesteps=kind, shift=5.0).draw_timesteps(NORMAL.float(), 1, 1)
        assert float(drawn.min()) > 0
        assert float(drawn.max()) < 1


class TestSamplersPath:
    @quick
    @given(steps=st.integers(1, 40), shift=shifts)
    def test_falls_from_noise_to_data(self, steps, shift):
        path = flow(shift=shift).path(steps, 1, 1)
        assert len(path.timesteps) == len(path.alphas) == len(path.sigmas) == steps + 1
        assert (float(path.alphas[0]), float(path.sigmas[0])) == (0, 1)
        assert (float(path.alphas[-1]), float(path.sigmas[-1]), float(path.timesteps[-1])) == (1, 0, 0)
        assert (path.timesteps.diff() < 0).all()
        assert path.timesteps.dtype == torch.float64
        torch.testing.assert_close(path.alphas + path.sigmas, torch.ones(steps + 1).double())

    def test_is_even_before_the_shift_of_the_size(self):
        process = flow(shift_by_size=SizeShift(pixels=64, frames=1))
        path = process.path(4, 64 * 9, 4)  # √9 · √4 = 6
        even = shift_timestep(path.timesteps, 1 / 6)
        torch.testing.assert_close(even, torch.linspace(1, 0, 5, dtype=torch.float64), atol=1e-12, rtol=0)

    def test_of_no_steps_is_refused(self):
        with pytest.raises(UserError, match="at least one step"):
            flow().path(0, 1, 1)

    @pytest.mark.parametrize("prediction", PREDICTIONS)
    @pytest.mark.parametrize("steps", [1, 3, 10])
    def test_with_the_truth_ends_at_the_data(self, prediction, steps):
        data, noise = draw(2)
        process = flow(prediction=prediction, shift=4.0)
        path = process.path(steps, 1, 1)

        def denoise(x, node):
            return process.denoised(truth(prediction, data, noise), x, path.timesteps[node].expand(2, 4))

        torch.testing.assert_close(sample("euler", denoise, noise, path), data, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    "wrong", [{"shift": 0}, {"logit_std": 0}, {"prediction": "noise"}, {"shift_by_size": {"pixels": 0}}, {"shfit": 1}]
)
def test_a_config_that_means_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FlowConfig(**wrong)
