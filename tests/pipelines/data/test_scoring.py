"""Scores are kept under what made them: other weights of the same name are another model."""

import json
import os
import shutil

import pytest

from kineograph.store.checkpoints import checkpoint_folder, seal
from pipelines.data.config import CurateConfig
from pipelines.data.scores.learned import Learned
from pipelines.data.scoring import scores_folder


def train(run, step, weights):
    """A checkpoint in ``run``."""
    folder = checkpoint_folder(run, step)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"step": step}))
    (folder / "ema.safetensors").write_bytes(weights)
    seal(folder)
    return folder


@pytest.fixture
def name(tmp_path):
    """What scores by the model in tmp_path/model are kept under."""
    config = CurateConfig.model_validate({"buckets": {"sizes": ["32x32x9"], "fps": 8.0}})
    settings = Learned(model=str(tmp_path / "model"), label="good")
    return lambda: scores_folder(tmp_path, "learned", settings, config).name


def test_a_classifier_that_was_trained_further_scores_anew(tmp_path, name):
    train(tmp_path / "model", 1, b"one")
    first = name()
    (tmp_path / "model" / "metrics.json").write_text("{}")  # not the model
    assert name() == first
    newest = train(tmp_path / "model", 2, b"two")
    second = name()
    assert second != first
    shutil.rmtree(checkpoint_folder(tmp_path / "model", 1))  # the newest is what is loaded
    assert name() == second
    shutil.rmtree(newest)
    train(tmp_path / "model", 2, b"three")
    assert name() not in (first, second)


def test_a_damaged_checkpoint_is_passed_over_as_when_it_is_loaded(tmp_path, name):
    train(tmp_path / "model", 1, b"one")
    first = name()
    (train(tmp_path / "model", 2, b"two") / "ema.safetensors").write_bytes(b"torn")
    assert name() == first


def test_files_in_folders_of_a_model_are_of_it_and_those_of_other_tools_are_not(tmp_path, name):
    inner = tmp_path / "model" / "text" / "config.json"
    for path in (inner, tmp_path / "model" / "config.json", tmp_path / "model" / ".cache" / "downloaded"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")
    first = name()
    (tmp_path / "model" / ".cache" / "downloaded").write_text("2")
    assert name() == first
    inner.write_text("2")
    second = name()
    os.rename(inner, inner.with_name("other.json"))
    assert len({first, second, name()}) == 3


def test_a_label_that_is_also_a_folder_here_is_no_weights(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = name()
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "cat.jpg").write_bytes(b"cat")
    assert name() == first
