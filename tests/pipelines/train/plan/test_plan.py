"""The plan: every clip in its turn, the same for any number of ranks, from numbers alone."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kineograph.errors import UserError
from pipelines.train.plan.costs import GIB, BucketCost, CostModel
from pipelines.train.plan.index import ShardRows, TrainingIndex
from pipelines.train.plan.plan import BatchConfig, Stretch, TrainingPlan, micro_batch_sizes, pack_sizes
from tests.pipelines.train.plan.made_up import (
    IMAGES,
    VIDEOS,
    WIDE_VIDEOS,
    addresses,
    index_of,
    plan_of,
    plans,
    trainable,
)


def same(plan):
    """The plan, made anew."""
    groups = next(iter(plan._streams.values()))._window_groups
    return TrainingPlan(plan.index, plan.seed, plan.sizes, plan.packs, {}, groups)


def slots_of(plan, step):
    return [slot for stretch in plan.step(step).stretches for slot in plan.slots(stretch)]


@given(plan=plans(), step=st.integers(0, 300))
def test_a_step_is_a_function_of_its_number_alone(plan, step):
    walked = same(plan)
    for before in range(step % 20):
        slots_of(walked, before)
    assert walked.step(step) == plan.step(step)
    assert slots_of(walked, step) == slots_of(plan, step)


@given(plan=plans())
def test_every_clip_comes_once_in_each_epoch_of_its_bucket_and_an_epoch_ends_before_the_next(plan):
    streams = {bucket: [] for bucket in plan.buckets}
    for step in range(30):
        for stretch in plan.step(step).stretches:
            streams[stretch.bucket] += addresses(plan.rows(stretch))
    for bucket, stream in streams.items():
        clips = plan.clips(bucket)
        for epoch in range(-(-len(stream) // clips)):
            found = stream[epoch * clips : (epoch + 1) * clips]
            everything = {(epoch, *address) for address in trainable(plan.index.by_bucket[bucket])}
            assert len(set(found)) == len(found)
            assert set(found) == everything if len(found) == clips else set(found) < everything


@given(plan=plans(), step=st.integers(0, 300))
def test_a_step_is_so_many_packs_and_its_stretches_join_on(plan, step):
    now, after = plan.step(step), plan.step(step + 1)
    sizes = [stretch.count / plan.sizes[stretch.bucket] for stretch in now.stretches]
    assert sum(sizes) == plan.packs
    assert all(size.is_integer() for size in sizes)
    assert [s.place for s in now.stretches] == np.cumsum([0, *(s.count for s in now.stretches)])[:-1].tolist()
    assert [stretch.bucket for stretch in now.stretches] == sorted({stretch.bucket for stretch in now.stretches})
    ends = {s.bucket: s.first + s.count for s in now.stretches}
    assert all(ends.get(s.bucket, s.first) == s.first for s in after.stretches)


@given(plan=plans(), step=st.integers(0, 60), data=st.data())
def test_parts_of_a_stretch_have_the_slots_of_the_whole(plan, step, data):
    whole = data.draw(st.sampled_from(plan.step(step).stretches))
    slots = plan.slots(whole)
    begin = data.draw(st.integers(0, whole.count - 1))
    count = data.draw(st.integers(1, whole.count - begin))
    part = Stretch(whole.bucket, whole.first + begin, count, whole.place + begin)
    assert plan.slots(part) == slots[begin : begin + count]
    assert [slot.place for slot in slots] == list(range(whole.place, whole.place + whole.count))


@given(plan=plans(), step=st.integers(0, 60))
def test_a_stretch_over_several_steps_is_theirs_joined(plan, step):
    bucket = plan.step(step).stretches[0].bucket
    parts = [s for number in range(step, step + 6) for s in plan.step(number).stretches if s.bucket == bucket]
    joined = [address for part in parts for address in addresses(plan.rows(part))]
    whole = Stretch(bucket, parts[0].first, sum(part.count for part in parts), 0)
    assert addresses(plan.rows(whole)) == joined


def test_a_tail_is_carried_into_the_next_epoch():
    plan = plan_of(pack=3, b32x32x9=5)
    assert [slot.epoch for step in range(4) for slot in slots_of(plan, step)] == [0] * 5 + [1] * 5 + [2] * 2


def test_a_pack_may_be_larger_than_its_bucket():
    assert [slot.epoch for slot in slots_of(plan_of(pack=5, b32x32x9=2), 0)] == [0, 0, 1, 1, 2]


def test_buckets_have_their_share_of_the_packs():
    plan = plan_of(pack=5, b32x32x9=30, b24x40x9=10)
    turns = Counter(stretch.bucket for step in range(8) for stretch in plan.step(step).stretches)
    assert turns == {VIDEOS: 6, WIDE_VIDEOS: 2}


@given(videos=st.integers(1, 9), images=st.integers(1, 9))
def test_buckets_have_their_share_of_the_clips_whatever_the_sizes_of_packs(videos, images):
    index = index_of(b32x32x9=300, b32x32x1=100)
    plan = TrainingPlan(index, 0, {VIDEOS: videos, IMAGES: images}, 3)
    clips = sum((Counter({s.bucket: s.count for s in plan.step(n).stretches}) for n in range(200)), Counter())
    assert abs(clips[VIDEOS] / clips.total() - 0.75) * clips.total() <= max(videos, images)


def test_a_mix_gives_other_shares_and_leaves_every_clip_in():
    plan = plan_of(pack=4, mix={"images": 0.5}, b32x32x9=300, b32x32x1=100)
    clips = sum((Counter({s.bucket: s.count for s in plan.step(n).stretches}) for n in range(100)), Counter())
    assert clips == {VIDEOS: 200, IMAGES: 200}
    assert (plan.share(IMAGES), plan.pack_share(IMAGES), plan.clips_per_step(IMAGES)) == (0.5, 0.5, 2.0)
    assert (plan.epochs(IMAGES, 100), plan.epochs(VIDEOS, 150)) == (2.0, 1.0)
    assert plan.steps_per_epoch == 100


def test_a_bucket_without_a_share_is_known_and_in_no_step():
    plan = plan_of(mix={"videos": 1.0}, b32x32x9=20, b32x32x1=20)
    assert plan.buckets == [IMAGES, VIDEOS]
    assert all(plan.step(step).stretches[0].bucket == VIDEOS for step in range(20))
    assert plan.epochs(IMAGES, 20) == 0
    (slot,) = plan.slots(Stretch(IMAGES, 0, 1, 0))
    assert slot.address.shard in {rows.shard for rows in plan.index.by_bucket[IMAGES]}


def test_an_epoch_is_as_many_steps_as_go_through_all_clips():
    plan = plan_of(pack=5, packs=2, b32x32x9=37, b24x40x9=90, b32x32x1=11)
    assert plan.steps_per_epoch == pytest.approx(13.8)
    assert all(plan.epochs(bucket, 138) == pytest.approx(10, abs=1) for bucket in plan.buckets)


def test_a_step_knows_its_stretches_by_bucket():
    step = plan_of(packs=4, b32x32x9=20, b32x32x1=20).step(3)
    assert step.of(VIDEOS) == step.stretches[1]
    assert step.clips == 16


def test_epochs_and_seeds_have_orders_of_their_own():
    first, second = (slots_of(plan_of(pack=1, b32x32x9=16), step) for step in (0, 16))
    orders = [[slots_of(plan_of(pack=1, seed=seed, b32x32x9=16), n)[0].address for n in range(16)] for seed in (0, 1)]
    assert first[0].epoch != second[0].epoch
    assert orders[0] != orders[1]


def test_a_batch_reads_few_row_groups():
    """Half of a window that a rank of two gets is in half of its row groups, and one more."""
    plan = plan_of(pack=16, shuffle_groups=8, b32x32x9=32)
    whole = plan.step(0).stretches[0]
    groups = [
        {(slot.address.shard, slot.address.row_group) for slot in plan.slots(part)}
        for part in (Stretch(VIDEOS, 0, 8, 0), Stretch(VIDEOS, 8, 8, 8))
    ]
    assert len(groups[0] & groups[1]) <= 1
    assert len(groups[0] | groups[1]) == len({(s.address.shard, s.address.row_group) for s in plan.slots(whole)})


def test_without_clips_there_is_no_plan():
    index = TrainingIndex({VIDEOS: [ShardRows(0, 10, 4, np.packbits(np.zeros(10, bool)))]})
    with pytest.raises(UserError, match=r"no clip to train on: curate more data, or lower data\.validation_share"):
        TrainingPlan(index, 0, {VIDEOS: 4}, 1)


def test_the_index_knows_the_rows_to_train_on():
    rows = ShardRows(3, 10, 4, np.packbits(np.arange(10) % 3 == 0))
    index = TrainingIndex({WIDE_VIDEOS: [ShardRows(5, 7, 4), ShardRows(4, 2, 4)], VIDEOS: [rows]})
    assert np.flatnonzero(rows.mask()).tolist() == [0, 3, 6, 9]
    assert index.clips == {WIDE_VIDEOS: 9, VIDEOS: 4}
    assert [part.shard for part in index.rows] == [4, 5, 3]
    assert [part.row_groups for part in index.rows] == [1, 2, 3]


COSTS = CostModel({VIDEOS: BucketCost(0.5, 0.25, GIB, 2.0 * GIB), IMAGES: BucketCost(0.5, 0.01, GIB, 0.1 * GIB)})


def test_packs_are_of_the_recipes_size_or_of_so_many_seconds():
    clips = {VIDEOS: 1000, IMAGES: 1000}
    assert pack_sizes(clips, BatchConfig(videos=6, images=9), COSTS) == {VIDEOS: 6, IMAGES: 9}
    assert pack_sizes(clips, BatchConfig(seconds=2.0), COSTS) == {VIDEOS: 6, IMAGES: 150}
    assert pack_sizes(clips, BatchConfig(seconds=0.1), COSTS) == {VIDEOS: 1, IMAGES: 1}


def test_packs_of_so_many_seconds_have_no_more_clips_than_there_are():
    assert pack_sizes({VIDEOS: 1000, IMAGES: 40}, BatchConfig(seconds=2.0), COSTS) == {VIDEOS: 6, IMAGES: 40}


def test_memory_limits_what_is_computed_at_once():
    assert micro_batch_sizes([VIDEOS, IMAGES], BatchConfig(memory_gib=9), COSTS) == {VIDEOS: 4, IMAGES: 80}
    assert micro_batch_sizes([VIDEOS, IMAGES], BatchConfig(), COSTS) == {}


def test_a_clip_that_does_not_fit_and_one_of_unknown_size_are_refused():
    with pytest.raises(UserError, match=r"one clip of 32x32x9 takes 3\.0 GiB, and batch\.memory_gib is 2: raise it"):
        micro_batch_sizes([VIDEOS], BatchConfig(memory_gib=2), COSTS)
    with pytest.raises(UserError, match=r"what a clip of 32x32x9 takes is not known: set costs\.source=measured"):
        micro_batch_sizes([VIDEOS], BatchConfig(memory_gib=2), CostModel.from_flops({VIDEOS: 1e12}))


def test_memory_is_no_part_of_the_plan():
    few, many = BatchConfig(memory_gib=1, packs=3), BatchConfig(memory_gib=9, packs=3)
    assert few.of_the_plan() == many.of_the_plan()
    assert BatchConfig(packs=4).of_the_plan() != few.of_the_plan()
