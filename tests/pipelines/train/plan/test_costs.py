"""Costs: from FLOPs, from measurements, from the recipe; kept as they are."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kineograph.errors import UserError
from pipelines.train.plan.costs import (
    GIB,
    BucketCost,
    CostModel,
    KnownCost,
    Measurement,
    fit,
)
from tests.pipelines.train.plan.made_up import BUCKETS, IMAGES, LONG, VIDEOS, WIDE_VIDEOS

FLOPS = {IMAGES: 1e9, VIDEOS: 8e9, WIDE_VIDEOS: 10e9, LONG: 90e9}
TOKENS = {IMAGES: 4, VIDEOS: 30, WIDE_VIDEOS: 36, LONG: 250}
amounts = st.floats(0, 1e12, allow_nan=False)


@given(numbers=st.lists(st.tuples(amounts, amounts.filter(bool), amounts, amounts), min_size=5, max_size=5))
def test_json_keeps_every_bit(numbers):
    costs = CostModel({bucket: BucketCost(*values) for bucket, values in zip(BUCKETS, numbers, strict=True)})
    assert CostModel.from_json(json.loads(json.dumps(costs.to_json()))) == costs


def test_flops_at_a_rate():
    costs = CostModel.from_flops(FLOPS, rate=1e10, overhead_s=0.5)
    assert costs.seconds(VIDEOS, 3) == pytest.approx(0.5 + 3 * 0.8)
    assert costs.bytes(VIDEOS, 3) == 0


def made_up(bucket, clips, flop_s=2e-11, token_s=1e-4, overhead_s=0.03):
    seconds = overhead_s + clips * (flop_s * FLOPS[bucket] + token_s * TOKENS[bucket])
    return Measurement(bucket, clips, seconds, 1e6 + clips * 5e5 * TOKENS[bucket])


def test_what_was_measured_is_found_again_and_holds_for_the_other_buckets():
    costs = fit([made_up(b, clips) for b in (IMAGES, VIDEOS, LONG) for clips in (1, 2, 4)], FLOPS, TOKENS)
    for bucket in FLOPS:
        for clips in (1, 7):
            expected = made_up(bucket, clips)
            assert costs.seconds(bucket, clips) == pytest.approx(expected.seconds, rel=1e-6)
            assert costs.bytes(bucket, clips) == pytest.approx(expected.bytes, rel=1e-6)


def test_a_bucket_that_was_measured_has_numbers_of_its_own():
    slow = [Measurement(VIDEOS, clips, 1.0 + 0.5 * clips) for clips in (1, 2, 4)]
    costs = fit([made_up(b, clips) for b in (IMAGES, LONG) for clips in (1, 2, 4)] + slow, FLOPS, TOKENS)
    assert costs.seconds(VIDEOS, 3) == pytest.approx(2.5)


def test_one_measurement_is_enough_for_all_to_cost_something():
    costs = fit([Measurement(VIDEOS, 4, 3.2)], FLOPS, TOKENS)
    assert costs.seconds(VIDEOS, 4) == pytest.approx(3.2)
    assert costs.seconds(LONG, 1) > costs.seconds(IMAGES, 1) > 0


@given(seconds=st.lists(st.floats(1e-6, 1e3), min_size=12, max_size=12))
def test_no_cost_is_negative_and_no_clip_is_free(seconds):
    batches = [(bucket, clips) for bucket in FLOPS for clips in (1, 2, 4)]
    costs = fit([Measurement(*batch, s, s * GIB) for batch, s in zip(batches, seconds, strict=True)], FLOPS, TOKENS)
    for cost in costs.buckets.values():
        assert min(cost.overhead_s, cost.overhead_bytes) >= 0
        assert min(cost.clip_s, cost.clip_bytes) > 0


def test_without_measurements_costs_are_flops():
    assert fit([], FLOPS, TOKENS, rate=1e10) == CostModel.from_flops(FLOPS, 1e10)


def test_how_many_clips_take_so_long_or_so_much():
    costs = CostModel({VIDEOS: BucketCost(0.5, 0.25, 1.0 * GIB, 2.0 * GIB)})
    assert (costs.clips_in(VIDEOS, 1.5), costs.clips_in(VIDEOS, 1.4), costs.clips_in(VIDEOS, 0.2)) == (4, 4, 0)
    assert (costs.clips_within(VIDEOS, 7 * GIB), costs.clips_within(VIDEOS, 6.9 * GIB)) == (3, 2)


def test_the_recipe_has_the_last_word():
    costs = CostModel({bucket: BucketCost(0.5, 0.25, 7.0, 9.0) for bucket in BUCKETS})
    changed = costs.with_table({"32x32x9": KnownCost(seconds=2), "32x32x1": KnownCost(seconds=1, overhead_s=0, gib=3)})
    assert changed.buckets[VIDEOS] == BucketCost(0.5, 2.0, 7.0, 9.0)
    assert changed.buckets[IMAGES] == BucketCost(0.0, 1.0, 0.0, 3.0 * GIB)
    assert changed.buckets[LONG] == costs.buckets[LONG]


def test_costs_of_no_bucket_are_refused():
    with pytest.raises(UserError, match=r"no bucket is called '32x32x8'; did you mean '32x32x[19]'\?"):
        CostModel.from_flops(FLOPS).with_table({"32x32x8": KnownCost(seconds=1)})
