"""The plan says what every bucket holds, what is lost and to what, and what other buckets would change."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kineograph.errors import RecipeError, UserError
from kineograph.media.geometry import Bucket
from kineograph.store.schema import CLIP_SCHEMA, SOURCE_SCHEMA
from pipelines.data.planning.buckets import Buckets
from pipelines.data.planning.plan import bucket_plan, lost, parse_bytes, plan_facts, plan_of, plan_text, reassign
from pipelines.data.planning.trainer_memory import TrainerModel

BUCKETS = Buckets(sizes=("256x256x1", "256x256x17", "256x448x17", "512x512x17"), fps=8)


def clip(width, height, seconds, bucket="", failed=(), start=0.0, **more):
    """A row of the clips table: kept in ``bucket``, or rejected for ``failed``."""
    used = Bucket.parse(bucket).seconds(8) if bucket else 0.0
    return {
        "media_type": "video" if seconds else "image",
        "start_s": start,
        "end_s": start + seconds,
        "content": [0, 0, width, height],
        "crop": [0, 0, width, height],
        "decision": "keep" if bucket else "reject",
        "reason": "" if bucket else failed[0],
        "failed": list(failed),
        "value": float("nan"),
        "threshold": float("nan"),
        "bucket": bucket,
        "used_s": used,
        **more,
    }


CLIPS = [
    clip(448, 256, 4.25, "256x448x17"),
    clip(512, 256, 2.125, "256x448x17"),
    clip(300, 300, 2.125, "256x256x17"),
    clip(640, 256, 0.0, "256x256x1"),
    clip(200, 200, 5.0, failed=["no_bucket"]),
    clip(200, 200, 7.0, failed=["blur", "no_bucket"]),
    clip(900, 900, 3.0, failed=["blur"]),
]
SOURCES = [
    {"reason": "", "seconds": sum(c["end_s"] - c["start_s"] for c in CLIPS)},
    {"reason": "corrupt", "seconds": 0.5},
]


def test_a_bucket_says_its_clips_tokens_and_what_they_lose_in_it():
    wide = bucket_plan(CLIPS)[-1]
    assert (wide["bucket"], wide["clips"], wide["seconds"], wide["share"]) == ("256x448x17", 2, 4.25, 0.5)
    assert (wide["tokens_per_clip"], wide["tokens"]) == (16 * 28 * 5, 2 * 16 * 28 * 5)
    assert wide["token_share"] == 4480 / (4480 + 16 * 16 * 5 + 256)
    assert wide["cropped"] == pytest.approx((0 + 1 - 448 / 512) / 2)
    assert wide["cut"] == pytest.approx((0.5 + 0) / 2)
    image = bucket_plan(CLIPS)[0]
    assert (image["bucket"], image["cropped"], image["cut"]) == ("256x256x1", pytest.approx(0.6), 0.0)


def test_tokens_follow_the_strides_of_the_autoencoder():
    assert bucket_plan(CLIPS, spatial_stride=32, temporal_stride=8)[-1]["tokens_per_clip"] == 8 * 14 * 3


def test_what_is_lost_says_what_would_come_back_without_the_check():
    blur, no_bucket, corrupt = lost(SOURCES, CLIPS)
    assert (blur["reason"], blur["clips"], blur["seconds"]) == ("blur", 2, 10.0)
    assert (blur["alone"], blur["alone_seconds"]) == (1, 3.0)
    assert (no_bucket["reason"], no_bucket["alone"]) == ("no_bucket", 1)
    assert (corrupt["sources"], corrupt["clips"], corrupt["seconds"]) == (1, 0, 0.5)
    everything = sum(source["seconds"] for source in SOURCES)
    assert blur["share"] == pytest.approx(10 / everything)


def test_every_second_of_the_input_is_in_the_plan():
    seconds = plan_of(SOURCES, CLIPS, BUCKETS)["seconds"]
    assert seconds["kept"] + seconds["unused"] + seconds["rejected"] == pytest.approx(seconds["input"])


def test_a_bucket_that_no_clip_goes_to_is_named():
    facts = plan_of(SOURCES, CLIPS, BUCKETS)
    assert facts["empty"] == ["512x512x17"]
    assert "no clip goes to 512x512x17" in plan_text(facts)


def test_what_if_decides_kept_clips_and_those_that_only_lacked_a_bucket():
    then = reassign(CLIPS, Buckets(sizes=("128x128x17", "256x448x17"), fps=8))
    assert [row["bucket"] for row in then] == ["256x448x17", "256x448x17", "128x128x17", "", "128x128x17", "", ""]
    assert [row["reason"] for row in then] == ["", "", "", "no_bucket", "", "blur", "blur"]
    assert then[4]["used_s"] == 17 / 8


def test_the_same_buckets_change_nothing():
    what_if = plan_of(SOURCES, CLIPS, BUCKETS, BUCKETS)["what_if"]
    assert (what_if["gained"], what_if["dropped"], what_if["moved"]) == (0, 0, 0)
    assert what_if["totals"] == plan_of(SOURCES, CLIPS, BUCKETS)["totals"]


def test_the_difference_stands_beside_the_present():
    facts = plan_of(SOURCES, CLIPS, BUCKETS, Buckets(sizes=("128x128x17", "256x448x17"), fps=8))
    what_if = facts["what_if"]
    assert (what_if["gained"], what_if["dropped"], what_if["moved"]) == (1, 1, 1)
    lines = [" ".join(line.split()) for line in plan_text(facts).splitlines()]
    assert "what if now then change" in lines
    assert "buckets 4 2 -2" in lines
    assert "clips 4 4 0" in lines
    assert "1 clips come in, 1 fall out, 1 change their bucket" in lines


@pytest.mark.parametrize("memory", [None, 80 * 2**30])
def test_nothing_kept_is_a_plan_too(memory):
    facts = plan_of([{"reason": "corrupt", "seconds": 0.0}], [], BUCKETS, BUCKETS, memory)
    assert json.loads(json.dumps(facts))["totals"]["clips"] == 0
    assert "corrupt" in plan_text(facts)


def test_the_batch_at_a_memory_is_said_to_be_an_estimate():
    rows = plan_of(SOURCES, CLIPS, BUCKETS, memory_bytes=80 * 2**30)
    batch = {row["bucket"]: row["batch"] for row in rows["buckets"]}
    trainer = TrainerModel()
    assert batch == {r["bucket"]: trainer.batch(r["tokens_per_clip"], 80 * 2**30) for r in rows["buckets"]}
    assert batch["256x256x1"] > batch["256x256x17"] > batch["256x448x17"] > 0
    assert "batch is an estimate" in plan_text(rows)
    small = plan_of(SOURCES, CLIPS, BUCKETS, memory_bytes=2**30)
    assert "none fits" in plan_text(small)


@pytest.fixture
def run(tmp_path):
    """A run directory with a ledger of CLIPS, without files to decode."""
    for name, rows, schema in (("sources", SOURCES, SOURCE_SCHEMA), ("clips", CLIPS, CLIP_SCHEMA)):
        (tmp_path / name).mkdir()
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / name / "part-00000.parquet")
    sizes = ", ".join(BUCKETS.sizes)
    (tmp_path / "recipe.yaml").write_text(f"buckets:\n  sizes: [{sizes}]\n  fps: 8.0\n")
    return tmp_path


def test_the_plan_of_a_run_is_made_from_its_ledger_alone(run):
    facts = plan_facts(run, ["buckets.areas=[128x128]", "aspects=[16:9, 1:1]", "frames=[1, 17]"])
    assert facts["buckets"] == plan_of(SOURCES, CLIPS, BUCKETS)["buckets"]
    assert facts["what_if"]["config"]["sizes"] == []
    assert facts["what_if"]["totals"]["no_bucket_clips"] == 0


@pytest.mark.parametrize("override", ["buckets.area=[65536]", "areas=[65536]", "sizes=[30x31x1]"])
def test_a_wrong_what_if_is_said_on_one_line(run, override):
    with pytest.raises(RecipeError) as error:
        plan_facts(run, [override])
    assert "\n" not in str(error.value)


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match="is no curation run"):
        plan_facts(tmp_path)


@pytest.mark.parametrize(
    ("text", "size"), [("80GiB", 80 * 2**30), ("24 g", 24 * 2**30), ("80GB", 80 * 10**9), ("1.5T", 3 * 2**39)]
)
def test_memory_is_read_as_people_write_it(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "-3G", "80GX", "0", "nan"])
def test_what_is_no_amount_of_memory_is_refused(text):
    with pytest.raises(UserError, match="write it as 80GiB"):
        parse_bytes(text)
