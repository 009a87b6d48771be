"""What a plan comes to on some ranks, told before there are any."""

import pytest

from kineograph.errors import UserError
from pipelines.train.plan.costs import CostModel
from pipelines.train.plan.simulate import random_imbalance, simulate, simulation_text
from tests.pipelines.train.plan.made_up import IMAGES, VIDEOS, plan_of

COSTS = CostModel.from_flops({VIDEOS: 9.0, IMAGES: 1.0}, rate=1.0, overhead_s=0.5)


def test_a_plan_on_two_ranks():
    plan = plan_of(pack=8, packs=4, b32x32x9=160, b32x32x1=160)
    facts = simulate(plan, COSTS, 2, 10, {VIDEOS: 8}, tokens={VIDEOS: 3, IMAGES: 1})
    assert (facts["ranks"], facts["steps"], facts["clips_per_step"], facts["tokens_per_step"]) == (2, 10, 32, 64)
    assert facts["imbalance"] == {"mean": 0, "p95": 0, "max": 0}
    assert facts["imbalance_by_round"]["max"] == 0
    assert facts["random"]["mean"] > 0.1
    assert facts["step_s"] == 8 * 10 + 0.5 * facts["rounds"]


def test_ranks_that_share_a_window_read_little_more_than_it_holds():
    plan = plan_of(pack=16, shuffle_groups=4, b32x32x9=16)  # a step is a window of 4 row groups
    assert simulate(plan, COSTS, 1, 2, {})["row_group_reads"] == 1
    assert simulate(plan, COSTS, 2, 2, {})["row_group_reads"] == 1  # two row groups each
    assert simulate(plan, COSTS, 8, 2, {})["row_group_reads"] == 2


def test_ranks_that_draw_the_same_bucket_only_are_balanced():
    plan = plan_of(pack=8, packs=4, b32x32x9=160)
    assert random_imbalance(plan, COSTS, 4, 5, {}) == [0] * 5


def test_one_rank_is_balanced():
    plan = plan_of(pack=8, packs=4, b32x32x9=160, b32x32x1=160)
    facts = simulate(plan, COSTS, 1, 5, {})
    assert facts["imbalance"]["max"] == facts["random"]["max"] == 0


def test_too_many_ranks_are_refused():
    with pytest.raises(UserError, match=r"raise batch\.packs"):
        simulate(plan_of(pack=2, b32x32x9=16), COSTS, 4, 5, {})


def test_the_table_has_a_line_for_each_number_of_ranks():
    plan = plan_of(pack=8, packs=4, b32x32x9=160, b32x32x1=160)
    lines = simulation_text([simulate(plan, COSTS, ranks, 10, {}) for ranks in (1, 2, 8)]).splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["workers", "1", "2", "8"]
    assert "10 steps of 32 clips" in lines[4]
