"""A run's checkpoints as models in a real MLflow store."""

import json
import threading

import pytest
import torch

from kineograph.store.checkpoints import CONFIG, DIGESTS, checkpoint_folder
from kineograph.tracking import Tracker, default_uri
from pipelines.train.saving.config import CheckpointConfig
from pipelines.train.saving.saver import Saver
from pipelines.train.saving.state import TrainState
from pipelines.train.saving.upload import Mirror

CONFIG_JSON = {"kind": "diffusion", "manifest_digest": "a" * 64, "recipe_digest": "b" * 64, "model": {"width": 8}}


def state(step):
    return TrainState(step, {"weight": torch.full((3,), float(step))}, {}, {})


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return default_uri(tmp_path_factory.mktemp("runs") / "train")


def start(uri, run, run_id=None):
    return Tracker.start(uri, "tests", run.name, run_id, run_dir=run)


def train(run, tracker, steps, found, **config):
    saver = Saver(run, CheckpointConfig(**config), lambda folder: None, tracker)
    for step in steps:
        saver.save(state(step), CONFIG_JSON, {})
        if step in found:
            saver.record(step, {"validation_loss": found[step]})
    saver.close()


def models(uri, run_id):
    """The run's models by step."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_run(run_id).info.experiment_id
    return {int(m.tags["step"]): m for m in client.search_logged_models([experiment], f"source_run_id = '{run_id}'")}


def test_every_checkpoint_is_one_with_its_digests_and_scores(uri, tmp_path):
    run, copies = tmp_path / "one", tmp_path / "copies"
    with start(uri, run) as tracker:
        train(run, tracker, (1, 2, 3), {1: 0.1, 2: 0.3}, keep=1, keep_best=1, upload=str(copies))
    found = models(uri, tracker.run_id)
    assert {step: m.tags["state"] for step, m in found.items()} == {1: "kept", 2: "deleted", 3: "kept"}
    assert [m.name for _, m in sorted(found.items())] == [f"one-step-{step:08d}" for step in (1, 2, 3)]
    assert {step: [metric.value for metric in m.metrics or ()] for step, m in found.items()} == {
        1: [0.1],
        2: [0.3],
        3: [],
    }
    folder, tags = checkpoint_folder(run, 3), found[3].tags
    digests = json.loads((folder / DIGESTS).read_text())
    assert (tags["path"], tags["copy"]) == (str(folder), f"{copies}/checkpoints/step-00000003")
    assert (tags["sha256.model.safetensors"], tags[f"sha256.{CONFIG}"]) == (
        digests["model.safetensors"],
        digests[CONFIG],
    )
    assert (tags["manifest_digest"], found[3].params["kind"]) == ("a" * 64, "diffusion")


def test_one_that_could_go_only_when_it_was_copied_is_told_of_too(uri, tmp_path, monkeypatch):
    begun, goes_on, copy = threading.Event(), threading.Event(), Mirror._copy

    def slow_copy(mirror, depot, step):
        begun.set()
        assert goes_on.wait(60)
        return copy(mirror, depot, step)

    monkeypatch.setattr(Mirror, "_copy", slow_copy)
    run = tmp_path / "busy"
    with start(uri, run) as tracker:
        saver = Saver(run, CheckpointConfig(keep=1, upload=str(tmp_path / "copies")), lambda folder: None, tracker)
        saver.save(state(1), CONFIG_JSON, {})
        assert begun.wait(60)
        saver.save(state(2), CONFIG_JSON, {})
        saver.wait()
        goes_on.set()
        saver.close()
    assert {step: m.tags["state"] for step, m in models(uri, tracker.run_id).items()} == {1: "deleted", 2: "kept"}


def test_what_a_killed_start_did_not_tell_is_told_by_the_next(uri, tmp_path):
    """It was killed when its checkpoints stood, and before MLflow was told."""
    run = tmp_path / "killed"
    train(run, None, (1, 2), {})
    with start(uri, run) as tracker:
        train(run, tracker, (), {})
    assert {step: m.tags["state"] for step, m in models(uri, tracker.run_id).items()} == {1: "kept", 2: "kept"}


def test_a_damaged_checkpoint_is_none_and_stops_nothing(uri, tmp_path):
    run = tmp_path / "damaged"
    train(run, None, (1, 2), {})
    (checkpoint_folder(run, 2) / CONFIG).write_text("{")
    with start(uri, run) as tracker:
        train(run, tracker, (3,), {}, keep=9)
    assert set(models(uri, tracker.run_id)) == {1, 3}


def test_a_recipe_may_do_without(uri, tmp_path):
    run = tmp_path / "without"
    with start(uri, run) as tracker:
        train(run, tracker, (1,), {1: 0.5}, mlflow_models=False)
    assert models(uri, tracker.run_id) == {}
