"""Batches of planned clips: the right ones, in order, the same whoever decodes them, and each row group read once."""

from collections import Counter

import numpy as np
import pytest
import torch

from kineograph.errors import Failure, UserError
from kineograph.media.clips import decode_clip
from kineograph.store.loader import Batch, collate
from kineograph.store.shards import ShardReader
from kineograph.store.torch_tensors import DTYPES
from pipelines.train.loading.config import LoadingConfig
from pipelines.train.loading.loading import Loading, count_workers
from tests.pipelines.train.loading.tiny_run import (
    GROUP,
    ROWS,
    SHARDS,
    STILLS,
    VIDEOS,
    clip_id,
    ids_and_pictures,
    latent_of,
    make_run,
    shuffled,
    slots,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("videos"))


def load(reader, work, collate=collate, latents=False, **config):
    with Loading(reader, work, collate, LoadingConfig(**{"workers": 0, **config}), latents) as loading:
        return list(loading)


def equal(one, other):
    """Whether two batches are bitwise the same."""
    if isinstance(one, Batch):
        one, other = vars(one), vars(other)
    pairs = [(one[name], other[name]) for name in one]
    return all((a is None and b is None) or (a.dtype == b.dtype and torch.equal(a, b)) for a, b in pairs)


def test_a_batch_holds_what_the_slots_say(run):
    reader = ShardReader(run)
    numbers = [7, 0, 13, 7]
    (loaded,) = load(reader, [[slots(reader, VIDEOS, numbers, epoch=2)]])
    assert [slot.clip_id for slot in loaded.slots] == [clip_id(VIDEOS, number) for number in numbers]
    assert [(slot.epoch, slot.place) for slot in loaded.slots] == [(2, 0), (2, 1), (2, 2), (2, 3)]
    rows = reader.read([slot.address for slot in loaded.slots])
    videos = np.stack([decode_clip(row["video"], 9) for row in rows])
    np.testing.assert_array_equal(loaded.batch.video.numpy(), videos)
    assert loaded.batch.text_mask.sum(1).tolist() == [number % 3 for number in numbers]
    assert loaded.batch.text[0, 0].tolist() == [7.0] * 8
    assert loaded.weights.tolist() == [1.0] * 4
    assert loaded.damaged == ()
    assert loaded.wait_s >= 0


def test_batches_are_the_same_whoever_decodes_them(run):
    reader = ShardReader(run)
    alone = load(reader, shuffled(reader, 6))
    assert [len(loaded.slots) for loaded in alone] == [5] * 12
    for config in (
        {"workers": 1, "cache_mib": 0, "read_ahead": 1},
        {"workers": 3, "cache_mib": 0, "row_group_cache_mib": 0},
        {"workers": 2, "cache_mib": 100},
        {"workers": 0, "cache_mib": 0, "read_ahead_mib": 1},
    ):
        other = load(reader, shuffled(reader, 6), **config)
        assert [loaded.slots for loaded in other] == [loaded.slots for loaded in alone]
        assert all(equal(a.batch, b.batch) for a, b in zip(alone, other, strict=True)), config


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_is_whatever_collate_makes(run, workers):
    reader = ShardReader(run)
    (loaded,) = load(reader, [[slots(reader, STILLS, [3, 4], epoch=1)]], ids_and_pictures, workers=workers)
    assert loaded.batch["number"].tolist() == [3, 4]
    assert loaded.batch["epoch"].tolist() == [1, 1]
    assert loaded.batch["picture"].shape == (2, 1, 32, 32, 3)
    loaded.batch["picture"] += 1  # it belongs to who got it


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_latents_come_in_the_dtype_that_was_stored(tmp_path, dtype, workers):
    reader = ShardReader(make_run(tmp_path, [VIDEOS], dtype))
    (loaded,) = load(reader, [[slots(reader, VIDEOS, [2, 19])]], latents=True, workers=workers)
    expected = torch.stack([latent_of(number, DTYPES[dtype]) for number in (2, 19)])
    assert loaded.batch.latent.dtype == DTYPES[dtype]
    assert torch.equal(loaded.batch.latent, expected)
    assert loaded.batch.video is None


class CountingReader(ShardReader):
    def __init__(self, run):
        super().__init__(run)
        self.read_groups = Counter()

    def row_group(self, shard, group, columns=None):
        self.read_groups[shard, group] += 1
        return super().row_group(shard, group, columns)


@pytest.mark.parametrize("workers", [0, 3])
def test_each_row_group_is_read_once_however_many_use_it(run, workers):
    reader = CountingReader(run)
    order = np.random.default_rng(1).permutation(SHARDS * ROWS)
    window = [[slots(reader, VIDEOS, order[start : start + 4])] for start in range(0, len(order), 4)]
    loaded = load(reader, window, workers=workers, cache_mib=0)
    assert sorted(slot.clip_id for one in loaded for slot in one.slots) == [clip_id(VIDEOS, n) for n in range(20)]
    assert reader.read_groups == dict.fromkeys(((2 + s, g) for s in range(SHARDS) for g in range(-(-ROWS // GROUP))), 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_clips_that_are_kept_are_not_read_again(run, workers):
    reader = CountingReader(run)
    work = [[slots(reader, VIDEOS, range(start, start + 5), epoch)] for epoch in range(3) for start in (0, 5, 10, 15)]
    loaded = load(reader, work, workers=workers, row_group_cache_mib=0, read_ahead=1)
    epochs = [loaded[start : start + 4] for start in (0, 4, 8)]
    for later in epochs[1:]:
        assert all(equal(a.batch, b.batch) for a, b in zip(epochs[0], later, strict=True))
    read = reader.read_groups.copy()
    assert len(read) == 6
    # Groups lie across batches of the first epoch; the next two epochs read none.
    first = CountingReader(run)
    load(first, work[:4], workers=workers, row_group_cache_mib=0, read_ahead=1)
    assert read == first.read_groups


def test_no_more_is_read_ahead_than_was_asked_for(run):
    reader = ShardReader(run)
    given = []

    def work():
        for step in range(20):
            given.append(step)
            yield [slots(reader, STILLS, [step % 20])]

    with Loading(reader, work(), collate, LoadingConfig(workers=0, read_ahead=3)) as loading:
        for taken in range(1, 21):
            next(loading)
            assert len(given) <= taken + 3 + 1  # the one for which there is no room yet
        with pytest.raises(StopIteration):
            next(loading)
    given.clear()
    with Loading(reader, work(), ids_and_pictures, LoadingConfig(workers=0, read_ahead=9, read_ahead_mib=1)) as loading:
        loading._room._bytes = 1  # less than any batch: one at a time
        for taken in range(1, 21):
            next(loading)
            assert len(given) <= taken + 2


def test_an_error_comes_where_it_is_due(run):
    reader = ShardReader(run)

    def work():
        yield [slots(reader, VIDEOS, [0]), slots(reader, VIDEOS, [1])]
        raise Failure("the plan is lost")

    with Loading(reader, work(), collate, LoadingConfig(workers=0)) as loading:
        assert [next(loading).slots[0].clip_id for _ in range(2)] == [clip_id(VIDEOS, 0), clip_id(VIDEOS, 1)]
        for _ in range(2):
            with pytest.raises(Failure, match="the plan is lost"):
                next(loading)


def test_a_micro_batch_of_two_buckets_is_refused(run):
    reader = ShardReader(run)
    with pytest.raises(ValueError, match=r"32x32x1.*32x32x9"):
        load(reader, [[slots(reader, VIDEOS, [0]) + slots(reader, STILLS, [0])]])


def test_a_run_that_does_not_hold_what_is_read_is_refused(run, tmp_path):
    with pytest.raises(UserError, match="no latents"):
        load(ShardReader(run), [], latents=True)
    with pytest.raises(UserError, match="no videos"):
        load(ShardReader(make_run(tmp_path, [VIDEOS], "float16")), [])


def test_processes_are_used_where_clips_must_be_decoded_again_and_again(run, tmp_path):
    from kineograph.store.loader import ClipDecoder

    def count(run, latents=False, **config):
        reader = ShardReader(run)
        return count_workers(LoadingConfig(**config), reader, ClipDecoder.of(reader, latents))

    assert count(run) == 0  # 20 x 9 and 20 frames of 32x32 fit into the cache
    assert count(run, cache_mib=0) == 2
    assert count(run, workers=5) == 5
    assert count(make_run(tmp_path, [VIDEOS], "float16"), latents=True, cache_mib=0) == 0


def test_credentials_are_refused_in_recipes():
    with pytest.raises(ValueError, match="use the environment"):
        LoadingConfig(storage_options={"client_kwargs": {"aws_secret_access_key": "x"}})
