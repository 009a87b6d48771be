"""Counter-based randomness: numbers belong to their key."""

import math

import torch

from kineograph.diffusion.random import normal, uniform


def test_a_key_always_gives_the_same_numbers():
    first = normal((3, 4), 0, 1, "clip", "noise")
    normal((5,), 9, "something else between")
    assert torch.equal(normal((3, 4), 0, 1, "clip", "noise"), first)


def test_the_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    normal((3,), "key")
    assert torch.equal(torch.get_rng_state(), state)


def test_every_part_of_a_key_counts():
    base = normal((8,), 0, 1, "clip", "noise")
    others = [(1, 1, "clip", "noise"), (0, 2, "clip", "noise"), (0, 1, "clop", "noise"), (0, 1, "clip", "timestep")]
    assert all(not torch.equal(normal((8,), *key), base) for key in others)


def test_parts_of_a_key_do_not_run_into_each_other():
    assert uniform(1, 23) != uniform(12, 3)


def test_keys_give_numbers_that_are_even_over_zero_to_one():
    numbers = torch.tensor([uniform(0, epoch, "clip") for epoch in range(2000)])
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    assert abs(float(numbers.mean()) - 0.5) < 4 * math.sqrt(1 / 12 / 2000)


def test_keys_give_numbers_that_do_not_go_together():
    clips = [f"clip{n}" for n in range(2000)]
    pairs = torch.tensor([[uniform(0, c, "caption"), uniform(0, c, "first_frame")] for c in clips])
    assert abs(float(torch.corrcoef(pairs.T)[0, 1])) < 4 / math.sqrt(2000)
