"""Importance-sampled timesteps: where they fall, what they weigh, and that a history survives ranks and restarts."""

from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kineograph.diffusion.importance import ImportanceSampler
from kineograph.errors import UserError

# Standard normals whose distribution is as even as 20,000 numbers can be.
NORMAL = torch.special.ndtri((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)


def warm(losses, history=10):
    """A sampler that has seen ``losses`` (N) at every timestep as often as it remembers."""
    sampler = ImportanceSampler(len(losses), history)
    for _ in range(history):
        sampler.update(torch.arange(len(losses)), losses)
    return sampler


def test_timesteps_are_drawn_by_the_size_of_their_loss():
    losses = torch.tensor([1.0, 2.0, 0.0, 5.0])
    sampler = warm(losses)
    p = 0.999 * losses.double() / 8 + 0.001 / 4
    torch.testing.assert_close(sampler.probabilities(), p)
    share = sampler.draw(NORMAL).timesteps.bincount(minlength=4) / len(NORMAL)
    torch.testing.assert_close(share.double(), p, atol=1e-4, rtol=0)


def test_the_size_is_a_root_mean_square():
    sampler = ImportanceSampler(2, history=2, uniform=1e-9)
    sampler.update(torch.tensor([0, 0, 1, 1]), torch.tensor([1.0, 7.0, 5.0, 5.0]))
    torch.testing.assert_close(sampler.probabilities(), torch.tensor([0.5, 0.5], dtype=torch.float64))


@given(losses=st.lists(st.floats(0, 100), min_size=1, max_size=40))
@settings(deadline=None, max_examples=50)
def test_the_weighted_loss_has_the_mean_of_uniform_timesteps(losses):
    losses = torch.tensor(losses, dtype=torch.float64)
    sampler = warm(losses)
    p = sampler.probabilities()
    assert float(p.sum()) == pytest.approx(1)
    timesteps, weights = sampler.draw(NORMAL)
    torch.testing.assert_close(weights, 1 / (len(p) * p[timesteps]))
    weight = 1 / (len(p) * p)
    assert float((p * weight * losses).sum()) == pytest.approx(float(losses.mean()))


def test_weights_make_the_loss_vary_less():
    losses = torch.logspace(-2, 1, 100, dtype=torch.float64)
    timesteps, weights = warm(losses).draw(NORMAL)
    weighted = weights * losses[timesteps]
    assert float(weighted.mean()) == pytest.approx(float(losses.mean()), rel=1e-2)
    assert float(weighted.std()) < 0.02 * float(losses.std())


def test_draws_are_uniform_until_every_timestep_has_its_history():
    sampler = ImportanceSampler(4, history=2)
    sampler.update(torch.tensor([0, 0, 1, 1, 2, 2, 3]), torch.arange(7.0))
    assert sampler.probabilities().tolist() == [0.25] * 4
    timesteps, weights = sampler.draw(NORMAL)
    assert timesteps.bincount().tolist() == [5000] * 4
    assert bool((weights == 1).all())
    sampler.update(torch.tensor([3]), torch.tensor([9.0]))
    assert sampler.probabilities().tolist() != [0.25] * 4


@given(batches=st.lists(st.lists(st.tuples(st.integers(0, 4), st.floats(0, 9)), max_size=30), max_size=8))
@settings(deadline=None, max_examples=60)
def test_the_last_losses_of_each_timestep_are_remembered(batches):
    sampler = ImportanceSampler(5, history=3)
    expected = [deque(maxlen=3) for _ in range(5)]
    for batch in batches:
        sampler.update(torch.tensor([t for t, _ in batch]), torch.tensor([loss for _, loss in batch]))
        for t, loss in batch:
            expected[t].append(torch.tensor(loss).item())
    state = sampler.state_dict()
    for t in range(5):
        count = min(3, int(state["seen"][t]))
        assert sorted(state["losses"][t, :count].tolist()) == sorted(expected[t])


@given(splits=st.lists(st.integers(0, 64), max_size=4))
@settings(deadline=None, max_examples=20)
def test_a_batch_told_in_parts_is_the_batch_told_whole(splits):
    generator = torch.Generator().manual_seed(0)
    timesteps, losses = torch.randint(6, (64,), generator=generator), torch.rand(64, generator=generator)
    whole, parts = ImportanceSampler(6), ImportanceSampler(6)
    whole.update(timesteps, losses)
    cuts = sorted(splits)
    for t, loss in zip(timesteps.tensor_split(cuts), losses.tensor_split(cuts), strict=True):
        parts.update(t, loss)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True))


def test_a_history_goes_on_after_a_restart():
    first = warm(torch.rand(20, generator=torch.Generator().manual_seed(0)))
    again = ImportanceSampler(20)
    again.load_state_dict(first.state_dict())
    for sampler in (first, again):
        sampler.update(torch.tensor([3, 3, 4]), torch.tensor([9.0, 8.0, 7.0]))
    assert torch.equal(first.probabilities(), again.probabilities())
    assert torch.equal(first.draw(NORMAL).timesteps, again.draw(NORMAL).timesteps)


def test_a_history_of_another_chain_is_refused():
    with pytest.raises(UserError, match="resume with the steps"):
        ImportanceSampler(20).load_state_dict(ImportanceSampler(30).state_dict())


def test_a_loss_that_is_not_finite_is_left_out():
    sampler = ImportanceSampler(2, history=1)
    sampler.update(torch.tensor([0, 1, 0, 1]), torch.tensor([1.0, float("nan"), float("inf"), 3.0]))
    torch.testing.assert_close(sampler.probabilities(), torch.tensor([0.25, 0.75]).double(), atol=1e-3, rtol=0)


def test_when_nothing_is_lost_draws_are_uniform():
    assert warm(torch.zeros(4)).probabilities().tolist() == pytest.approx([0.25] * 4)


def test_weights_have_the_dtype_of_the_numbers_they_came_of():
    drawn = ImportanceSampler(10).draw(torch.zeros(3))
    assert drawn.weights.dtype == torch.float32
    assert drawn.timesteps.dtype == torch.int64
