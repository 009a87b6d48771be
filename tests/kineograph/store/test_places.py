"""A run in an object store is read as the same run in a folder is; what cannot be reached is said in one line."""

import json
import logging
import shutil

import numpy as np
import pytest

from kineograph.errors import Failure, UserError
from kineograph.store.manifest import SUCCESS_NAME, Manifest, TextEncoderInfo
from kineograph.store.places import NotReached, Place, is_url
from kineograph.store.shards import DamagedShard, ShardReader, write_shard
from kineograph.store.tensors import pack

BIG = 200_000
"""Bytes of a video: more than is read along with what is beside it."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two shards of 40 clips in row groups of 4, and an autoencoder's folder."""
    run = tmp_path_factory.mktemp("place") / "run"
    shards = [
        write_shard(
            run,
            f"shards/{part}.parquet",
            "32x32x8",
            [
                {
                    "clip_id": f"clip {part} {number}",
                    "source_id": f"source {number}",
                    "text_embedding": pack(np.ones((2, 4), np.float16)),
                    "video": bytes([number]) * BIG,
                }
                for number in range(40)
            ],
            4,
        )
        for part in range(2)
    ]
    encoder = TextEncoderInfo(name="test", width=4, max_tokens=3)
    Manifest(recipe_digest="r", text_encoder=encoder, shards=tuple(shards), totals={}).save(run)
    (run / SUCCESS_NAME).touch()
    (run / "vae" / "deep").mkdir(parents=True)
    (run / "vae" / "config.json").write_text("{}")
    (run / "vae" / "deep" / "weights").write_bytes(b"123")
    return run


def sizes(caplog):
    """Bytes of the shards that the server sent, request by request."""
    lines = [
        r.getMessage() for r in caplog.records if r.name == "werkzeug" and "GET /bkt/run/shards/" in r.getMessage()
    ]
    assert all("206" in line.split('"')[2] for line in lines), "a range was asked for"
    return len(lines)


def test_a_remote_run_is_read_as_a_local_one(run, s3, caplog):
    put, options = s3
    url = put(run)
    here, there = ShardReader(run), ShardReader(url, options=options)
    assert there.run == url
    assert there.manifest == here.manifest
    assert there.index() == here.index()
    addresses = [entry.address for entry in here.index()]
    wanted = [addresses[number] for number in (79, 3, 50, 3)]
    assert there.read(wanted) == here.read(wanted)
    assert there.columns(1, ["source_id"]) == here.columns(1, ["source_id"])


def test_row_groups_are_asked_for_and_not_files(run, s3, caplog, monkeypatch):
    put, options = s3
    reader = ShardReader(put(run), options=options)
    asked = []
    files, read = reader.place, reader.place.read_ranges
    monkeypatch.setattr(files, "read_ranges", lambda name, ranges: asked.append(read(name, ranges)) or asked[-1])
    with caplog.at_level(logging.INFO, "werkzeug"):
        reader.row_group(0, 3, ["clip_id", "video"])
        assert sizes(caplog) == 2  # the footer, the row group
        reader.row_group(0, 4, ["clip_id", "video"])
        assert sizes(caplog) == 3
    assert [sum(len(piece) for _, piece in pieces) < 5 * BIG for pieces in asked] == [True] * 3
    asked.clear()
    reader.columns(1, ["clip_id"])
    ids = asked[-1]  # after the footer
    assert len(ids) == 10  # a range for each row group: videos of 40 clips lie between them
    assert sum(len(piece) for _, piece in ids) < 10_000


def test_a_long_footer_is_read_whole(run, s3, monkeypatch):
    put, options = s3
    monkeypatch.setattr("kineograph.store.shards._TAIL_BYTES", 64)
    assert len(ShardReader(put(run), options=options).index()) == 80


def test_a_small_folder_is_copied_and_goes_with_the_reader(run, s3):
    put, options = s3
    reader = ShardReader(put(run), options=options)
    folder = reader.folder("vae")
    assert {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == {
        "config.json": b"{}",
        "deep/weights": b"123",
    }
    assert reader.folder("vae") == folder
    reader.close()
    assert not folder.exists()
    with pytest.raises(UserError, match=r"s3://bkt/run/nothing holds no files"):
        reader.folder("nothing")


def test_a_folder_of_this_machine_can_be_copied_too(run, tmp_path):
    Place(run).copy_folder("vae", tmp_path / "copy")
    assert (tmp_path / "copy" / "deep" / "weights").read_bytes() == b"123"


@pytest.mark.parametrize("missing", ["bkt/nowhere", "nobody/run"])
def test_a_place_without_a_run_is_named(s3, missing):
    with pytest.raises(UserError, match=f"^s3://{missing} is no curation run: make one with"):
        Manifest.load(f"s3://{missing}", s3[1])


def test_a_run_that_has_not_finished_is_named(run, s3, tmp_path):
    put, options = s3
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / SUCCESS_NAME).unlink()
    (copy / "recipe.yaml").touch()
    with pytest.raises(UserError, match="unfinished has not finished"):
        Manifest.load(put(copy, "unfinished"), options)


@pytest.mark.parametrize(
    ("url", "options", "error", "said"),
    [
        ("s3://bkt/run", {"endpoint_url": "http://127.0.0.1:9"}, NotReached, "Could not connect .* check the network"),
        ("s3://bkt/run", {"endpointurl": "http://127.0.0.1:9"}, NotReached, "storage_options has no 'endpointurl'"),
        ("ftp://bkt/run", {}, UserError, "scheme 'ftp' is not read"),
        ("s3://", {}, UserError, "names no bucket: write s3://BUCKET/RUN"),
    ],
)
def test_what_cannot_be_reached_is_said_in_one_line(s3, url, options, error, said):
    with pytest.raises(error, match=said) as caught:
        Manifest.load(url, options)
    assert "\n" not in str(caught.value)


def test_missing_credentials_are_said(s3, run, monkeypatch):
    put, options = s3
    url = put(run)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(NotReached, match="no credentials were found: set AWS_PROFILE"):
        Manifest.load(url, {**options, "client_kwargs": {}})


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(UserError, match="gs:// needs a package that is not installed: pip install gcsfs"):
        Place("gs://bkt/run")


def test_remote_damage_is_told_from_what_is_gone(run, s3, tmp_path):
    put, options = s3
    copy = shutil.copytree(run, tmp_path / "copy")
    shard = copy / "shards" / "0.parquet"
    whole = shard.read_bytes()
    for content in (whole[:1000], b"x" * len(whole)):
        shard.write_bytes(content)
        with pytest.raises(DamagedShard, match=r"shard s3://bkt/broken/shards/0.parquet is damaged: copy the run"):
            ShardReader(put(copy, "broken"), options=options).index()
    gone = ShardReader(put(copy, "broken"), options=options)
    manifest = json.loads((copy / "manifest.json").read_text())
    assert manifest["shards"][0]["path"] == "shards/0.parquet"
    shards = tuple(shard.model_copy(update={"path": "shards/none.parquet"}) for shard in gone.manifest.shards)
    gone = ShardReader("s3://bkt/broken", gone.manifest.model_copy(update={"shards": shards}), options)
    with pytest.raises(Failure, match=r"cannot read shard s3://bkt/broken/shards/none.parquet: it does not exist"):
        gone.index()


def test_a_request_is_made_again_in_the_middle_of_training(run, s3, monkeypatch):
    put, options = s3
    place = Place(put(run), options)
    monkeypatch.setattr("kineograph.store.places._WAITS_S", (0.0, 0.0))
    answers, read = [ConnectionResetError("reset"), TimeoutError(), None], place._files.cat_ranges

    def ask(*args, **kwargs):
        if (error := answers.pop(0)) is not None:
            raise error
        return read(*args, **kwargs)

    monkeypatch.setattr(place._files, "cat_ranges", ask)
    shard = (run / "shards" / "0.parquet").read_bytes()
    assert place.read_ranges("shards/0.parquet", [(10, 20), (30, 40), (300_000, 300_010)]) == [
        (10, shard[10:40]),
        (300_000, shard[300_000:300_010]),
    ]


def test_urls_are_known(tmp_path):
    assert [is_url(text) for text in ("s3://a/b", "gs://a", "file:///a", "/a/b", tmp_path)] == [True, True] + [
        False
    ] * 3
    assert Place("file:///a%20b/c").path == Place("/a b/c").path
    assert str(Place("s3a://bkt/run/")) == "s3://bkt/run"
