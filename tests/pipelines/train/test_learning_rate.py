"""The learning rate: a line up, then what the schedule says."""

import pytest

from pipelines.train.optimizer import OptimizerConfig, learning_rate

FALLING = ("cosine", "linear", "inverse_sqrt", "wsd")


def rates(steps=100, **optimizer):
    settings = OptimizerConfig.model_validate({"lr": 1.0, "warmup_steps": 10, **optimizer})
    return [learning_rate(step, steps, settings) for step in range(steps)]


@pytest.mark.parametrize("schedule", ["constant", *FALLING])
def test_it_warms_up_in_a_line_to_its_peak(schedule):
    assert rates(schedule=schedule)[:11] == pytest.approx([n / 10 for n in range(1, 11)] + [1.0])


@pytest.mark.parametrize("schedule", FALLING)
def test_it_never_rises_after_the_warm_up(schedule):
    after = rates(schedule=schedule)[10:]
    assert after == sorted(after, reverse=True)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_it_ends_near_its_final_ratio(schedule):
    assert rates(steps=10_000, final_ratio=0.05, schedule=schedule)[-1] == pytest.approx(0.05, abs=1e-3)


@pytest.mark.parametrize("schedule", ["constant", *FALLING])
def test_without_warm_up_it_starts_at_its_peak(schedule):
    assert rates(warmup_steps=0, schedule=schedule)[0] == 1.0


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_half_way_down_it_is_half_way(schedule):
    assert rates(final_ratio=0.2, schedule=schedule)[55] == pytest.approx(0.6)


def test_a_constant_one_stays():
    assert set(rates(schedule="constant")[10:]) == {1.0}


def test_the_inverse_square_root_halves_in_four_times_the_warm_up():
    after = rates(steps=1000, schedule="inverse_sqrt")
    assert after[40] == pytest.approx(0.5)
    assert after[90] == pytest.approx(1 / 3)


def test_the_inverse_square_root_stays_above_its_final_ratio():
    assert rates(steps=10_000, schedule="inverse_sqrt", final_ratio=0.05)[-1] == 0.05


def test_wsd_is_flat_until_its_cool_down():
    after = rates(schedule="wsd", cooldown=0.4, final_ratio=0.0)
    assert set(after[10:61]) == {1.0}
    assert after[80] == pytest.approx(0.5)


def test_a_cool_down_longer_than_the_run_begins_after_the_warm_up():
    assert rates(schedule="wsd", cooldown=1.0) == rates(schedule="linear")
