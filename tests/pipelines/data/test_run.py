"""The whole run on real files with real Ray: its ledger and shards, and that a kill changes nothing."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import av
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from kineograph.config import dump_yaml
from kineograph.errors import DiskFullError, Failure, UserError
from kineograph.media.geometry import Bucket
from kineograph.store.manifest import Manifest, verify
from kineograph.store.shards import ShardReader
from kineograph.store.tensors import unpack
from pipelines.data import pipeline
from pipelines.data.ledger import read_ledger

pytestmark = pytest.mark.slow


@pytest.fixture
def ledger(finished):
    return read_ledger(finished[0])


def test_every_file_has_one_row_with_its_fate(ledger, raw):
    sources, _ = ledger
    fates = {row["uri"]: row["reason"] or row["status"] for row in sources}
    assert fates == {
        **dict.fromkeys(["bikes.mp4", "black.mp4", "mute.mp4", "photo.png", "short.mp4", "static.mp4"], "ok"),
        **dict.fromkeys(["sub_tall.mp4", "tiny.mp4", "two.mp4"], "ok"),
        "two_again.mp4": "exact_duplicate",
        "cut_off.mp4": "corrupt",
        "list.mp4": "not_media",
        "zero.mp4": "not_media",
        "pipe.mp4": "unreadable",
    }
    ids = {row["uri"]: row["source_id"] for row in sources}
    assert [row["duplicate_of"] for row in sources if row["uri"] == "two_again.mp4"] == [ids["two.mp4"]]


def test_frames_agree_with_the_decoder(ledger, raw):
    for row in ledger[0]:
        if row["status"] == "ok":
            with av.open(str(raw / row["uri"])) as container:
                assert row["frames"] == sum(1 for _ in container.decode(video=0))


def test_clips_part_every_source_exactly(ledger):
    sources, clips = ledger
    for source in sources:
        spans = [(c["start_frame"], c["end_frame"]) for c in clips if c["uri"] == source["uri"]]
        if source["status"] != "ok":
            assert spans == []
            continue
        assert [a for a, _ in spans] == [0, *[b for _, b in spans[:-1]]]
        assert spans[-1][1] == source["frames"]


def test_each_clip_is_kept_or_rejected_for_the_right_reason(ledger):
    reasons = {}
    for clip in ledger[1]:
        reasons.setdefault(clip["uri"], []).append(clip["reason"])
    assert reasons == {
        "bikes.mp4": ["duration", "duration", "", "", "", "duration"],
        "black.mp4": ["black"],
        "mute.mp4": ["no_caption"],
        "photo.png": [""],
        "short.mp4": ["duration"],
        "static.mp4": ["static"],
        "sub_tall.mp4": [""],
        "tiny.mp4": ["resolution"],
        "two.mp4": ["", ""],
    }


def test_captions_follow_their_spans(ledger):
    said = {(c["uri"], c["shot"]): c["caption"] for c in ledger[1] if c["decision"] == "keep"}
    assert said["two.mp4", 0] == "a light square"
    assert said["two.mp4", 1] == "a dark square"
    assert said["sub_tall.mp4", 0] == "a square that moves"


def test_seconds_add_up_to_the_input(finished, ledger):
    seconds = finished[1]["totals"]["seconds"]
    assert seconds["input"] == pytest.approx(sum(row["seconds"] for row in ledger[0]))
    accounted = seconds["kept"] + seconds["unused"] + sum(seconds["rejected"].values())
    assert accounted == pytest.approx(seconds["input"])


def test_shards_hold_the_kept_clips_at_their_bucket_s_size(finished, ledger):
    run, summary = finished
    kept = {c["clip_id"]: c for c in ledger[1] if c["decision"] == "keep"}
    reader = ShardReader(run)
    entries = reader.index()
    assert {entry.clip_id for entry in entries} == set(kept)
    assert Counter(e.bucket for e in entries) == summary["totals"]["buckets"]
    for row in reader.read([entry.address for entry in entries]):
        bucket = Bucket.parse(kept[row["clip_id"]]["bucket"])
        assert (row["height"], row["width"], row["num_frames"]) == (
            bucket.height,
            bucket.width,
            bucket.frames,
        )
        assert row["caption"] == kept[row["clip_id"]]["caption"]
        assert unpack(row["text_embedding"]).shape[1] == reader.manifest.text_encoder.width
        frames = decode(row["video"])
        assert frames.shape == (bucket.frames, bucket.height, bucket.width, 3)
    assert all(problem == "" for _, problem in verify(run, reader.manifest))


def test_a_written_clip_shows_its_own_span_at_the_bucket_s_rate(finished, ledger):
    clip = next(c for c in ledger[1] if c["uri"] == "two.mp4" and c["shot"] == 1)
    reader = ShardReader(finished[0])
    address = next(e.address for e in reader.index() if e.clip_id == clip["clip_id"])
    (row,) = reader.read([address])
    frames = decode(row["video"])
    # Ground 180, and a dark square that moves 20 pixels of 107 a second to the right.
    assert np.abs(frames[:, 0, 0].astype(int) - 180).max() < 12
    centres = [np.average(np.arange(40), weights=255.0 - f.mean(axis=(0, 2))) for f in frames]
    assert (np.diff(centres) > 0).all()
    assert (row["end_s"] - row["start_s"], row["fps"]) == (pytest.approx(2.0), 4.0)


def decode(video):
    import io

    with av.open(io.BytesIO(video)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_the_report_is_whole_and_takes_no_script_from_a_caption(finished):
    page = (finished[0] / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "data:image/jpeg;base64," in page


def test_one_worker_makes_the_same_dataset_as_two(finished, raw, recipe, tmp_path):
    alone = recipe.model_copy(update={"workers": 1})
    assert pipeline.curate(alone, raw, tmp_path / "run")["digest"] == finished[1]["digest"]


def test_a_small_run_without_captions_makes_the_same_dataset_without_ray(finished, raw, recipe, tmp_path):
    (tmp_path / "recipe.yaml").write_text(dump_yaml(recipe))
    # The captions are encoded already; Ray is needed for nothing else.
    shutil.copytree(finished[0] / "work" / "text", tmp_path / "run" / "work" / "text")
    shutil.copy(finished[0] / "recipe.yaml", tmp_path / "run")
    program = (
        "import sys; from kineograph.cli.main import main\n"
        f"arguments = ['data', 'run', {str(tmp_path / 'recipe.yaml')!r}, '--input', {str(raw)!r}]\n"
        f"try: main([*arguments, '--out', {str(tmp_path / 'run')!r}])\n"
        "except SystemExit as end: sys.exit(end.code or ('ray' in sys.modules and 'ray was loaded' or 0))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert Manifest.load(tmp_path / "run").digest == finished[1]["digest"]


def test_a_second_run_does_nothing_twice(own_run, raw, recipe, finished):
    before = stamps(own_run, "work", "shards")
    assert pipeline.curate(recipe, raw, own_run)["digest"] == finished[1]["digest"]
    after = stamps(own_run, "work", "shards")
    changed = {path for path in before | after if before.get(path) != after.get(path)}
    assert changed == {"work/sources.json", "work/stages.json"}


def stamps(run, *folders):
    paths = [path for folder in folders for path in (run / folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(run)): path.stat().st_mtime_ns for path in paths}


def test_deciding_again_decodes_nothing_and_drops_what_no_longer_passes(own_run, finished):
    before = stamps(own_run, "work/analysis", "work/clips")
    summary = pipeline.decide(own_run, ["filters.motion.min=0.03"])
    assert stamps(own_run, "work/analysis", "work/clips") == before
    assert 0 < summary["totals"]["clips_kept"] < finished[1]["totals"]["clips_kept"]
    assert summary["totals"]["clips_rejected"]["motion_low"] > 0
    manifest = Manifest.load(own_run)
    assert {str(p.relative_to(own_run)) for p in own_run.glob("shards/*/*")} == {s.path for s in manifest.shards}
    back = pipeline.decide(own_run, ["filters.motion.min=null"])
    assert back["digest"] == finished[1]["digest"]


def test_deciding_on_other_buckets_encodes_what_is_new(own_run):
    summary = pipeline.decide(own_run, ["buckets.sizes=[16x16x4]", "buckets.fps=2"])
    assert list(summary["totals"]["buckets"]) == ["16x16x4"]
    assert Manifest.load(own_run).buckets == [Bucket(16, 16, 4)]


def test_limits_cannot_be_decided_again(own_run):
    with pytest.raises(UserError, match="kineo data run"):
        pipeline.decide(own_run, ["limits.max_seconds=1"])


def test_a_clip_that_cannot_be_decoded_again_is_rejected(raw, recipe, ray_of_two, tmp_path):
    import shutil

    (tmp_path / "raw").mkdir()
    for name in ("two.mp4", "two.json", "sub_tall.mp4", "sub_tall.txt"):
        shutil.copy(raw / name, tmp_path / "raw")
    run = tmp_path / "run"
    pipeline.curate(recipe, tmp_path / "raw", run)
    (tmp_path / "raw" / "two.mp4").write_bytes(b"gone bad")
    summary = pipeline.decide(run, ["encode.crf=20"])
    assert summary["totals"]["clips_rejected"] == {"encode_failed": 2}
    assert summary["totals"]["clips_kept"] == 1


def test_nothing_kept_leaves_ledger_and_report_and_says_why(raw, recipe, ray_of_two, tmp_path):
    with pytest.raises(UserError, match=r"nothing was kept: 1 source, 1 rejected \(1 not_media\); see .*report.html"):
        pipeline.curate(recipe, raw / "list.mp4", tmp_path / "run")
    assert read_ledger(tmp_path / "run")[0][0]["reason"] == "not_media"
    assert (tmp_path / "run" / "report.html").is_file()
    assert not (tmp_path / "run" / "_SUCCESS").exists()


def test_a_killed_driver_goes_on_and_ends_with_the_same_dataset(finished, raw, recipe, tmp_path):
    (tmp_path / "recipe.yaml").write_text(dump_yaml(recipe))
    run = tmp_path / "run"
    command = [sys.executable, "-m", "kineograph.cli.main", "data", "run", str(tmp_path / "recipe.yaml")]
    log = open(tmp_path / "log", "wb")  # noqa: SIM115 - the process writes to it
    driver = subprocess.Popen([*command, "--input", str(raw), "--out", str(run)], stdout=log, stderr=log)
    deadline = time.monotonic() + 120
    while not list(run.glob("work/analysis/*/*.gz")):
        assert driver.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert not (run / "_SUCCESS").exists()
    assert pipeline.curate(recipe, raw, run)["digest"] == finished[1]["digest"]


def test_a_killed_worker_loses_nothing(finished, raw, recipe, tmp_path):
    killed, over = [], threading.Event()

    def kill_one():
        while not killed and not over.is_set():
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if "ray::Map" in " ".join(process.cmdline()):
                        process.kill()
                        killed.append(process.pid)
                        break
            time.sleep(0.005)

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        digest = pipeline.curate(recipe, raw, tmp_path / "run")["digest"]
    finally:
        over.set()
        killer.join()
    assert killed
    assert digest == finished[1]["digest"]


def test_errors_for_the_user_come_out_of_a_worker_as_they_are(ray_of_two, tmp_path):
    from pipelines.data.stages import Resources, run_stage

    def fail(item):
        from kineograph.errors import Failure

        raise Failure(f"one line about {item['name']}")

    with pytest.raises(Failure, match=r"^one line about x$"):
        run_stage(tmp_path, "tried", "things", [{"name": "x"}], fail, Resources(), 2)


def test_a_bug_in_a_worker_is_one_line_too(ray_of_two, tmp_path):
    from pipelines.data.stages import Resources, run_stage

    def bug(item):
        return item["missing"]

    with pytest.raises(Failure, match=r"^a worker failed: KeyError: 'missing'$") as caught:
        run_stage(tmp_path, "tried", "things", [{"name": "x"}], bug, Resources(), 2)
    assert 'return item["missing"]' in str(caught.value.__cause__)


def test_a_full_disk_in_a_worker_comes_out_as_such(ray_of_two, tmp_path):
    from pipelines.data.stages import Resources, run_stage

    def fill(item):
        import resource
        import signal
        from pathlib import Path

        from kineograph.store.commit import write_bytes

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # the kernel refuses what is beyond
        try:
            write_bytes(Path(item["path"]), b"x" * 5000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        return item

    item = {"path": str(tmp_path / "file")}
    with pytest.raises(DiskFullError, match="the disk is full"):
        run_stage(tmp_path, "tried", "files", [item], fill, Resources(), 2)
    assert os.listdir(tmp_path) == ["work"]  # the times of the stage


def test_the_ledger_has_its_schema(finished):
    from kineograph.store.schema import CLIP_SCHEMA, SOURCE_SCHEMA

    assert pq.read_schema(finished[0] / "sources" / "part-00000.parquet").equals(SOURCE_SCHEMA)
    assert pq.read_schema(finished[0] / "clips" / "part-00000.parquet").equals(CLIP_SCHEMA)
