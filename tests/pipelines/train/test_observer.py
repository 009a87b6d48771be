"""How a run's end is told where rank 0 could not tell it."""

import pytest

from kineograph.store.commit import write_json
from kineograph.tracking import SPOOL_NAME, Tracker, default_uri
from pipelines.train.observer import STATE, close_for, read_state
from pipelines.train.registry import open_kind, parse_train_recipe
from tests.pipelines.train.tiny_dataset import VAE, make_dataset

RECIPE = {"steps": 60, "model": {"width": 32, "depth": 1, "heads": 2}, "vae": VAE, "data": {"validation_share": 0}}


@pytest.fixture
def kind(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "train").mkdir()
    return open_kind(parse_train_recipe(RECIPE), str(make_dataset(tmp_path / "data")), tmp_path / "train")


@pytest.fixture
def tracker(kind):
    """Of the rank 0 that was killed: it logged a loss and told no end."""
    tracker = Tracker.start(default_uri(kind.run), kind.config.tracking.experiment, "train", run_dir=kind.run)
    tracker.log_metrics({"loss": 0.5}, 1)
    assert tracker.flush()
    write_json(kind.run / STATE, {"status": "running", "mlflow": {"uri": tracker.uri, "run_id": tracker.run_id}})
    return tracker


def read(kind, run_id):
    from mlflow.tracking import MlflowClient

    return MlflowClient(default_uri(kind.run)).get_run(run_id)


def test_a_run_whose_rank_0_was_killed_has_failed(kind, tracker):
    assert read(kind, tracker.run_id).info.status == "RUNNING"
    close_for(kind, "FAILED")
    assert read(kind, tracker.run_id).info.status == "FAILED"
    assert read_state(kind.run)["status"] == "failed"


def test_what_mlflow_missed_of_a_finished_run_is_sent(kind, tracker):
    late = '{"op": "metrics", "metrics": {"loss": 0.25}, "step": 2, "time": 1, "run_id": "%s"}\n'
    (kind.run / SPOOL_NAME).write_text(late % tracker.run_id)
    write_json(kind.run / STATE, {**read_state(kind.run), "status": "finished"})
    close_for(kind, "FINISHED")
    found = read(kind, tracker.run_id)
    assert (found.data.metrics["loss"], found.info.status) == (0.25, "FINISHED")
    assert not (kind.run / SPOOL_NAME).exists()


def test_a_run_that_was_told_of_is_left_alone(kind):
    write_json(kind.run / STATE, {"status": "finished"})
    close_for(kind, "FAILED")
    assert read_state(kind.run) == {"status": "finished"}
    assert not (kind.run.parent / "mlflow.db").exists()
