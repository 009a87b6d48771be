"""The learning rate: a line up, then down to its end."""

import pytest

from pipelines.train.config import OptimizerConfig
from pipelines.train.engine import learning_rate


class TestLearningRate:
    def rates(self, steps=100, **optimizer):
        settings = OptimizerConfig.model_validate({"lr": 1.0, "warmup_steps": 10, **optimizer})
        return [learning_rate(step, steps, settings) for step in range(steps)]

    def test_it_warms_up_in_a_line_to_its_peak(self):
        assert self.rates()[:11] == pytest.approx([n / 10 for n in range(1, 11)] + [1.0])

    def test_it_never_rises_after_the_warm_up(self):
        rates = self.rates()[10:]
        assert rates == sorted(rates, reverse=True)

    def test_half_way_down_it_is_half_way(self):
        assert self.rates(final_ratio=0.2)[55] == pytest.approx(0.6)

    def test_it_ends_near_its_final_ratio(self):
        assert self.rates(steps=1000, final_ratio=0.05)[-1] == pytest.approx(0.05, abs=1e-4)

    def test_a_constant_one_stays(self):
        assert set(self.rates(schedule="constant")[10:]) == {1.0}

    def test_without_warm_up_it_starts_at_its_peak(self):
        assert self.rates(warmup_steps=0)[0] == 1.0
