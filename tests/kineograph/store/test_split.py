"""Which clips are held out: by source, the same ones for every pipeline, and without holding every clip."""

import numpy as np
import pytest

from kineograph.media.geometry import Bucket
from kineograph.store.manifest import SUCCESS_NAME, Manifest, TextEncoderInfo
from kineograph.store.shards import ShardReader, write_shard
from kineograph.store.split import held_out_clips, select_clips, split_validation

SHARE = 0.3
ROWS = {"32x32x1": (9, 7, 10), "64x32x9": (10, 0, 3), "8x8x1": (2,)}
"""Rows of the shards of each bucket."""


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """Shards of three buckets whose clips' ids come in no order; a source has clips in several of them."""
    run = tmp_path_factory.mktemp("split")
    random = np.random.default_rng(3)
    shards = []
    for bucket, counts in ROWS.items():
        for part, count in enumerate(counts):
            rows = [
                {"clip_id": f"{random.integers(10**6):06d}", "source_id": f"source {n % 5} {part}", "caption": str(n)}
                for n in range(count)
            ]
            shards.append(write_shard(run, f"shards/{bucket}-{part}.parquet", bucket, rows, 4))
    encoder = TextEncoderInfo(name="test", width=4, max_tokens=3)
    Manifest(recipe_digest="r", text_encoder=encoder, shards=tuple(shards), totals={}).save(run)
    (run / SUCCESS_NAME).touch()
    return ShardReader(run)


def entries_of(reader, selection):
    """The clips that a selection trains on."""
    masks = [selection.mask(number, shard.rows) for number, shard in enumerate(reader.manifest.shards)]
    return [entry for entry in reader.index() if masks[entry.address.shard][reader.row_number(entry.address)]]


def test_the_split_is_that_of_whole_lists(reader):
    training, validation = split_validation(reader.index(), SHARE)
    assert len(training) > 5
    assert len(validation) > 5
    selection = select_clips(reader, SHARE, most=1000)
    assert entries_of(reader, selection) == training
    assert {b.name: n for b, n in selection.trained.items()} == {
        name: sum(c.bucket == name for c in training) for name in ROWS
    }
    held_out = {bucket.name: clips for bucket, clips in selection.held_out.items()}
    by_id = sorted(validation, key=lambda clip: clip.clip_id)
    assert held_out == {n: clips for n in ROWS if (clips := [c for c in by_id if c.bucket == n])}
    assert list(selection.held_out) == sorted(selection.held_out)


@pytest.mark.parametrize("most", [0, 1, 3])
def test_the_first_held_out_clips_by_id_are_named_and_all_are_counted(reader, most):
    everything = held_out_clips(reader, SHARE, 1000)
    selection = select_clips(reader, SHARE, most)
    assert selection.held_out == ({bucket: clips[:most] for bucket, clips in everything.items()} if most else {})
    assert held_out_clips(reader, SHARE, most) == selection.held_out
    assert {b: n for b, n in selection.kept_back.items() if n} == {b: len(clips) for b, clips in everything.items()}


def test_shards_all_whose_rows_are_trained_on_need_no_bits(reader):
    selection = select_clips(reader, 0.0, most=5)
    assert set(selection.training) == {None}
    assert selection.held_out == {}
    assert entries_of(reader, selection) == reader.index()
    nothing = select_clips(reader, 1.0, most=5)
    assert entries_of(reader, nothing) == []
    assert set(nothing.trained.values()) == {0}


def test_clips_that_cannot_be_used_are_in_neither_part(reader):
    def choose(number, table):
        bucket = reader.manifest.shards[number].bucket
        return np.array([bucket != "8x8x1" and int(caption) % 2 == 0 for caption in table["caption"].to_pylist()], bool)

    selection = select_clips(reader, SHARE, 1000, choose, ["caption"])
    entries = reader.index()
    rows = reader.read([entry.address for entry in entries], ["caption"])
    usable = [e for e, r in zip(entries, rows, strict=True) if e.bucket != "8x8x1" and int(r["caption"]) % 2 == 0]
    training, validation = split_validation(usable, SHARE)
    assert entries_of(reader, selection) == training
    found = [clip for clips in selection.held_out.values() for clip in clips]
    assert sorted(found, key=lambda c: c.clip_id) == sorted(validation, key=lambda c: c.clip_id)
    assert selection.trained[Bucket(8, 8, 1)] == selection.kept_back[Bucket(8, 8, 1)] == 0


def test_long_passes_are_told(reader, monkeypatch, capsys):
    select_clips(reader, SHARE, 1)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("kineograph.store.split._MANY", 10)
    select_clips(reader, SHARE, 1)
    assert "reading ids 41/41 clips" in capsys.readouterr().err
