"""The stream of a bucket: every clip once in every epoch, any place at once, each row group read once."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.train.plan.index import ShardRows
from pipelines.train.plan.shuffle import Shuffle, permutation
from tests.pipelines.train.plan.made_up import addresses, shards, trainable


@st.composite
def buckets(draw):
    """Shards of a bucket, with a clip each."""
    parts = [draw(shards(number)) for number in range(draw(st.integers(1, 12)))]
    return [part for part in parts if part.count] or [ShardRows(0, 5, 2)]


groups = st.integers(1, 12)


@given(parts=buckets(), window_groups=groups, epoch=st.integers(0, 50))
def test_an_epoch_has_every_clip_to_train_on_once_and_no_other(parts, window_groups, epoch):
    stream = Shuffle("b", parts, 0, window_groups)
    found = addresses(stream.rows(epoch * stream.clips, stream.clips))
    assert Counter(found) == Counter((epoch, *address) for address in trainable(parts))


@given(parts=buckets(), window_groups=groups, data=st.data())
def test_a_place_is_found_without_those_before_it(parts, window_groups, data):
    walked, asked = (Shuffle("b", parts, 3, window_groups) for _ in range(2))
    clips = 3 * walked.clips
    stream = [address for place in range(clips) for address in addresses(walked.rows(place, 1))]
    place = data.draw(st.integers(0, clips - 1))
    assert addresses(asked.rows(place, 1)) == [stream[place]]
    count = data.draw(st.integers(0, clips - place))
    assert Counter(addresses(asked.rows(place, count))) == Counter(stream[place : place + count])


@given(parts=buckets(), window_groups=groups, data=st.data())
def test_parts_of_a_span_are_those_of_the_whole(parts, window_groups, data):
    stream = Shuffle("b", parts, 1, window_groups)
    first, count = data.draw(st.integers(0, 2 * stream.clips)), data.draw(st.integers(1, 2 * stream.clips))
    whole = addresses(stream.rows(first, count))
    begin = data.draw(st.integers(0, count - 1))
    end = data.draw(st.integers(begin, count))
    assert addresses(stream.rows(first + begin, end - begin, (first, count))) == whole[begin:end]


@given(parts=buckets(), window_groups=groups, step=st.integers(1, 30))
def test_a_reader_that_holds_a_window_reads_every_row_group_once_in_an_epoch(parts, window_groups, step):
    stream = Shuffle("b", parts, 0, window_groups)
    held, reads = [], Counter()
    for place in range(0, stream.clips, step):
        rows = stream.rows(place, min(step, stream.clips - place))
        for group in zip(rows.shard.tolist(), rows.row_group.tolist(), strict=True):
            if group not in held:
                reads[group] += 1
                held = [*held, group][-window_groups:]  # the one that was read first is forgotten
    assert set(reads) == {(shard, group) for shard, group, _ in trainable(parts)}
    assert set(reads.values()) == {1}


def test_a_span_is_sorted_by_address_within_a_window():
    stream = Shuffle("b", [ShardRows(number, 16, 4) for number in range(4)], 0, 16)
    found = addresses(stream.rows(10, 20))
    assert found == sorted(found)


def test_row_groups_of_different_shards_are_shuffled_together():
    stream = Shuffle("b", [ShardRows(number, 64, 4) for number in range(4)], 0, 8)
    assert len(set(stream.rows(0, 32).shard.tolist())) > 1


def test_epochs_seeds_and_buckets_have_orders_of_their_own():
    parts = [ShardRows(number, 16, 4) for number in range(4)]
    streams = [Shuffle("b", parts, 0, 4), Shuffle("b", parts, 1, 4), Shuffle("c", parts, 0, 4)]
    orders = [tuple(address[1:] for place in range(64) for address in addresses(s.rows(place, 1))) for s in streams]
    second = tuple(address[1:] for place in range(64) for address in addresses(streams[0].rows(64 + place, 1)))
    assert len({*orders, second}) == 4


def test_all_windows_of_a_pool_have_about_as_many_row_groups():
    stream = Shuffle("b", [ShardRows(number, 36, 4) for number in range(4)], 0, 8)  # 36 row groups: not 4·8 and 4
    windows = list(stream._windows(0, stream.clips))
    assert {(at.end - at.begin) // 4 for at in windows} == {7, 8}


def test_a_permutation_is_one_and_depends_on_its_key():
    orders = [permutation(1000, 0, "a", epoch) for epoch in range(3)]
    assert all(np.array_equal(np.sort(order), np.arange(1000)) for order in orders)
    assert not np.array_equal(orders[0], orders[1])
    assert np.array_equal(orders[0], permutation(1000, 0, "a", 0))


def test_permutations_stay_what_they_are():
    """A run goes on under other versions of numpy and on other machines."""
    assert permutation(8, 0, "32x32x9", 0, 1).tolist() == [4, 3, 0, 2, 5, 6, 1, 7]


def test_permutations_are_even():
    """Each number is in each place equally often: chi-squared of 16·16 cells, 15² degrees of freedom, p = 1e-6."""
    counts = np.zeros((16, 16))
    for key in range(4000):
        counts[np.arange(16), permutation(16, key)] += 1
    assert ((counts - 250) ** 2 / 250).sum() < 338
