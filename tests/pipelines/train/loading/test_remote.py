"""A run in an object store is loaded as the same run in a folder is, without fetching its shards whole."""

import logging
import re

import pytest

from kineograph.store.loader import collate
from kineograph.store.places import NotReached
from kineograph.store.shards import ShardReader
from pipelines.train.loading.config import LoadingConfig
from pipelines.train.loading.loading import Loading
from tests.pipelines.train.loading.test_loading import equal
from tests.pipelines.train.loading.tiny_run import VIDEOS, make_run, shuffled, slots


def load(reader, work, **config):
    with Loading(reader, work, collate, LoadingConfig(workers=0, cache_mib=0, **config)) as loading:
        return list(loading)


def test_a_bucket_gives_the_batches_that_the_same_folder_gives(s3, tmp_path, caplog):
    put, options = s3
    here = ShardReader(make_run(tmp_path))
    with caplog.at_level(logging.INFO, "werkzeug"):
        there = ShardReader(put(tmp_path), options=options)
        expected = load(here, shuffled(here, 4))
        caplog.clear()
        found = load(there, shuffled(here, 4))
    assert [loaded.slots for loaded in found] == [loaded.slots for loaded in expected]
    assert all(equal(a.batch, b.batch) for a, b in zip(expected, found, strict=True))
    requests = [r.getMessage() for r in caplog.records if "GET /bkt/run/shards" in r.getMessage()]
    # Of each shard the footer, and one range for each row group that is used.
    used = {(slot.address.shard, slot.address.row_group) for loaded in found for slot in loaded.slots}
    assert len(requests) == len({shard for shard, _ in used}) + len(used)
    assert all(re.search(r'HTTP/1.1[^"]*" 206', request) for request in requests), "ranges were not asked for"


def test_a_store_that_stops_answering_ends_the_run_with_one_line(s3, s3_server, tmp_path, monkeypatch):
    put, options = s3
    reader = ShardReader(put(make_run(tmp_path, [VIDEOS])), options=options)
    work = [[slots(reader, VIDEOS, [0])], [slots(reader, VIDEOS, [12])]]
    monkeypatch.setattr("kineograph.store.places._WAITS_S", (0.01,))
    asked = []

    def broken(*args, **kwargs):
        asked.append(args)
        raise ConnectionResetError("connection reset by peer")

    with Loading(reader, work[:1] + work[:1] + work[1:], collate, LoadingConfig(workers=0, read_ahead=1)) as loading:
        next(loading)
        monkeypatch.setattr(reader.place._files, "cat_ranges", broken)
        next(loading)  # its row group is here
        with pytest.raises(NotReached, match=r"s3://bkt/run/shards/32x32x9-1.parquet cannot be read: connection reset"):
            next(loading)
    assert len(asked) == 2, "it is asked again before it is given up"
