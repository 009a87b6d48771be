"""Checkpoints are models in a real MLflow store: with their digests and scores, once, and later where it was away."""

import json
import socket

import pytest

from kineograph.store.checkpoints import CONFIG, checkpoint_folder, remove_checkpoint, seal
from kineograph.tracking import SPOOL_NAME, Tracker, default_uri


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


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
    return f"http://127.0.0.1:{port}"


def save(run, step):
    folder = checkpoint_folder(run, step)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"weights" * step)
    (folder / CONFIG).write_text(json.dumps({"kind": "vae", "step": step}))
    seal(folder)
    return folder


def models(uri, run_id):
    """The run's models by name, as MLflow has them."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models([experiment], f"source_run_id = '{run_id}'")
    assert len({model.name for model in found}) == len(found), "a name is given once"
    return client, {model.name: model for model in found}


def start(uri, run, **options):
    return Tracker.start(uri, "tests", run.name, run_dir=run, **options)


def test_a_checkpoint_is_a_model_of_its_run_at_its_step(root, uri, tmp_path):
    run = tmp_path / "one"
    folder = save(run, 10)
    with start(uri, run) as tracker:
        tracker.log_model("one-step-10", 10, folder, {"kind": "vae"}, {"manifest_digest": "abc"})
    client, found = models(uri, tracker.run_id)
    (model,) = found.values()
    assert model.name == "one-step-10"
    assert str(model.status) == "READY"
    assert model.params == {"kind": "vae"}
    tags = {key: model.tags[key] for key in ("path", "step", "state", "manifest_digest")}
    assert tags == {"path": str(folder), "step": "10", "state": "kept", "manifest_digest": "abc"}
    (output,) = client.get_run(tracker.run_id).outputs.model_outputs
    assert (output.model_id, output.step) == (model.model_id, 10)


def test_its_artifacts_describe_it_and_are_not_its_weights(root, uri, tmp_path, monkeypatch):
    from mlflow.models import get_model_info

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    run = tmp_path / "small"
    folder = save(run, 10)
    with start(uri, run) as tracker:
        tracker.log_model("small-10", 10, folder)
    client, found = models(uri, tracker.run_id)
    model = found["small-10"]
    files = {file.path: file.file_size for file in client.list_logged_model_artifacts(model.model_id)}
    assert set(files) == {"MLmodel", "checkpoint.json"}
    info = get_model_info(f"models:/{model.model_id}")
    assert info.flavors["kineograph"]["checkpoint"] == str(folder)
    text = (root / "mlartifacts" / "models" / model.model_id / "artifacts" / "checkpoint.json").read_text()
    about = json.loads(text)
    assert about["config"] == {"kind": "vae", "step": 10}
    assert set(about["digests"]) == {CONFIG, "model.safetensors"}


def test_what_is_sent_twice_is_there_once(root, uri, tmp_path):
    run = tmp_path / "twice"
    folder = save(run, 10)
    with start(uri, run) as tracker:
        for _ in range(2):
            tracker.log_model("twice", 10, folder, {"kind": "vae"}, {"try": "first"})
            tracker.log_model_metrics("twice", 10, {"validation_loss": 0.5})
    with start(uri, run, run_id=tracker.run_id) as again:
        again.log_model("twice", 10, folder, {"kind": "vae"}, {"try": "second"})
        again.log_model_metrics("twice", 10, {"validation_loss": 0.5})
    client, found = models(uri, tracker.run_id)
    (model,) = found.values()
    assert model.tags["try"] == "second"
    assert len(client.get_run(tracker.run_id).outputs.model_outputs) == 1
    assert {metric.value for metric in model.metrics} == {0.5}


def test_its_scores_are_its_own_and_stay_one_point_of_the_run(root, uri, tmp_path):
    run = tmp_path / "scored"
    folder = save(run, 10)
    with start(uri, run) as tracker:
        tracker.log_model("scored", 10, folder)
        tracker.log_metrics({"validation_loss": 0.5, "validation (t=0.5)": 0.4}, 10)
        tracker.log_model_metrics("scored", 10, {"validation_loss": 0.5, "validation (t=0.5)": 0.4})
    client, found = models(uri, tracker.run_id)
    scores = {metric.key: (metric.step, metric.value) for metric in found["scored"].metrics}
    assert scores == {"validation_loss": (10, 0.5), "validation _t_0.5_": (10, 0.4)}
    history = client.get_metric_history(tracker.run_id, "validation_loss")
    assert [(point.step, point.value) for point in history] == [(10, 0.5)]


def test_models_whose_checkpoint_is_gone_stay_and_say_so(root, uri, tmp_path):
    run = tmp_path / "pruned"
    with start(uri, run) as tracker:
        for step in (1, 2, 3):
            tracker.log_model(f"pruned-{step}", step, save(run, step))
        tracker.keep_models(["pruned-3"])
        tracker.keep_models(["pruned-3"])
    states = {name: model.tags["state"] for name, model in models(uri, tracker.run_id)[1].items()}
    assert states == {"pruned-1": "deleted", "pruned-2": "deleted", "pruned-3": "kept"}


def test_models_of_other_runs_are_left_alone(root, uri, tmp_path):
    with start(uri, tmp_path / "mine") as mine:
        mine.log_model("same name", 1, save(tmp_path / "mine", 1))
    with start(uri, tmp_path / "theirs") as theirs:
        theirs.log_model("same name", 1, save(tmp_path / "theirs", 1))
        theirs.keep_models([])
    assert models(uri, mine.run_id)[1]["same name"].tags["state"] == "kept"
    assert models(uri, theirs.run_id)[1]["same name"].tags["state"] == "deleted"


def test_names_that_mlflow_does_not_take_are_changed(root, uri, tmp_path):
    run = tmp_path / "v1.5: a 'run'/%"
    with start(uri, run) as tracker:
        tracker.log_model(run.name, 1, save(run, 1))
        tracker.set_model_tags(run.name, {"copy": "s3://bkt/run"})
    (model,) = models(uri, tracker.run_id)[1].values()
    assert model.tags["copy"] == "s3://bkt/run"


def test_a_dead_server_gets_it_later_though_the_checkpoint_is_gone(root, uri, dead, tmp_path):
    run = tmp_path / "outage"
    folder = save(run, 10)
    tracker = start(dead, run)
    tracker.log_model("outage", 10, folder, {"kind": "vae"}, {"sha256.model.safetensors": "abc"})
    tracker.log_model_metrics("outage", 10, {"validation_loss": 0.5})
    tracker.keep_models([])
    remove_checkpoint(folder)
    tracker.finish(timeout_s=1.0)
    assert (run / SPOOL_NAME).is_file()

    with start(uri, run) as later:
        assert later.flush()
    (model,) = models(uri, later.run_id)[1].values()
    assert (model.tags["state"], model.tags["sha256.model.safetensors"]) == ("deleted", "abc")
    assert [metric.value for metric in model.metrics] == [0.5]
    assert not (run / SPOOL_NAME).exists()


def test_a_model_that_is_not_known_is_told_of_and_stops_nothing(root, uri, tmp_path, capsys):
    run = tmp_path / "unknown"
    with start(uri, run) as tracker:
        tracker.log_model_metrics("nobody", 1, {"validation_loss": 1.0})
        tracker.log_metrics({"loss": 2.0}, 2)
    client, _ = models(uri, tracker.run_id)
    assert [point.value for point in client.get_metric_history(tracker.run_id, "loss")] == [2.0]
    assert "refused model: there is no model nobody" in capsys.readouterr().err
