"""Shards and their manifest: what is written is what is read, and damage has a name."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest

from kineograph.config import digest
from kineograph.errors import Failure, UserError
from kineograph.store.manifest import MANIFEST_NAME, SUCCESS_NAME, Manifest, TextEncoderInfo, verify
from kineograph.store.shards import DamagedShard, RowAddress, ShardReader, describe_shard, write_shard
from kineograph.store.tensors import DTYPES, pack, unpack


def row(number, text="a cat"):
    return {
        "clip_id": f"clip{number}",
        "source_id": f"source{number // 2}",
        "media_type": "video",
        "height": 32,
        "width": 32,
        "num_frames": 8,
        "fps": 4.0,
        "caption": text,
        "text_embedding": pack(np.full((3, 4), number, np.float16)),
        "latent": None,
        "video": bytes([number]) * 10,
        "aesthetic": None,
        "motion": 0.5,
        "source_uri": "a.mp4",
        "start_s": 0.0,
        "end_s": 2.0,
    }


@pytest.fixture
def run(tmp_path):
    """Two shards: clips 0 to 4 in row groups of two, and clip 5."""
    shards = (
        write_shard(tmp_path, "shards/a.parquet", "32x32x8", [row(n) for n in range(5)], 2),
        write_shard(tmp_path, "shards/b.parquet", "24x40x8", [row(5)], 2),
    )
    encoder = TextEncoderInfo(name="test", width=4, max_tokens=3)
    Manifest(recipe_digest="r", text_encoder=encoder, shards=shards, totals={}).save(tmp_path)
    (tmp_path / SUCCESS_NAME).touch()
    return tmp_path


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_a_tensor_survives_its_cell(dtype, shape):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    again = unpack(pack(array))
    assert again.dtype == array.dtype
    np.testing.assert_array_equal(again, array)


def test_a_cell_cannot_name_a_dtype_that_runs_code():
    with pytest.raises(ValueError, match="object"):
        pack(np.array([object()]))
    with pytest.raises(ValueError, match="object"):
        unpack({"bytes": b"", "dtype": "object", "shape": [0]})


def test_a_cell_whose_parts_disagree_is_refused():
    with pytest.raises(ValueError):
        unpack({"bytes": b"1234", "dtype": "float32", "shape": [2]})


def test_the_same_rows_give_the_same_bytes(tmp_path):
    first = write_shard(tmp_path, "a.parquet", "32x32x8", [row(1), row(2)], 1)
    second = write_shard(tmp_path, "b.parquet", "32x32x8", [row(1), row(2)], 1)
    assert first.sha256 == second.sha256


def test_rows_are_read_in_the_order_they_are_asked_for(run):
    reader = ShardReader(run)
    entries = reader.index()
    assert [entry.clip_id for entry in entries] == [f"clip{n}" for n in range(6)]
    wanted = [5, 0, 4, 3, 0]
    rows = reader.read([entries[n].address for n in wanted])
    assert [r["video"][0] for r in rows] == wanted
    assert unpack(rows[0]["text_embedding"]).tolist() == [[5.0] * 4] * 3
    assert reader.read([entries[2].address], columns=["clip_id"]) == [{"clip_id": "clip2"}]
    reader.close()


def test_a_manifest_survives_its_file_and_names_its_buckets(run):
    manifest = Manifest.load(run)
    assert [bucket.name for bucket in manifest.buckets] == ["24x40x8", "32x32x8"]
    assert json.loads((run / MANIFEST_NAME).read_text())["digest"] == manifest.digest


def test_a_manifest_from_before_encoders_had_a_dtype_is_read_as_it_was(run):
    path = run / MANIFEST_NAME
    raw = json.loads(path.read_text())
    assert raw["text_encoder"].pop("dtype") == "float32"
    raw["digest"] = digest(
        [raw["schema_version"], raw["text_encoder"], [[s["path"], s["rows"], s["sha256"]] for s in raw["shards"]]]
    )
    path.write_text(json.dumps(raw))
    manifest = Manifest.load(run)
    assert manifest.text_encoder.dtype == "float32"
    assert manifest.digest == raw["digest"]


def test_the_dtype_of_the_captions_is_of_the_version(run):
    manifest = Manifest.load(run)
    half = manifest.text_encoder.model_copy(update={"dtype": "bfloat16"})
    changed = manifest.model_copy(update={"text_encoder": half})
    assert changed.digest != manifest.digest
    changed.save(run)
    assert Manifest.load(run).text_encoder == half


def test_the_version_depends_on_the_shards_and_not_on_totals(run):
    manifest = Manifest.load(run)
    assert manifest.model_copy(update={"totals": {"wall_s": 9}, "recipe_digest": "x"}).digest == manifest.digest
    assert manifest.model_copy(update={"shards": manifest.shards[:1]}).digest != manifest.digest


def test_a_manifest_from_before_row_groups_had_a_size_asks_the_shards(run):
    path, version = run / MANIFEST_NAME, Manifest.load(run).digest
    raw = json.loads(path.read_text())
    assert [shard.pop("row_group_size") for shard in raw["shards"]] == [2, 1]
    path.write_text(json.dumps(raw))
    manifest = Manifest.load(run)
    assert manifest.digest == version
    assert [shard.row_group_size for shard in manifest.shards] == [None, None]
    reader = ShardReader(run)
    assert [reader.row_group_size(number) for number in (0, 1)] == [2, 1]
    manifest.save(run)
    assert Manifest.load(run) == manifest


def test_the_size_of_row_groups_is_not_of_the_version(run):
    manifest = Manifest.load(run)
    shards = tuple(shard.model_copy(update={"row_group_size": None}) for shard in manifest.shards)
    assert manifest.model_copy(update={"shards": shards}).digest == manifest.digest


def test_rows_have_numbers_and_addresses(run):
    reader = ShardReader(run)
    for number, entry in enumerate(reader.index()[:5]):
        assert reader.row_number(entry.address) == number
        assert reader.address(0, number) == entry.address
    assert reader.address(0, 4) == RowAddress(0, 2, 0)


def test_row_groups_of_many_sizes_are_refused(run):
    path = run / "shards" / "a.parquet"
    table = pq.read_table(path)
    with pq.ParquetWriter(path, table.schema) as writer:
        for start, rows in ((0, 1), (1, 3), (4, 1)):
            writer.write_table(table.slice(start, rows))
    shard = describe_shard(run, "shards/a.parquet", "32x32x8")
    assert shard.row_group_size is None
    manifest = Manifest.load(run)
    changed = manifest.model_copy(update={"shards": (shard, manifest.shards[1])})
    with pytest.raises(DamagedShard, match=r"a.parquet differ in size"):
        ShardReader(run, changed).index()


def test_columns_of_a_shard_are_read_alone(run):
    table = ShardReader(run).columns(0, ["clip_id", "caption"])
    assert table.column_names == ["clip_id", "caption"]
    assert table["clip_id"].to_pylist() == [f"clip{n}" for n in range(5)]


def test_threads_may_share_a_reader(run):
    reader = ShardReader(run)
    addresses = [entry.address for entry in reader.index()]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda n: reader.read([addresses[n % 6]], ["clip_id"]), range(200)))
    assert [row["clip_id"] for (row,) in found] == [f"clip{n % 6}" for n in range(200)]


@pytest.mark.parametrize("damage", ["truncated", "no Parquet", "empty"])
def test_a_damaged_shard_is_told_from_one_that_is_gone(run, damage):
    path = run / "shards" / "a.parquet"
    data = path.read_bytes()
    path.write_bytes({"truncated": data[:-100], "no Parquet": b"x" * len(data), "empty": b""}[damage])
    with pytest.raises(DamagedShard, match=r"a.parquet is damaged: run 'kineo data verify"):
        ShardReader(run).read([RowAddress(0, 0, 0)])


def test_a_row_that_is_not_there_is_damage(run):
    with pytest.raises(DamagedShard, match=r"a.parquet is damaged"):
        ShardReader(run).read([RowAddress(0, 2, 1)])
    with pytest.raises(DamagedShard, match=r"a.parquet is damaged"):
        ShardReader(run).read([RowAddress(0, 3, 0)])


def test_the_folder_of_a_local_run_is_itself(run):
    assert ShardReader(run).folder("vae") == run / "vae"
    assert ShardReader(str(run)).run == run


def test_verify_names_the_damaged_shard(run):
    path = run / "shards" / "a.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (run / "shards" / "b.parquet").unlink()
    problems = {shard.path: problem for shard, problem in verify(run, Manifest.load(run))}
    assert problems == {
        "shards/a.parquet": "its bytes do not match the manifest's sha256",
        "shards/b.parquet": "missing",
    }


def test_a_shard_that_is_gone_says_how_to_find_out(run):
    (run / "shards" / "b.parquet").unlink()
    with pytest.raises(Failure, match="kineo data verify"):
        ShardReader(run).read([RowAddress(1, 0, 0)])


@pytest.mark.parametrize("damage", ["unfinished", "edited", "broken", "newer"])
def test_a_manifest_that_cannot_be_trusted_is_refused(run, damage):
    raw = json.loads((run / MANIFEST_NAME).read_text())
    if damage == "unfinished":
        (run / SUCCESS_NAME).unlink()
    elif damage == "edited":
        raw["shards"][0]["rows"] += 1
    elif damage == "newer":
        raw["schema_version"] += 1
    text = json.dumps(raw) if damage != "broken" else "{"
    (run / MANIFEST_NAME).write_text(text)
    with pytest.raises(UserError):
        Manifest.load(run)
