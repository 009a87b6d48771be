"""`kineo data retry`: what failed for a reason that may have passed is read again, and nothing else is."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from kineograph.errors import UserError
from kineograph.media.encode import write_mp4
from pipelines.data import pipeline, state
from pipelines.data.inputs.locations import Inputs
from pipelines.data.ledger import read_ledger
from pipelines.data.retry import retry

pytestmark = pytest.mark.slow

QUICK = {"wall_s": 0.002}  # ends before any child has answered


def picture(seed, seconds=3, fps=10):
    """A pattern of its own that drifts: uint8 (T, H, W, 3)."""
    pattern = np.kron(np.random.default_rng(seed).integers(30, 230, (8, 24, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
    return np.stack([pattern[:, 2 * index : 2 * index + 96] for index in range(seconds * fps)])


@pytest.fixture
def folder(tmp_path):
    """Two sources that can be curated."""
    made = tmp_path / "raw"
    made.mkdir()
    for seed, name in enumerate(("one", "two")):
        write_mp4(made / f"{name}.mp4", picture(seed), 10)
        (made / f"{name}.txt").write_text(name)
    return made


def analyses(run):
    return {path.name: path.stat().st_mtime_ns for path in (run / "work" / "analysis").rglob("*.gz")}


def reasons(run):
    return {row["uri"]: row["reason"] for row in read_ledger(run)[0]}


def kineo(*arguments):
    command = [sys.executable, "-m", "kineograph.cli.main", "data", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_source_that_timed_out_passes_with_more_time_and_the_others_are_not_read(
    folder, recipe, ray_of_two, tmp_path
):
    run = tmp_path / "run"
    (folder / "two.mp4").rename(tmp_path / "two.mp4")
    pipeline.curate(recipe, folder, run)
    shutil.move(tmp_path / "two.mp4", folder)
    hasty = recipe.model_copy(update={"guard": recipe.guard.model_copy(update=QUICK)})
    pipeline.curate(hasty, folder, run)
    assert reasons(run) == {"one.mp4": "", "two.mp4": "timeout"}
    before = analyses(run)
    summary = retry(run, ["timeout"], ["guard.wall_s=600"])
    assert reasons(run) == {"one.mp4": "", "two.mp4": ""}
    after = analyses(run)
    assert before.keys() == after.keys()
    assert sum(before[name] != after[name] for name in before) == 1
    assert summary["digest"] == pipeline.curate(recipe, folder, tmp_path / "calm")["digest"]


def test_a_source_that_times_out_again_is_rejected_again(folder, recipe, ray_of_two, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(UserError, match="nothing was kept"):
        pipeline.curate(recipe.model_copy(update={"guard": recipe.guard.model_copy(update=QUICK)}), folder, run)
    with pytest.raises(UserError, match="nothing was kept"):
        retry(run, ["timeout"])
    assert set(reasons(run).values()) == {"timeout"}


def test_an_object_that_could_not_be_fetched_is_asked_for_again(folder, recipe, ray_of_two, tmp_path):
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        secrets = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
        client = boto3.client("s3", endpoint_url=url, **secrets)
        client.create_bucket(Bucket="bkt", ACL="public-read")
        bodies = {path.name: path.read_bytes() for path in folder.glob("*.mp4")}
        client.put_object(Bucket="bkt", Key="one.mp4", Body=bodies["one.mp4"], ACL="public-read")
        (tmp_path / "list.csv").write_text("uri,caption\ns3://bkt/one.mp4,one\ns3://bkt/two.mp4,two\n")
        inputs = Inputs(storage_options={"endpoint_url": url, "anon": True})
        run = tmp_path / "run"
        pipeline.curate(recipe.model_copy(update={"inputs": inputs}), tmp_path / "list.csv", run)
        assert sorted(reasons(run).values()) == ["", "fetch_failed"]
        before = analyses(run)
        client.put_object(Bucket="bkt", Key="two.mp4", Body=bodies["two.mp4"], ACL="public-read")
        retry(run, ["fetch_failed"])
    finally:
        server.stop()
    assert set(reasons(run).values()) == {""}
    assert before.items() < analyses(run).items()


def test_clips_that_could_not_be_written_are_written_when_the_file_is_back(folder, recipe, ray_of_two, tmp_path):
    run = tmp_path / "run"
    pipeline.curate(recipe, folder, run)
    good = (folder / "two.mp4").read_bytes()
    (folder / "two.mp4").write_bytes(b"gone bad")
    bad = pipeline.decide(run, ["encode.crf=20"])
    assert bad["totals"]["clips_rejected"] == {"encode_failed": 1}
    (folder / "two.mp4").write_bytes(good)
    before = analyses(run)
    again = retry(run, ["encode_failed"])
    assert again["totals"]["clips_kept"] == 2
    assert analyses(run) == before
    assert not list(run.rglob("*.failed"))


def test_a_source_that_is_to_be_tried_again_is_not_forgotten_by_a_kill_in_between(folder, recipe, ray_of_two, tmp_path):
    """Retry forgets, then curates: after a kill between the two the same command goes on."""
    run = tmp_path / "run"
    pipeline.curate(recipe, folder, run)
    calm = pipeline.decide(run)["digest"]
    lines = json.loads((run / state.SOURCES_NAME).read_text())
    for line in lines:
        line["reason"], line["facts"] = "crashed", None
    (run / state.SOURCES_NAME).write_text(json.dumps(lines))
    for path in (run / "work" / "analysis").rglob("*.gz"):
        path.unlink()
    assert retry(run, ["crashed"])["digest"] == calm


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--reason", "motion_low"], "'motion_low' cannot be tried again, a decision can be changed; reasons are: "),
        (["--reason", "timeout", "--set", "guard.wall=9"], "guard.wall"),
    ],
)
def test_what_cannot_be_retried_is_one_line_and_exit_2(finished, arguments, said):
    before = analyses(finished[0])
    ended = kineo("retry", finished[0], *arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert len(ended.stderr.strip().splitlines()) == 1
    assert said in ended.stderr
    assert analyses(finished[0]) == before


def test_a_run_that_another_command_works_on_is_left_alone(own_run):
    before = analyses(own_run)
    with state.locked(own_run), pytest.raises(UserError, match="another command is at work"):
        retry(own_run, ["corrupt"])
    assert analyses(own_run) == before
    assert os.path.exists(own_run / "_SUCCESS")
