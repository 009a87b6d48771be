"""Checkpoints of a run: written beside training, whole or not at all, and kept by policy."""

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kineograph.errors import DiskFullError
from kineograph.store.checkpoints import (
    COMPLETE,
    CONFIG,
    DIGESTS,
    checkpoint_folder,
    find_fault,
    latest_checkpoint,
    list_checkpoints,
    step_of,
)
from pipelines.train.saving import saver as saving
from pipelines.train.saving.config import CheckpointConfig
from pipelines.train.saving.policy import add_metrics, kept_steps, prune, read_metrics
from pipelines.train.saving.saver import Saver
from pipelines.train.saving.state import TrainState, load_state, save_state

FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "extra-more.safetensors", CONFIG, DIGESTS)


def state(step):
    numbers = {"weight": torch.full((3,), float(step))}
    return TrainState(
        step, numbers, {"weight": numbers["weight"] / 2}, {"exp_avg.weight": torch.zeros(3)}, {"more": numbers}
    )


def steps_of(run):
    return [step_of(folder) for folder in list_checkpoints(run)]


@pytest.fixture
def make(tmp_path):
    """Makes the run's saver, and tells what it said was saved."""
    made = []

    def one(**config):
        saver = Saver(tmp_path, CheckpointConfig(**config), lambda folder: made.append(step_of(folder)))
        saver.made = made
        return saver

    return one


def test_what_is_saved_is_read_back(make, tmp_path):
    saver = make()
    saver.save(state(7), {"kind": "vae"}, {})
    saver.close()
    read = load_state(latest_checkpoint(tmp_path))
    assert read.step == 7
    for ours, theirs in (
        (read.weights, state(7).weights),
        (read.ema, state(7).ema),
        (read.extra["more"], state(7).weights),
    ):
        assert torch.equal(ours["weight"], theirs["weight"])
    assert saver.made == [7]


def test_training_goes_on_while_it_is_written(make, monkeypatch):
    may, began = threading.Event(), threading.Event()

    def slow(*arguments):
        began.set()
        assert may.wait(60)
        return save_state(*arguments)

    monkeypatch.setattr(saving, "save_state", slow)
    saver = make()
    saver.save(state(1), {}, {})  # returns, though nothing is written
    assert began.wait(60)
    assert saver.made == []
    may.set()
    saver.close()
    assert saver.made == [1]


def test_what_goes_wrong_is_raised_at_the_next_call(make, monkeypatch):
    def full(*_):
        raise DiskFullError("the disk is full")

    monkeypatch.setattr(saving, "save_state", full)
    saver = make()
    saver.save(state(1), {}, {})
    with pytest.raises(DiskFullError):
        saver.save(state(2), {}, {})
    saver.close()


@pytest.mark.parametrize("name", FILES)
def test_one_with_a_flipped_bit_is_skipped_with_its_name(make, tmp_path, capsys, name):
    saver = make()
    for step in (1, 2):
        saver.save(state(step), {}, {})
    saver.close()
    path = checkpoint_folder(tmp_path, 2) / name
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    assert step_of(latest_checkpoint(tmp_path)) == 1
    assert "step-00000002" in capsys.readouterr().err


@pytest.mark.parametrize("name", FILES)
def test_one_that_was_cut_off_is_skipped_with_its_name(make, tmp_path, capsys, name):
    saver = make()
    for step in (1, 2):
        saver.save(state(step), {}, {})
    saver.close()
    path = checkpoint_folder(tmp_path, 2) / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert step_of(latest_checkpoint(tmp_path)) == 1
    assert "step-00000002" in capsys.readouterr().err


def test_one_that_a_kill_left_is_written_anew(make, tmp_path):
    folder = checkpoint_folder(tmp_path, 3)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"half")
    saver = make()
    saver.save(state(3), {}, {})
    saver.close()
    assert find_fault(folder) == ""


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({"keep": 1}, {50}),
        ({"keep": 2}, {40, 50}),
        ({"keep": 9}, {10, 20, 30, 40, 50}),
        ({"keep": 1, "keep_every": 20}, {20, 40, 50}),
        ({"keep": 1, "keep_best": 1}, {20, 50}),
        ({"keep": 1, "keep_best": 2}, {20, 30, 50}),
        ({"keep": 1, "keep_best": 1, "best": "-accuracy"}, {30, 50}),
        ({"keep": 1, "keep_best": 3, "best": "nothing"}, {50}),
    ],
)
def test_the_policy_says_which_stay(config, kept):
    found = {
        10: {"validation_loss": 3.0, "accuracy": 0.1},
        20: {"validation_loss": 1.0, "accuracy": 0.2},
        30: {"validation_loss": 2.0, "accuracy": 0.9},
        40: {"validation_loss": float("nan"), "accuracy": 0.3},
    }
    assert kept_steps([10, 20, 30, 40, 50], found, CheckpointConfig(**config)) == kept


@given(steps=st.sets(st.integers(1, 50)), keep=st.integers(1, 5), best=st.integers(0, 3), every=st.integers(0, 7))
def test_the_newest_always_stays(steps, keep, best, every):
    found = {step: {"validation_loss": float(step % 5)} for step in steps}
    kept = kept_steps(sorted(steps), found, CheckpointConfig(keep=keep, keep_best=best, keep_every=every))
    assert kept <= steps
    assert not steps or max(steps) in kept


def test_a_better_one_outlives_those_after_it(make, tmp_path):
    saver = make(keep=1, keep_best=1)
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 4.0)):
        saver.save(state(step), {}, {})
        saver.record(step, {"validation_loss": loss})
    saver.close()
    assert steps_of(tmp_path) == [2, 4]
    assert read_metrics(tmp_path)[2] == {"validation_loss": 1.0}


def test_an_unfinished_one_does_not_count_among_those_kept(make, tmp_path):
    saver = make(keep=9)
    for step in (10, 20, 30):
        saver.save(state(step), {}, {})
    saver.close()
    (checkpoint_folder(tmp_path, 20) / COMPLETE).unlink()
    prune(tmp_path, CheckpointConfig(keep=2))
    assert steps_of(tmp_path) == [10, 30]


def test_a_save_that_is_being_written_is_left_alone(make, tmp_path):
    saver = make()
    saver.save(state(30), {}, {})
    saver.close()
    checkpoint_folder(tmp_path, 40).mkdir()
    prune(tmp_path, CheckpointConfig(keep=1))
    assert steps_of(tmp_path) == [30, 40]


def test_damaged_metrics_are_as_none(tmp_path):
    add_metrics(tmp_path, 1, {"validation_loss": 1.0})
    (tmp_path / "checkpoints" / "metrics.json").write_text("[1")
    assert read_metrics(tmp_path) == {}


def test_it_is_due_by_the_clock(make, monkeypatch):
    saver = make(minutes=2)
    assert not saver.is_due_by_time()
    now = saving.time.monotonic()
    monkeypatch.setattr(saving.time, "monotonic", lambda: now + 121)
    assert saver.is_due_by_time()
    saver.close()
