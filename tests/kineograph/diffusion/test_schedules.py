"""Noise schedules and respacings, against their papers' definitions and diffusers' schedulers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kineograph.diffusion.gaussian import Gaussian, GaussianConfig
from kineograph.diffusion.schedules import (
    noise_schedule,
    sectioned_timesteps,
    spaced_timesteps,
    zero_terminal_snr,
)
from kineograph.errors import UserError
from kineograph.models.torchvision_shim import ensure_torchvision_importable

# Our schedule, its betas at 1000 steps, and diffusers' name of it.
SCHEDULES = [
    ("linear", (1e-4, 0.02), "linear"),
    ("linear", (0.00085, 0.012), "linear"),
    ("scaled_linear", (0.00085, 0.012), "scaled_linear"),
    ("cosine", None, "squaredcos_cap_v2"),
]


@pytest.fixture(scope="module")
def diffusers():
    ensure_torchvision_importable()
    from diffusers import DDIMScheduler, DDPMScheduler

    return {"ddpm": DDPMScheduler, "ddim": DDIMScheduler}


def options(ends, name, steps):
    """Arguments of a scheduler of diffusers, which does not scale the ends to the number of steps."""
    scaled = {} if ends is None else {"beta_start": ends[0] * 1000 / steps, "beta_end": ends[1] * 1000 / steps}
    return {"num_train_timesteps": steps, "beta_schedule": name, **scaled}


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("steps", [100, 1000, 4000])
@pytest.mark.parametrize(("schedule", "ends", "name"), SCHEDULES)
def test_tables_agree_with_diffusers(diffusers, schedule, ends, name, steps, zero_snr):
    theirs = diffusers["ddpm"](**options(ends, name, steps), rescale_betas_zero_snr=zero_snr).alphas_cumprod
    config = GaussianConfig(
        schedule=schedule, betas=ends, steps=steps, zero_terminal_snr=zero_snr, prediction="velocity"
    )
    # Theirs are products of up to 4000 factors in fp32.
    torch.testing.assert_close(Gaussian(config).alphas_cumprod, theirs.double(), atol=2e-6, rtol=0)


def test_the_default_ends_are_those_of_ddpm_and_of_stable_diffusion():
    assert noise_schedule("linear", 1000)[[0, -1]].tolist() == pytest.approx([1e-4, 0.02], rel=1e-12)
    assert noise_schedule("scaled_linear", 1000)[[0, -1]].tolist() == pytest.approx([0.00085, 0.012], rel=1e-12)


@given(steps=st.integers(2, 2000))
@settings(deadline=None, max_examples=30)
def test_the_cosine_schedule_is_eq_17_up_to_its_cap(steps):
    betas = noise_schedule("cosine", steps)
    kept = (1 - betas).cumprod(0)
    f = [math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(steps + 1)]
    free = betas < 0.999
    torch.testing.assert_close(kept[free], torch.tensor(f[1:], dtype=torch.float64)[free] / f[0], atol=1e-12, rtol=0)
    assert float(betas.max()) == 0.999


@given(schedule=st.sampled_from(["linear", "scaled_linear", "cosine"]), steps=st.integers(25, 2000))
@settings(deadline=None, max_examples=30)
def test_zero_terminal_snr_ends_in_noise_and_leaves_the_first_timestep(schedule, steps):
    betas = noise_schedule(schedule, steps)
    root = (1 - betas).cumprod(0).sqrt()
    rescaled = (1 - zero_terminal_snr(betas)).cumprod(0).sqrt()
    assert float(rescaled[-1]) == 0
    assert float(rescaled[0]) == pytest.approx(float(root[0]), rel=1e-12)
    # Linear in between: differences keep their proportions.
    torch.testing.assert_close(rescaled.diff() / rescaled.diff().sum(), root.diff() / root.diff().sum())


@pytest.mark.parametrize(("schedule", "steps", "ends"), [("linear", 20, None), ("scaled_linear", 100, (0.1, 0.2))])
def test_a_schedule_that_would_leave_0_to_1_is_refused(schedule, steps, ends):
    with pytest.raises(UserError, match="more steps, or schedule cosine"):
        noise_schedule(schedule, steps, ends)
    with pytest.raises(ValueError, match="more steps, or schedule cosine"):
        GaussianConfig(schedule=schedule, steps=steps, betas=ends)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [100, 1000])
def test_paths_stop_where_diffusers_does(diffusers, spacing, steps):
    theirs = diffusers["ddim"](**options((1e-4, 0.02), "linear", steps), timestep_spacing=spacing)
    process = Gaussian(GaussianConfig(steps=steps, spacing=spacing))
    for count in [2, 3, 4, 7, 12, 25, 30, 50, 75, 99, 100]:
        theirs.set_timesteps(count)
        path = process.path(count, 1, 1)
        assert path.timesteps.tolist() == [*theirs.timesteps.tolist(), 0]
        torch.testing.assert_close(
            path.alphas[:-1] ** 2, theirs.alphas_cumprod[theirs.timesteps].double(), atol=2e-6, rtol=0
        )


@given(
    spacing=st.sampled_from(["leading", "trailing", "linspace", "ddim"]),
    steps=st.integers(2, 1500),
    data=st.data(),
)
@settings(deadline=None, max_examples=200)
def test_any_number_of_steps_gives_as_many_distinct_timesteps(spacing, steps, data):
    count = data.draw(st.integers(1, steps))
    try:
        kept = spaced_timesteps(spacing, steps, count)
    except UserError:
        strides = [s for s in range(1, steps + 1) if len(range(0, steps, s)) == count]
        assert spacing == "ddim"
        assert not strides
        return
    assert len(kept) == count
    assert bool((kept.diff() > 0).all())
    assert kept[0] >= 0
    assert kept[-1] < steps
    if spacing == "trailing" or (spacing == "linspace" and count > 1):
        assert kept[-1] == steps - 1
    if spacing == "ddim":
        stride = next(s for s in range(1, steps + 1) if len(range(0, steps, s)) == count)
        assert kept.tolist() == list(range(0, steps, stride))


@given(steps=st.integers(1, 1500), data=st.data())
@settings(deadline=None, max_examples=100)
def test_each_section_has_its_own_number_of_timesteps(steps, data):
    number = data.draw(st.integers(1, min(steps, 6)))
    sizes = [len(section) for section in torch.arange(steps).tensor_split(number)]
    counts = [data.draw(st.integers(1, size)) for size in sizes]
    kept = sectioned_timesteps(steps, counts)
    start = 0
    for size, count in zip(sizes, counts, strict=True):
        inside = kept[(kept >= start) & (kept < start + size)]
        assert len(inside) == count
        assert inside[0] == start
        assert count == 1 or inside[-1] == start + size - 1
        start += size
    assert bool((kept.diff() > 0).all())


def test_sections_give_more_steps_to_a_part_of_the_chain():
    process = Gaussian(GaussianConfig(sections=(10, 15, 25)))
    path = process.path(100, 1, 1)
    assert len(path.timesteps) == 101
    assert [int(((path.timesteps[:-1] // 333.4) == part).sum()) for part in range(3)] == [20, 30, 50]
    with pytest.raises(UserError, match="ask for a multiple"):
        process.path(60, 1, 1)


@pytest.mark.parametrize("count", [0, 1001])
def test_more_steps_than_timesteps_are_refused(count):
    with pytest.raises(UserError, match="ask for 1 to 1000"):
        spaced_timesteps("trailing", 1000, count)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "ddim"])
def test_a_path_that_would_start_at_the_data_is_refused(spacing):
    with pytest.raises(UserError, match="spacing trailing"):
        Gaussian(GaussianConfig(spacing=spacing)).path(1, 1, 1)


@given(
    count=st.integers(2, 200),
    spacing=st.sampled_from(["trailing", "linspace"]),
    schedule=st.sampled_from(["linear", "scaled_linear", "cosine"]),
    zero_snr=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_a_path_goes_from_noise_to_exactly_the_data(count, spacing, schedule, zero_snr):
    config = GaussianConfig(schedule=schedule, spacing=spacing, prediction="velocity", zero_terminal_snr=zero_snr)
    path = Gaussian(config).path(count, 1, 1)
    assert path.timesteps.dtype == path.alphas.dtype == path.sigmas.dtype == torch.float64
    assert (float(path.timesteps[0]), float(path.timesteps[-1])) == (999, 0)
    assert (float(path.alphas[-1]), float(path.sigmas[-1])) == (1, 0)
    assert bool((path.alphas.diff() > 0).all())
    torch.testing.assert_close(path.alphas**2 + path.sigmas**2, torch.ones(count + 1, dtype=torch.float64))
    if zero_snr:
        assert (float(path.alphas[0]), float(path.sigmas[0])) == (0, 1)
