"""The plan: every clip in its turn, the same for any number of ranks, from numbers alone."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kineograph.errors import UserError
from kineograph.store.shards import ClipEntry, RowAddress
from kineograph.store.split import split_validation
from pipelines.train.plan import TrainingPlan


def entries(bucket, count, source="s"):
    return [ClipEntry(f"{bucket}-{n}", f"{source}{n}", bucket, RowAddress(0, 0, n)) for n in range(count)]


counts = st.fixed_dictionaries(
    {"32x32x1": st.integers(0, 12), "32x32x9": st.integers(1, 12), "24x40x9": st.integers(0, 7)}
)
batches = st.integers(1, 7)
seeds = st.integers(0, 5)


def clips_of(counts):
    return [entry for bucket, count in counts.items() for entry in entries(bucket, count)]


@given(counts=counts, seed=seeds, videos=batches, images=batches, step=st.integers(0, 200))
def test_a_step_is_a_function_of_clips_seed_and_number_alone(counts, seed, videos, images, step):
    clips = clips_of(counts)
    walked = TrainingPlan(clips, seed, videos, images)
    for before in range(step % 20):
        walked.step(before)
    assert walked.step(step) == TrainingPlan(clips[::-1], seed, videos, images).step(step)


@given(counts=counts, seed=seeds, videos=batches, images=batches)
def test_every_clip_comes_once_in_each_epoch_of_its_bucket(counts, seed, videos, images):
    plan = TrainingPlan(clips_of(counts), seed, videos, images)
    slots = [slot for step in range(5 * plan.cycle) for slot in plan.step(step).slots]
    seen = Counter((slot.clip.bucket, slot.epoch, slot.clip.clip_id) for slot in slots)
    assert set(seen.values()) == {1}


@given(counts=counts, seed=seeds, videos=batches, images=batches)
def test_an_epoch_ends_before_the_next_begins(counts, seed, videos, images):
    plan = TrainingPlan(clips_of(counts), seed, videos, images)
    streams = {}
    for step in range(5 * plan.cycle):
        for slot in plan.step(step).slots:
            streams.setdefault(slot.clip.bucket, []).append(slot.epoch)
    sizes = {bucket.name: len(clips) for bucket, clips in plan.clips.items()}
    assert all(epochs == [place // sizes[bucket] for place in range(len(epochs))] for bucket, epochs in streams.items())


@given(counts=counts, seed=seeds, videos=batches, images=batches, step=st.integers(0, 50))
def test_a_batch_is_full_and_of_one_bucket(counts, seed, videos, images, step):
    plan = TrainingPlan(clips_of(counts), seed, videos, images).step(step)
    assert len(plan.slots) == (images if plan.bucket.is_image else videos)
    assert {slot.clip.bucket for slot in plan.slots} == {plan.bucket.name}


@given(counts=counts, seed=seeds, step=st.integers(0, 50), world=st.sampled_from([1, 2, 3, 16]))
def test_ranks_share_a_batch_without_loss_or_overlap(counts, seed, step, world):
    plan = TrainingPlan(clips_of(counts), seed, 16, 16).step(step)
    dealt = [slot for rank in range(world) for slot in plan.of_rank(rank, world)]
    assert Counter(dealt) == Counter(plan.slots)


@given(videos=st.integers(1, 40), world=st.integers(1, 16))
def test_ranks_get_the_same_number_of_clips_within_one(videos, world):
    plan = TrainingPlan(entries("32x32x9", 5), 0, videos, 1).step(0)
    parts = [len(plan.of_rank(rank, world)) for rank in range(world)]
    assert max(parts) - min(parts) <= 1


def test_a_tail_is_carried_into_the_next_epoch():
    plan = TrainingPlan(entries("32x32x9", 5), 0, videos=3, images=1)
    assert [slot.epoch for step in range(4) for slot in plan.step(step).slots] == [0] * 5 + [1] * 5 + [2] * 2


def test_a_batch_may_be_larger_than_its_bucket():
    slots = TrainingPlan(entries("32x32x9", 2), 0, videos=5, images=1).step(0).slots
    assert [slot.epoch for slot in slots] == [0, 0, 1, 1, 2]


def test_buckets_have_their_share_of_the_steps():
    plan = TrainingPlan(entries("32x32x9", 30) + entries("24x40x9", 10), 0, videos=5, images=1)
    turns = Counter(plan.step(step).bucket.name for step in range(plan.cycle))
    assert turns == {"32x32x9": 6, "24x40x9": 2}


def test_epochs_have_orders_of_their_own():
    plan = TrainingPlan(entries("32x32x9", 10), 0, videos=10, images=1)
    first, second = ([slot.clip.clip_id for slot in plan.step(step).slots] for step in (0, 1))
    assert first != second


def test_seeds_have_orders_of_their_own():
    orders = [TrainingPlan(entries("32x32x9", 10), seed, 10, 1).step(0).slots for seed in (0, 1)]
    assert orders[0] != orders[1]


def test_without_clips_there_is_no_plan():
    with pytest.raises(UserError, match="no clip to train on"):
        TrainingPlan([], 0, 1, 1)


shares = st.floats(0, 0.99)


@given(share=shares, count=st.integers(0, 60))
def test_all_clips_of_a_source_are_on_one_side(share, count):
    clips = [entry for bucket in ("32x32x1", "32x32x9") for entry in entries(bucket, count)]
    training, held_out = split_validation(clips, share)
    assert {c.source_id for c in training}.isdisjoint(c.source_id for c in held_out)
    assert len(training) + len(held_out) == len(clips)


@given(share=shares)
def test_more_data_moves_no_source_to_the_other_side(share):
    few, many = (split_validation(entries("32x32x9", count), share) for count in (20, 60))
    assert set(few[1]) <= set(many[1])


def test_about_the_share_asked_for_is_held_out():
    _, held_out = split_validation(entries("32x32x9", 4000), 0.25)
    assert abs(len(held_out) / 4000 - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5


def test_a_share_of_zero_holds_nothing_out():
    assert split_validation(entries("32x32x9", 50), 0.0)[1] == []
