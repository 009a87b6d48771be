"""Damaged clips end the run with their name, or, where that is asked for, others stand in for them with weight 0."""

import shutil

import numpy as np
import pytest
import torch

from kineograph.errors import Failure
from kineograph.media.encode import encode_h264
from kineograph.store.loader import ClipLoader, collate
from kineograph.store.shards import ShardReader
from kineograph.store.tensors import pack
from kineograph.store.torch_tensors import pack_tensor
from pipelines.train.loading.config import LoadingConfig
from pipelines.train.loading.loading import Loading
from tests.pipelines.train.loading.tiny_run import (
    LATENT,
    VIDEOS,
    clip_id,
    frames_of,
    ids_and_pictures,
    make_run,
    rewrite,
    slots,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("whole"), [VIDEOS])


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def load(run, numbers, collate=collate, latents=False, **config):
    """What is loaded for micro-batches of clips by number."""
    reader = ShardReader(run)
    work = [[slots(reader, VIDEOS, some)] for some in numbers]
    with Loading(reader, work, collate, LoadingConfig(**{"workers": 0, **config}), latents) as loading:
        return list(loading), loading.damaged_clips


def truncated(row):
    return {**row, "video": row["video"][:-200]}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_clip_ends_the_run_with_its_name_where_it_is_due(run, workers):
    rewrite(run, VIDEOS, 6, truncated)
    reader = ShardReader(run)
    work = [[slots(reader, VIDEOS, numbers)] for numbers in ([0, 1], [5, 6], [7])]
    with Loading(reader, work, collate, LoadingConfig(workers=workers)) as loading:
        assert [slot.clip_id for slot in next(loading).slots] == [clip_id(VIDEOS, 0), clip_id(VIDEOS, 1)]
        with pytest.raises(Failure) as caught:
            next(loading)
    line = str(caught.value)
    assert line.startswith(f"clip {clip_id(VIDEOS, 6)} of shards/32x32x9-0.parquet is damaged: ")
    assert "data.skip_damaged=true" in line
    assert "\n" not in line


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_clip_is_stood_in_for_and_told_once(run, workers):
    rewrite(run, VIDEOS, 6, truncated)
    numbers = [[5, 6, 7], [6, 0], [1, 2]]
    loaded, damaged = load(run, numbers, ids_and_pictures, skip_damaged=True, workers=workers)
    assert damaged == 1
    assert [one.weights.tolist() for one in loaded] == [[1, 0, 1], [0, 1], [1, 1]]
    # The slot keeps its clip's id, and shows the next one.
    assert loaded[0].slots[1].clip_id == clip_id(VIDEOS, 6)
    assert [one.batch["number"].tolist() for one in loaded] == [[5, 7, 7], [0, 0], [1, 2]]
    (line,) = loaded[0].damaged
    assert line.startswith(f"clip {clip_id(VIDEOS, 6)} of shards/32x32x9-0.parquet is damaged: it ")
    assert [one.damaged for one in loaded[1:]] == [(), ()]


@pytest.mark.parametrize("workers", [0, 1])
def test_where_all_clips_are_damaged_one_of_the_same_bucket_stands_in(run, workers):
    for number in range(12):  # a whole shard, and the first clips of the next
        rewrite(run, VIDEOS, number, truncated)
    (loaded,), damaged = load(run, [[8, 9, 8]], ids_and_pictures, skip_damaged=True, workers=workers)
    assert loaded.weights.tolist() == [0, 0, 0]
    assert loaded.batch["number"].tolist() == [12, 12, 12]
    assert len(loaded.damaged) == damaged == 2


def test_a_bucket_without_a_good_clip_ends_the_run(run):
    for number in range(20):
        rewrite(run, VIDEOS, number, truncated)
    with pytest.raises(Failure, match="no clip of 32x32x9 can be decoded"):
        load(run, [[0, 1]], skip_damaged=True)


NOT_A_NUMBER = torch.full(LATENT, float("nan"), dtype=torch.float16)


@pytest.mark.parametrize(
    ("dtype", "change", "reason"),
    [
        ("", {"video": b"no mp4"}, "it cannot be decoded"),
        ("", {"video": None}, "it cannot be decoded"),
        ("", {"num_frames": 8}, "it holds 9 frames, its row says 8"),
        ("", {"height": 64}, "it is 32x32, its row says 64x32"),
        ("", {"text_embedding": pack(np.zeros((2, 5)))}, "its caption's states are no finite numbers of shape"),
        ("", {"text_embedding": pack(np.full((2, 8), np.inf))}, "its caption's states are no finite numbers of shape"),
        ("", {"video": encode_h264(frames_of(VIDEOS, 1)[:, :16], 8)}, "it is 16x32"),
        ("float16", {"latent": pack_tensor(torch.zeros(LATENT))}, "its latent is float32"),
        ("float16", {"latent": pack_tensor(torch.zeros(4, 2, 4, 4).half())}, r"and not float16 \(4, 3, 4, 4\)"),
        ("float16", {"latent": pack_tensor(NOT_A_NUMBER)}, "numbers that are not finite"),
        ("float16", {"latent": {"bytes": b"12", "dtype": "float16", "shape": [4]}}, "2 bytes are no tensor"),
        ("float16", {"latent": None}, "its row makes no sense"),
    ],
)
def test_it_is_said_how_a_clip_is_damaged(whole, tmp_path, dtype, change, reason):
    run = make_run(tmp_path / "run", [VIDEOS], dtype) if dtype else shutil.copytree(whole, tmp_path / "run")
    rewrite(run, VIDEOS, 1, lambda row: {**row, **change})
    with pytest.raises(Failure, match=rf"clip 32x32x9-01 of shards/32x32x9-0.parquet is damaged: .*{reason}"):
        load(run, [[0, 1]], latents=bool(dtype))
    reader = ShardReader(run)
    with pytest.raises(Failure, match=rf"clip 32x32x9-01 .* is damaged: .*{reason}"):
        ClipLoader(reader, 0, latents=bool(dtype)).load(reader.index())


def flip(run, shard, wanted):
    """Break the file of a shard where a row group begins that holds the video ``wanted``."""
    path = run / shard.path
    data = bytearray(path.read_bytes())
    place = data.index(wanted)
    data[place - 4 : place] = b"\xff\xff\xff\x7f"  # the length of the value, which is before it
    path.write_bytes(data)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_row_group_that_cannot_be_read_is_damaged_clips(run, workers):
    reader = ShardReader(run)
    rows = reader.read([slot.address for slot in slots(reader, VIDEOS, range(10))])
    flip(run, reader.manifest.shards[0], rows[4]["video"])
    with pytest.raises(Failure, match=r"shards/32x32x9-0.parquet is damaged: run 'kineo data verify"):
        load(run, [[0, 5]], workers=workers)
    loaded, damaged = load(run, [[0, 5], [9, 1], [6]], ids_and_pictures, skip_damaged=True, workers=workers)
    assert [one.weights.tolist() for one in loaded] == [[1, 0], [1, 1], [0]]
    assert loaded[0].slots[1].clip_id == "in row 5"
    assert loaded[2].batch["number"].tolist() == [8]
    assert damaged == 2


def test_a_shard_that_is_gone_is_no_damage(run):
    reader = ShardReader(run)
    work = [[slots(reader, VIDEOS, [0])], [slots(reader, VIDEOS, [12])]]
    (run / reader.manifest.shards[1].path).unlink()
    with Loading(reader, work, collate, LoadingConfig(workers=0, skip_damaged=True)) as loading:
        next(loading)
        with pytest.raises(Failure, match=r"cannot read shard .*32x32x9-1.parquet: it does not exist"):
            next(loading)
