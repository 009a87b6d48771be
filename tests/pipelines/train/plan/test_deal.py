"""The deal: every clip of a step to one rank, and all ranks through with every round together."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kineograph.errors import UserError
from pipelines.train.plan.costs import BucketCost, CostModel
from pipelines.train.plan.deal import deal
from pipelines.train.plan.plan import StepPlan, Stretch
from tests.pipelines.train.plan.made_up import BUCKETS, IMAGES, LONG, VIDEOS, WIDE_VIDEOS


def step_of(**counts):
    """A step with so many clips of buckets, by name as in ``b32x32x9=40``."""
    stretches, place = [], 0
    for bucket in sorted(BUCKETS):
        count = counts.get(f"b{bucket.name}", 0)
        if count:
            stretches.append(Stretch(bucket, 100 + place, count, place))
            place += count
    return StepPlan(7, tuple(stretches))


steps = st.fixed_dictionaries({f"b{bucket.name}": st.integers(0, 60) for bucket in BUCKETS}).map(
    lambda counts: step_of(**counts)
)
costs = st.builds(
    lambda clip, overhead: CostModel(dict(zip(BUCKETS, map(BucketCost, overhead, clip), strict=True))),
    st.lists(st.floats(1e-6, 1e3), min_size=5, max_size=5),
    st.lists(st.floats(0, 10), min_size=5, max_size=5),
)
limits = st.dictionaries(st.sampled_from(BUCKETS), st.integers(1, 70))
ranks = st.sampled_from([1, 2, 3, 8, 16])


def model(**seconds):
    """Costs of clips by bucket, without overhead."""
    return CostModel(
        {bucket: BucketCost(0.0, seconds[f"b{bucket.name}"]) for bucket in BUCKETS if f"b{bucket.name}" in seconds}
    )


@given(plan=steps, costs=costs, ranks=ranks, most=limits, even=st.booleans())
def test_every_clip_of_a_step_is_dealt_once(plan, costs, ranks, most, even):
    assume(plan.clips >= ranks)
    parts = [part for rank in deal(plan, costs, ranks, most, even).rounds for part in rank]
    for first in ("first", "place"):
        dealt = Counter(
            (part.stretch.bucket, getattr(part.stretch, first) + number)
            for part in parts
            if not part.is_padding
            for number in range(part.stretch.count)
        )
        assert dealt == Counter((s.bucket, getattr(s, first) + n) for s in plan.stretches for n in range(s.count))


@given(plan=steps, costs=costs, ranks=ranks, most=limits, even=st.booleans())
def test_ranks_have_equally_many_micro_batches_within_memory(plan, costs, ranks, most, even):
    assume(plan.clips >= ranks)
    rounds = deal(plan, costs, ranks, most, even).rounds
    assert len(rounds) == ranks
    assert len({len(rank) for rank in rounds}) == 1
    assert all(part.stretch.count <= most.get(part.stretch.bucket, 60) for rank in rounds for part in rank)


@given(plan=steps, costs=costs, ranks=ranks, most=limits, even=st.booleans())
def test_padding_is_one_clip_of_the_step(plan, costs, ranks, most, even):
    assume(plan.clips >= ranks)
    padding = [part.stretch for rank in deal(plan, costs, ranks, most, even).rounds for part in rank if part.is_padding]
    for part in padding:
        whole = plan.of(part.bucket)
        assert part.count == 1
        assert whole.first <= part.first < whole.first + whole.count
        assert part.first - whole.first == part.place - whole.place


@given(plan=steps, costs=costs, ranks=ranks, most=limits)
def test_every_rank_has_a_clip_of_its_own(plan, costs, ranks, most):
    assume(plan.clips >= ranks)
    assert all(not all(part.is_padding for part in rank) for rank in deal(plan, costs, ranks, most).rounds)


@given(plan=steps, costs=costs, ranks=ranks, most=limits, even=st.booleans())
def test_seconds_are_those_of_the_micro_batches(plan, costs, ranks, most, even):
    assume(plan.clips >= ranks)
    dealt = deal(plan, costs, ranks, most, even)
    for rank, seconds in zip(dealt.rounds, dealt.seconds, strict=True):
        assert seconds == pytest.approx(sum(costs.seconds(part.stretch.bucket, part.stretch.count) for part in rank))
    assert -1e-9 <= dealt.imbalance <= dealt.imbalance_by_round + 1e-9


@given(plan=steps, costs=costs, ranks=ranks, most=limits)
def test_a_deal_is_a_function_of_the_step(plan, costs, ranks, most):
    assume(plan.clips >= ranks)
    first, second = (deal(plan, costs, ranks, most).rounds for _ in range(2))
    assert list(first) == list(second)


@given(plan=steps, costs=costs, ranks=ranks, most=limits)
def test_a_rank_has_clips_of_a_bucket_that_follow_each_other(plan, costs, ranks, most):
    assume(plan.clips >= ranks)
    for rank in deal(plan, costs, ranks, most).rounds:
        ends = {}
        for part in (part.stretch for part in rank if not part.is_padding):
            assert ends.get(part.bucket, part.first) == part.first
            ends[part.bucket] = part.first + part.count


@given(plan=steps, costs=costs, ranks=ranks, most=limits)
def test_even_parts_are_of_one_bucket_in_a_round_and_differ_by_a_clip(plan, costs, ranks, most):
    assume(plan.clips >= ranks)
    for parts in zip(*deal(plan, costs, ranks, most, even=True).rounds, strict=True):
        assert len({part.stretch.bucket for part in parts}) == 1
        counts = [part.stretch.count * (not part.is_padding) for part in parts]
        assert max(counts) - min(counts) <= 1


def test_ranks_are_through_together_where_clips_are_of_very_different_costs():
    plan = step_of(b64x64x17=40, b32x32x9=300, b24x40x9=300, b32x32x1=4000, b24x40x1=4000)
    costs = model(b64x64x17=1.6, b32x32x9=0.25, b24x40x9=0.19, b32x32x1=0.004, b24x40x1=0.003)
    most = {LONG: 1, VIDEOS: 6, WIDE_VIDEOS: 8, IMAGES: 400}
    for ranks in (2, 8, 24):
        dealt = deal(plan, costs, ranks, most)
        assert dealt.imbalance < 0.02
        assert dealt.imbalance_by_round < 0.05


def test_no_more_micro_batches_than_needed():
    """2 clips of 10 s and 20 of 1 s fill two ranks in one round; in halves they would too, with twice the overhead."""
    costs = CostModel({VIDEOS: BucketCost(1.0, 10.0), IMAGES: BucketCost(1.0, 1.0)})
    dealt = deal(step_of(b32x32x9=2, b32x32x1=20), costs, 2, {})
    assert dealt.by_round.tolist() == [[21.0], [21.0]]


def test_a_bucket_is_cut_for_any_number_of_ranks():
    plan = step_of(b32x32x9=7800)
    for ranks in (7, 64, 512):
        dealt = deal(plan, model(b32x32x9=1.0), ranks, {VIDEOS: 6})
        assert not any(part.is_padding for rank in dealt.rounds for part in rank)
        assert dealt.imbalance <= (-(-7800 // ranks)) / (7800 / ranks) - 1 + 1e-9


def test_clips_that_fill_no_round_are_padded_with_the_cheapest_one():
    plan = step_of(b32x32x9=3, b32x32x1=2)
    dealt = deal(plan, model(b32x32x9=5.0, b32x32x1=1.0), 2, {VIDEOS: 1, IMAGES: 1})
    parts = [part for rank in dealt.rounds for part in rank]
    assert [part.stretch.bucket for part in parts if part.is_padding] == [IMAGES]
    assert dealt.seconds == (11.0, 7.0)


def test_fewer_clips_than_ranks_are_refused():
    with pytest.raises(UserError, match=r"step 7 has 3 clips for 4 workers: raise batch\.packs, batch\.videos"):
        deal(step_of(b32x32x9=3), model(b32x32x9=1.0), 4, {})


def test_micro_batches_are_made_when_asked_for():
    rounds = deal(step_of(b32x32x9=64), model(b32x32x9=1.0), 4, {VIDEOS: 4}).rounds
    assert rounds[1:3] == (rounds[1], rounds[2])
    assert rounds[-1] == rounds[3]
    assert np.sum([part.stretch.count for part in rounds[0]]) == 16
