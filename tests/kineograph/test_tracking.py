"""Tracking writes a real MLflow store, and training notices nothing of a server that is dead or slow."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kineograph.errors import Failure, UserError
from kineograph.tracking import SPOOL_NAME, Tracker, default_uri, log_scores


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A runs directory; its name is hostile to URIs."""
    return tmp_path_factory.mktemp("runs 100% #1")


@pytest.fixture(scope="module")
def uri(root):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return default_uri(root / "train")


@pytest.fixture
def dead():
    """An address that refuses connections."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return f"http://user:secret@127.0.0.1:{port}"


def read(uri, run_id):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    return client, client.get_run(run_id)


def history(uri, run_id, key):
    return [(m.step, m.value) for m in read(uri, run_id)[0].get_metric_history(run_id, key)]


def test_importing_it_does_not_import_mlflow():
    code = "import sys, kineograph.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_store_lies_beside_the_run_unless_mlflow_is_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert default_uri(tmp_path / "train") == f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(UserError, match="question mark"):
        default_uri(tmp_path / "why?" / "train")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example")
    assert default_uri(tmp_path / "train") == "http://mlflow.example"


def test_a_run_is_in_the_store_with_all_that_was_logged(root, uri, capsys):
    digest = "0123456789abcdef" * 4
    (root / "sample.mp4").write_bytes(b"not really a video")
    with Tracker.start(uri, "tests", "all", run_dir=root / "train") as tracker:
        tracker.log_params({"model": {"width": 128, "patch": (1, 2, 2)}, "long": "x" * 9000, "none": None})
        for step in range(1500):
            tracker.log_metrics({"loss": 1 / (step + 1), "loss/32x32x8 (video)": float("nan")}, step)
        tracker.log_dataset("clips", digest, root / "data", tags={"rows": 12})
        tracker.log_image("samples/a red circle", np.zeros((8, 8, 3), np.uint8), 5)
        tracker.log_image("samples/a red circle", Image.new("RGB", (8, 8)), 10)
        tracker.log_video(root / "sample.mp4", "videos")
        tracker.set_tags({"recipe": digest})
    client, run = read(uri, tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["model.width"] == "128"
    assert run.data.params["model.patch"] == "[1, 2, 2]"
    assert len(run.data.params["long"]) == 500
    assert len(history(uri, tracker.run_id, "loss")) == 1500
    assert "loss/32x32x8 _video_" in run.data.metrics
    (used,) = run.inputs.dataset_inputs
    assert used.dataset.digest == digest[:32]
    assert {tag.key: tag.value for tag in used.tags}["digest"] == digest
    assert run.data.tags["dataset.training.digest"] == digest
    assert [f.path for f in client.list_artifacts(tracker.run_id, "videos")] == ["videos/sample.mp4"]
    assert len(client.list_artifacts(tracker.run_id, "images")) == 4  # each with a small copy
    assert (root / "mlartifacts" / tracker.run_id).is_dir()
    assert capsys.readouterr().err == ""


def test_a_resumed_run_goes_on_and_shows_what_was_changed(root, uri):
    with Tracker.start(uri, "tests", "first", run_dir=root / "train") as first:
        first.log_params({"steps": 10, "seed": 1})
        first.log_metrics({"loss": 2.0}, 1)
    with Tracker.start(uri, "tests", "again", run_id=first.run_id, run_dir=root / "train") as again:
        assert read(uri, first.run_id)[1].info.status == "RUNNING"
        again.log_params({"steps": 20, "seed": 1})
        again.log_metrics({"loss": 1.0}, 2)
    assert again.run_id == first.run_id
    assert history(uri, first.run_id, "loss") == [(1, 2.0), (2, 1.0)]
    run = read(uri, first.run_id)[1]
    assert (run.data.params["steps"], run.data.tags["resumed.steps"]) == ("10", "20")
    assert "resumed.seed" not in run.data.tags


def test_a_run_that_is_not_known_is_replaced(root, uri, capsys):
    with Tracker.start(uri, "tests", "lost", run_id="0" * 32, run_dir=root / "train") as tracker:
        tracker.log_metrics({"loss": 1.0}, 1)
    assert tracker.run_id != "0" * 32
    assert history(uri, tracker.run_id, "loss") == [(1, 1.0)]
    assert "a new one is started" in capsys.readouterr().err


def test_an_error_inside_ends_the_run_as_failed(root, uri):
    tracker = Tracker.start(uri, "tests", "failed", run_dir=root / "train")
    with pytest.raises(RuntimeError), tracker:
        raise RuntimeError
    assert read(uri, tracker.run_id)[1].info.status == "FAILED"


def test_what_mlflow_refuses_does_not_stop_what_comes_after(root, uri, capsys):
    with Tracker.start(uri, "tests", "refused", run_dir=root / "train") as tracker:
        tracker.log_file(root / "never_there.txt")
        tracker.log_metrics({"loss": 3.0}, 7)
    assert history(uri, tracker.run_id, "loss") == [(7, 3.0)]
    assert capsys.readouterr().err.count("\n") == 1


def test_a_dead_server_costs_no_time_and_what_it_missed_is_sent_later(root, uri, dead, capsys):
    run_dir = root / "outage"
    tracker = Tracker.start(dead, "tests", "outage", run_dir=run_dir)
    assert tracker.run_id is None
    began = time.thread_time()
    for step in range(1000):
        tracker.log_metrics({"loss": float(step)}, step)
    tracker.log_image("sheet", np.full((8, 8, 3), 9, np.uint8), 3)
    assert time.thread_time() - began < 1.0  # of this thread: a thousand calls are some milliseconds
    tracker.finish(timeout_s=1.5)
    said = capsys.readouterr().err
    assert said.count("\n") == 2, "one line when it starts, one when it ends"
    assert "secret" not in said
    lines = [json.loads(line) for line in (run_dir / SPOOL_NAME).read_text().splitlines() if line]
    assert sum(line["op"] == "metrics" for line in lines) == 1000

    with open(run_dir / SPOOL_NAME, "a") as spool:
        spool.write('{"op": "metrics", "torn')  # as a killed process leaves it
    with Tracker.start(uri, "tests", "outage", run_dir=run_dir) as later:
        later.log_metrics({"loss": 1000.0}, 1000)
        assert later.flush()
        client, run = read(uri, later.run_id)
        assert run.info.status == "RUNNING", "how it ended without a server is not how it ends now"
    assert history(uri, later.run_id, "loss") == [(step, float(step)) for step in range(1001)]
    assert len(client.list_artifacts(later.run_id, "images")) == 2
    assert not (run_dir / SPOOL_NAME).exists()


def test_a_server_that_comes_back_gets_what_it_missed(root, uri, monkeypatch):
    from kineograph.mlflow_store import MlflowStore

    run_dir = root / "hiccup"
    tracker = Tracker.start(uri, "tests", "hiccup", run_dir=run_dir)
    assert tracker.flush()
    apply = MlflowStore.apply

    def lost(store, run_id, entries):
        raise ConnectionError("the network is down")

    monkeypatch.setattr(MlflowStore, "apply", lost)
    tracker.log_metrics({"loss": 1.0}, 1)
    deadline = time.monotonic() + 20
    while not (run_dir / SPOOL_NAME).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    tracker.log_metrics({"loss": 2.0}, 2)
    monkeypatch.setattr(MlflowStore, "apply", apply)
    assert tracker.flush()
    tracker.log_metrics({"loss": 3.0}, 3)
    tracker.finish()
    assert history(uri, tracker.run_id, "loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert not (run_dir / SPOOL_NAME).exists()


def test_a_server_that_never_answers_holds_nobody_up(root):
    with socket.socket() as silent:  # takes connections into its backlog and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        tracker = Tracker.start(address, "tests", "silent", run_dir=root / "silent", wait_s=0.5)
        tracker.log_metrics({"loss": 1.0}, 1)
        tracker.finish(timeout_s=1.0)
        assert time.monotonic() - began < 10  # MLflow itself would wait for twenty seconds and more
    (line,) = [
        json.loads(text) for text in (root / "silent" / SPOOL_NAME).read_text().splitlines() if '"metrics"' in text
    ]
    assert line["metrics"] == {"loss": 1.0}


def test_scores_attach_at_their_step_with_files(root, uri):
    with Tracker.start(uri, "tests", "scored", run_dir=root / "train") as tracker:
        pass
    page = Path(root / "report.html")
    page.write_text("<p>fine</p>")
    log_scores(uri, tracker.run_id, {"eval/colour": 0.9}, 500, [(page, "eval")], {"gate": "passed"})
    client, run = read(uri, tracker.run_id)
    assert history(uri, tracker.run_id, "eval/colour") == [(500, 0.9)]
    assert [f.path for f in client.list_artifacts(tracker.run_id, "eval")] == ["eval/report.html"]
    assert (run.data.tags["gate"], run.info.status) == ("passed", "FINISHED")


def test_scores_that_cannot_be_attached_are_one_line(root, uri, dead, tmp_path):
    with pytest.raises(Failure, match="connection refused") as refused:
        log_scores(dead, "0" * 32, {"eval/colour": 0.9}, 500)
    assert "secret" not in str(refused.value)
    with pytest.raises(Failure, match="0000 not found"):
        log_scores(uri, "0" * 32, {"eval/colour": 0.9}, 500)
    gone = f"sqlite:///{tmp_path}/moved/mlflow.db"
    with pytest.raises(Failure, match="no store"):
        log_scores(gone, "0" * 32, {"eval/colour": 0.9}, 500)
    assert not (tmp_path / "moved").exists()


def test_a_spool_of_nonsense_is_passed_over(root, uri):
    run_dir = root / "nonsense"
    run_dir.mkdir()
    good = json.dumps({"op": "metrics", "metrics": {"loss": 1.0}, "step": 1, "time": 1, "run_id": None})
    lines = ["5", "{", '{"op": "unknown"}', '{"op": "metrics"}', "\x00", good]
    (run_dir / SPOOL_NAME).write_text("\n".join(lines))
    with Tracker.start(uri, "tests", "nonsense", run_dir=run_dir) as tracker:
        tracker.log_image("bad", np.zeros((4, 4, 3), np.uint8), 0)
    assert history(uri, tracker.run_id, "loss") == [(1, 1.0)]
    assert not (run_dir / SPOOL_NAME).exists()
