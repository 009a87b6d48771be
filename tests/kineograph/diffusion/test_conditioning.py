"""Given frames: what each task gives, never changed, never in the loss, and the model knows which they are."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kineograph.diffusion.conditioning import (
    Given,
    TaskMix,
    denoiser,
    given_frames,
    hold_given,
    mean_over_asked,
)
from kineograph.diffusion.flow import FlowConfig, RectifiedFlow
from kineograph.diffusion.gaussian import Gaussian, GaussianConfig
from kineograph.diffusion.guidance import GuidanceConfig
from kineograph.diffusion.samplers import sample

SHAPE = (2, 3, 4, 2, 2)  # B C T H W
MASK = torch.tensor([[True, False, True, False], [False, False, False, True]])
TASKS = ["text", "image", "first_last", "extend", "extend_back", "interpolate"]
PROCESSES = {
    "flow": RectifiedFlow(FlowConfig(prediction="velocity", shift=2.0)),
    "gaussian": Gaussian(GaussianConfig()),
}
both = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
PLAIN = GuidanceConfig(scale=1.0)
quick = settings(deadline=None, max_examples=60)


def draw(number, seed=0):
    return torch.randn(number, *SHAPE, generator=torch.Generator().manual_seed(seed)).unbind(0)


class TestTaskMix:
    @quick
    @given(weights=st.lists(st.floats(0, 5), min_size=6, max_size=6).filter(lambda w: sum(w) > 0.1))
    def test_shares_are_the_weights(self, weights):
        """Over numbers that are spread evenly, to one in their count."""
        mix, count = TaskMix(**dict(zip(TASKS, weights, strict=True))), 500
        drawn = [mix.draw((i + 0.5) / count) for i in range(count)]
        for task, weight in zip(TASKS, weights, strict=True):
            assert abs(drawn.count(task) - count * weight / sum(weights)) <= 1 + 1e-6

    @quick
    @given(number=st.sampled_from([0.0, 0.5, 1 - 2**-53, 1.0]), only=st.sampled_from(TASKS))
    def test_a_task_without_weight_is_never_drawn(self, number, only):
        weights = {task: 0.1 if task == only else 0.0 for task in TASKS}
        assert TaskMix(**weights).draw(number) == only

    def test_a_first_frame_is_given_where_nothing_is_said(self):
        assert TaskMix().draw(0.3) == "image"

    @pytest.mark.parametrize("wrong", [{"image": 0}, {"image": -1}, {"image": 1, "loop": 1}])
    def test_a_mix_that_means_nothing_is_refused(self, wrong):
        with pytest.raises(ValueError, match=r"above zero|greater than|loop"):
            TaskMix(**wrong)


GIVEN = {  # by number of frames 1..8, for a number of 0.5 where it is open how many; o is given
    "text": [".", "..", "...", "....", ".....", "......", ".......", "........"],
    "image": [".", "o.", "o..", "o...", "o....", "o.....", "o......", "o......."],
    "first_last": [".", "..", "o.o", "o..o", "o...o", "o....o", "o.....o", "o......o"],
    "extend": [".", "o.", "oo.", "oo..", "ooo..", "ooo...", "oooo...", "oooo...."],
    "extend_back": [".", ".o", ".oo", "..oo", "..ooo", "...ooo", "...oooo", "....oooo"],
    "interpolate": [".", "o.", "o.o", "o.o.", "o.o.o", "o.o.o.", "o.o.o.o", "o.o.o.o."],
}


class TestGivenFrames:
    @pytest.mark.parametrize("task", TASKS)
    @pytest.mark.parametrize("frames", range(1, 9))
    def test_are_those_of_the_task(self, task, frames):
        mask = given_frames(task, frames, 0.5)
        assert "".join("o" if frame else "." for frame in mask) == GIVEN[task][frames - 1]

    @quick
    @given(task=st.sampled_from(TASKS), frames=st.integers(1, 8), number=st.floats(0, 1, exclude_max=True))
    def test_leave_one_to_make(self, task, frames, number):
        mask = given_frames(task, frames, number)
        assert mask.shape == (frames,)
        assert not mask.all()
        if task not in ("text", "first_last") and frames > 1:
            assert mask.any()

    @pytest.mark.parametrize("task", ["extend", "extend_back"])
    @pytest.mark.parametrize("frames", range(2, 9))
    def test_of_an_extension_are_as_often_few_as_many(self, task, frames):
        counts = [int(given_frames(task, frames, (i + 0.5) / 840).sum()) for i in range(840)]
        assert [counts.count(n) for n in range(1, frames)] == [840 // (frames - 1)] * (frames - 1)

    @quick
    @given(frames=st.integers(1, 8), number=st.floats(0, 1, exclude_max=True))
    def test_backward_is_forward_from_the_end(self, frames, number):
        backward = given_frames("extend_back", frames, number)
        assert torch.equal(backward.flip(0), given_frames("extend", frames, number))


class TestTraining:
    def test_given_frames_are_without_noise(self):
        held = hold_given(torch.full((2, 4), 0.7), MASK)
        assert torch.equal(held == 0, MASK)
        data, noise = draw(2)
        noisy = PROCESSES["flow"].add_noise(data, noise, held)
        keep = MASK[:, None, :, None, None].expand_as(data)
        assert torch.equal(noisy[keep], data[keep])

    def test_given_frames_have_no_loss(self):
        losses = torch.rand(2, 4)
        before = mean_over_asked(losses, MASK)
        assert torch.equal(mean_over_asked(losses.masked_fill(MASK, 1e9), MASK), before)

    def test_the_loss_is_the_mean_over_the_others(self):
        losses = torch.tensor([[1.0, 2, 3, 6], [1, 2, 3, 6]])
        assert mean_over_asked(losses, MASK).tolist() == [4, 2]
        assert mean_over_asked(losses, torch.zeros(2, 4, dtype=torch.bool)).tolist() == [3, 3]

    def test_where_all_is_given_there_is_no_loss(self):
        assert mean_over_asked(torch.ones(1, 4), torch.ones(1, 4, dtype=torch.bool)).tolist() == [0]


class Recorder:
    """A model that keeps what it is asked and answers with a function of it."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, time, text_on):
        self.calls.append((x.clone(), time.clone(), text_on.clone()))
        return torch.sin(5 * x) + text_on[:, None, None, None, None]


class TestDenoiser:
    @both
    def test_given_frames_come_back_bit_by_bit(self, process):
        noise, frames = draw(2)
        path = process.path(4, 64, 4)
        denoise = denoiser(process, Recorder(), path, PLAIN, noise, Given(frames, MASK))
        keep = MASK[:, None, :, None, None].expand_as(frames)
        for node in range(4):
            clean = denoise(10 * noise, node).clean
            assert torch.equal(clean[keep], frames[keep])
            assert not torch.equal(clean[~keep], frames[~keep])

    @both
    @pytest.mark.parametrize("sampler", ["dpm_solver++", "ddim"])
    def test_a_sampler_ends_with_them(self, process, sampler):
        noise, frames = draw(2)
        path = process.path(4, 64, 4)
        denoise = denoiser(process, Recorder(), path, PLAIN, noise, Given(frames, MASK))
        keep = MASK[:, None, :, None, None].expand_as(frames)
        assert torch.equal(sample(sampler, denoise, noise, path)[keep], frames[keep])

    @both
    def test_the_model_sees_them_clean_and_at_time_zero(self, process):
        noise, frames = draw(2)
        path, model = process.path(3, 64, 4), Recorder()
        sample("ddim", denoiser(process, model, path, PLAIN, noise, Given(frames, MASK)), noise, path)
        keep = MASK[:, None, :, None, None].expand_as(frames)
        assert len(model.calls) == 3
        for (x, time, _), timestep in zip(model.calls, path.timesteps, strict=False):
            assert torch.equal(x[keep], frames[keep])
            assert not time[MASK].any()
            assert torch.equal(time[~MASK], process.model_time(timestep).expand(2, 4)[~MASK].to(time))

    @both
    def test_what_stands_where_nothing_is_given_does_not_matter(self, process):
        noise, frames = draw(2)
        path, keep = process.path(3, 64, 4), MASK[:, None, :, None, None]
        ends = []
        for filler in (0.0, math.nan):
            given = Given(torch.where(keep, frames, torch.tensor(filler)), MASK)
            ends.append(sample("ddim", denoiser(process, Recorder(), path, PLAIN, noise, given), noise, path))
        assert torch.equal(*ends)

    @both
    def test_with_the_truth_the_others_end_at_the_data(self, process):
        data, noise = draw(2)
        path = process.path(5, 64, 4)
        start = (path.alphas[0] * data + path.sigmas[0] * noise).float()  # a Gaussian process starts not quite at noise
        truth = noise - data if process is PROCESSES["flow"] else noise
        denoise = denoiser(process, lambda *_: truth, path, PLAIN, noise, Given(data, MASK))
        torch.testing.assert_close(sample("ddim", denoise, start, path), data, atol=1e-4, rtol=0)

    @both
    def test_with_nothing_given_it_is_the_process_itself(self, process):
        (noise,) = draw(1)
        path, model = process.path(3, 64, 4), Recorder()
        found = denoiser(process, model, path, PLAIN, noise)(noise, 0)
        x, time, text_on = model.calls[0]
        assert torch.equal(x, noise)
        assert text_on.all()
        timestep = path.timesteps[0].float().expand(2, 4)
        assert torch.equal(time, process.model_time(timestep))
        expected = process.denoised(torch.sin(5 * noise) + 1, noise, timestep)
        assert torch.equal(found.clean, expected.clean)
        none = Given(torch.zeros(SHAPE), torch.zeros(2, 4, dtype=torch.bool))
        assert torch.equal(denoiser(process, Recorder(), path, PLAIN, noise, none)(noise, 0).clean, expected.clean)

    @both
    def test_a_pass_without_the_image_has_them_as_noisy_as_the_others(self, process):
        """Passes: nothing, the image, text and image; the first hides what is given."""
        noise, frames = draw(2)
        path, model = process.path(3, 64, 4), Recorder()
        guidance = GuidanceConfig(scale=4.0, image_scale=1.5)
        denoiser(process, model, path, guidance, noise, Given(frames, MASK))(noise, 1)
        x, time, text_on = (part.chunk(3) for part in model.calls[0])
        keep = MASK[:, None, :, None, None].expand_as(frames)
        hidden = path.alphas[1] * frames + path.sigmas[1] * noise
        torch.testing.assert_close(x[0][keep], hidden[keep].float(), atol=1e-6, rtol=0)
        assert torch.equal(x[0][~keep], noise[~keep])
        everywhere = process.model_time(path.timesteps[1]).float().expand(2, 4)
        torch.testing.assert_close(time[0].float(), everywhere)
        for shown in (1, 2):
            assert torch.equal(x[shown][keep], frames[keep])
            assert not time[shown][MASK].any()
        assert [bool(part.any()) for part in text_on] == [False, False, True]
