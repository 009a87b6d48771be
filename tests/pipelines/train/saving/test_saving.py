"""Checkpoints of a run: written beside training, whole or not at all, and kept by policy."""

import os
import signal
import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from kineograph.errors import DiskFullError
from kineograph.store.checkpoints import (
    COMPLETE,
    CONFIG,
    DIGESTS,
    Index,
    best_checkpoint,
    checkpoint_folder,
    find_fault,
    latest_checkpoint,
    list_checkpoints,
    read_config,
    read_index,
    resolve_checkpoint,
    step_of,
)
from pipelines.train.saving import saver as saving
from pipelines.train.saving.config import CheckpointConfig
from pipelines.train.saving.policy import kept_steps, prune
from pipelines.train.saving.saver import Saver
from pipelines.train.saving.state import TrainState, load_state, save_state

FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "extra-more.safetensors", CONFIG, DIGESTS)
NESTED = "vae/model.safetensors"


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


@pytest.fixture
def autoencoder(tmp_path):
    """A folder that belongs to every checkpoint."""
    folder = tmp_path / "vae"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(range(200)))
    return {"vae": folder}


@pytest.fixture
def two(make, autoencoder, tmp_path):
    """A run with checkpoints of steps 1 and 2."""
    saver = make()
    for step in (1, 2):
        saver.save(state(step), {"kind": "diffusion", "manifest_digest": "0" * 64}, autoencoder)
    saver.close()
    return tmp_path


class TestWhatIsSaved:
    def test_it_is_read_back(self, two):
        read = load_state(latest_checkpoint(two))
        assert read.step == 2
        for ours, theirs in (
            (read.weights, state(2).weights),
            (read.ema, state(2).ema),
            (read.moments, state(2).moments),
            (read.extra["more"], state(2).weights),
        ):
            assert {name: tensor.tolist() for name, tensor in ours.items()} == {
                name: tensor.tolist() for name, tensor in theirs.items()
            }

    def test_weights_need_nothing_but_safetensors(self, two):
        loaded = load_file(checkpoint_folder(two, 2) / "model.safetensors")
        assert loaded["weight"].tolist() == [2.0, 2.0, 2.0]

    def test_the_config_tells_the_step(self, two):
        config = {"kind": "diffusion", "manifest_digest": "0" * 64, "step": 1}
        assert read_config(checkpoint_folder(two, 1)) == config

    def test_folders_are_linked(self, two):
        assert (checkpoint_folder(two, 2) / NESTED).samefile(two / NESTED)

    def test_it_is_told_of(self, make):
        saver = make()
        saver.save(state(7), {}, {})
        saver.close()
        assert saver.made == [7]

    def test_what_is_there_of_the_same_step_is_replaced(self, make, tmp_path):
        folder = checkpoint_folder(tmp_path, 3)
        folder.mkdir(parents=True)
        for name in ("model.safetensors", "extra-old.safetensors", COMPLETE):
            (folder / name).write_bytes(b"half")
        saver = make()
        saver.save(state(3), {}, {})
        saver.close()
        assert find_fault(folder) == ""
        assert set(load_state(folder).extra) == {"more"}


class TestBesideTraining:
    @pytest.fixture
    def gate(self, monkeypatch):
        """Saving waits for ``may``; ``began`` says that it waits."""
        may, began = threading.Event(), threading.Event()

        def slow(*arguments):
            began.set()
            assert may.wait(60)
            return save_state(*arguments)

        monkeypatch.setattr(saving, "save_state", slow)
        yield may, began
        may.set()

    def test_training_goes_on_while_it_is_written(self, make, gate, tmp_path):
        may, began = gate
        saver = make()
        saver.save(state(1), {}, {})  # returns, though nothing is written
        saver.record(1, {"validation_loss": 1.0})
        assert not saver.is_due_by_time()
        assert began.wait(60)
        assert (saver.made, latest_checkpoint(tmp_path)) == ([], None)
        may.set()
        saver.close()
        assert saver.made == [1]
        assert read_index(tmp_path).metrics == {1: {"validation_loss": 1.0}}

    def test_one_is_written_at_a_time_and_none_is_lost(self, make, gate):
        may, began = gate
        saver = make(keep=9)
        saver.save(state(1), {}, {})
        assert began.wait(60)
        second = threading.Thread(target=saver.save, args=(state(2), {}, {}))
        second.start()
        second.join(0.2)
        assert second.is_alive(), "the next one waits"
        may.set()
        second.join(60)
        saver.close()
        assert saver.made == [1, 2]

    def test_training_is_told_when_it_waited_long(self, make, gate, monkeypatch, capsys):
        may, began = gate
        monkeypatch.setattr(saving, "LONG_S", 0.1)
        saver = make()
        saver.save(state(1), {}, {})
        assert began.wait(60)
        threading.Timer(0.3, may.set).start()
        saver.save(state(2), {}, {})
        saver.close()
        assert "at step 2 for the checkpoint before" in capsys.readouterr().err

    def test_waiting_is_until_it_is_on_disk(self, make, tmp_path):
        saver = make()
        saver.save(state(1), {}, {})
        saver.wait()
        assert find_fault(checkpoint_folder(tmp_path, 1)) == ""
        saver.close()

    def test_closing_twice_does_no_harm(self, make):
        saver = make()
        saver.close()
        saver.close()

    def test_it_is_due_by_the_clock(self, make, monkeypatch):
        saver = make(minutes=2)
        assert not saver.is_due_by_time()
        now = saving.time.monotonic()
        monkeypatch.setattr(saving.time, "monotonic", lambda: now + 121)
        assert saver.is_due_by_time()
        saver.save(state(1), {}, {})
        assert not saver.is_due_by_time()
        saver.close()


class TestWhatGoesWrong:
    @pytest.fixture
    def failed(self, make, monkeypatch):
        """A saver whose first checkpoint could not be written, and that has noticed."""

        def full(*_):
            raise DiskFullError("the disk is full")

        saver = make()
        monkeypatch.setattr(saving, "save_state", full)
        saver.save(state(1), {}, {})
        saver._asked[-1].exception(60)
        monkeypatch.undo()
        return saver

    @pytest.mark.parametrize(
        "call",
        [
            lambda saver: saver.save(state(2), {}, {}),
            lambda saver: saver.is_due_by_time(),
            lambda saver: saver.wait(),
            lambda saver: saver.close(),
        ],
        ids=["save", "is_due_by_time", "wait", "close"],
    )
    def test_it_is_raised_at_the_next_call_and_once(self, failed, call):
        with pytest.raises(DiskFullError):
            call(failed)
        failed.close()

    def test_a_full_disk_is_one_line_and_leaves_no_part_of_it(self, tmp_path):
        """In a process of its own: the kernel refuses what is beyond a limit as it does on a full disk."""
        done = subprocess.run(
            [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True, cwd=os.getcwd()
        )
        assert done.stdout.startswith("the disk is full at ")
        assert done.stdout.count("\n") == 1
        assert steps_of(tmp_path) == [1]
        assert step_of(resolve_checkpoint(tmp_path)) == 1


FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from kineograph.errors import DiskFullError
from pipelines.train.saving.config import CheckpointConfig
from pipelines.train.saving.saver import Saver
from pipelines.train.saving.state import TrainState

def state(step, size):
    return TrainState(step, {"weight": torch.zeros(size)}, {}, {})

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
saver = Saver(Path(sys.argv[1]), CheckpointConfig(keep=1), lambda folder: None)
saver.save(state(1, 100), {}, {})
saver.save(state(2, 100_000), {}, {})
try:
    saver.close()
except DiskFullError as error:
    print(error)
"""


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


class TestDamage:
    @pytest.mark.parametrize("name", [*FILES, NESTED])
    @pytest.mark.parametrize("damage", [flip, cut, lambda path: path.unlink()], ids=["flip", "cut", "remove"])
    def test_a_damaged_one_is_skipped_with_its_name_and_the_one_before_used(self, two, capsys, name, damage):
        path = checkpoint_folder(two, 2) / name
        data = path.read_bytes()
        path.unlink()  # what is linked has its bytes in common with the one before
        path.write_bytes(data)
        damage(path)
        assert step_of(latest_checkpoint(two)) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"skipping checkpoint {checkpoint_folder(two, 2)}: ")
        assert name in said or name == DIGESTS  # which may still be readable, and tell of other files
        assert said.count("\n") == 1

    def test_a_killed_save_is_as_none(self, tmp_path):
        """SIGKILL in the middle of a save: the checkpoint before it is used, and the next save clears what is left."""
        writer = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=os.getcwd()
        )
        assert writer.stdout.readline() == "writing\n"
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        assert steps_of(tmp_path) == [1, 2]
        assert (checkpoint_folder(tmp_path, 2) / "ema.safetensors").exists()
        assert step_of(resolve_checkpoint(tmp_path)) == 1
        assert load_state(latest_checkpoint(tmp_path)).weights["weight"].tolist() == [1.0, 1.0, 1.0]

        saver = Saver(tmp_path, CheckpointConfig(), lambda folder: None)
        saver.save(state(2), {}, {})
        saver.close()
        assert step_of(latest_checkpoint(tmp_path)) == 2

    def test_damaged_ones_beyond_it_do_not_count_among_those_kept(self, make, tmp_path):
        """A run that goes on from step 10, since 20 and 30 are damaged, must not lose 10 and 15 for their sake."""
        saver = make(keep=9)
        for step in (10, 20, 30):
            saver.save(state(step), {}, {})
        saver.close()
        for step in (20, 30):
            flip(checkpoint_folder(tmp_path, step) / "model.safetensors")
        assert step_of(latest_checkpoint(tmp_path)) == 10
        saver = make(keep=2)
        saver.save(state(15), {}, {})
        saver.close()
        assert steps_of(tmp_path) == [10, 15]
        assert step_of(latest_checkpoint(tmp_path)) == 15


KILLED = """
import sys, time
from pathlib import Path
from kineograph.store.commit import committed
from pipelines.train.saving import state as states
from pipelines.train.saving.config import CheckpointConfig
from pipelines.train.saving.saver import Saver
from tests.pipelines.train.saving.test_saving import state

saver = Saver(Path(sys.argv[1]), CheckpointConfig(), lambda folder: None)
saver.save(state(1), {}, {})
saver.wait()
write = states.save_file

def slow(tensors, path):
    if "optimizer" in path.name:
        print("writing", flush=True)
        path.write_bytes(b"half")
        time.sleep(600)
    write(tensors, path)

states.save_file = slow
saver.save(state(2), {}, {})
saver.wait()
"""


FOUND = {
    10: {"validation_loss": 3.0, "accuracy": 0.1},
    20: {"validation_loss": 1.0, "accuracy": 0.2},
    30: {"validation_loss": 2.0, "accuracy": 0.9},
    40: {"validation_loss": float("nan"), "accuracy": 0.3},
}


class TestPolicy:
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
            ({"keep": 1, "keep_best": 9}, {10, 20, 30, 50}),
            ({"keep": 1, "keep_best": 1, "keep_every": 40}, {20, 40, 50}),
        ],
    )
    def test_it_says_which_stay(self, config, kept):
        index = Index(metrics=FOUND)
        assert kept_steps([10, 20, 30, 40, 50], index, CheckpointConfig(**config)) == kept

    @given(steps=st.sets(st.integers(1, 50)), keep=st.integers(1, 5), best=st.integers(0, 3), every=st.integers(0, 7))
    def test_the_newest_always_stays(self, steps, keep, best, every):
        index = Index(metrics={step: {"validation_loss": float(step % 5)} for step in steps})
        kept = kept_steps(steps, index, CheckpointConfig(keep=keep, keep_best=best, keep_every=every))
        assert kept <= steps
        assert not steps or max(steps) in kept

    def test_of_equal_ones_the_later_is_better(self):
        index = Index(metrics={step: {"validation_loss": 1.0} for step in (1, 2, 3)})
        assert kept_steps([1, 2, 3, 4], index, CheckpointConfig(keep=1, keep_best=1)) == {3, 4}

    def test_a_better_one_outlives_those_after_it(self, make, tmp_path):
        saver = make(keep=1, keep_best=1)
        for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 4.0)):
            saver.save(state(step), {}, {})
            saver.record(step, {"validation_loss": loss})
        saver.close()
        assert steps_of(tmp_path) == [2, 4]
        assert step_of(best_checkpoint(tmp_path)) == 2
        assert step_of(resolve_checkpoint(f"{tmp_path}@best")) == 2
        assert step_of(resolve_checkpoint(tmp_path)) == 4

    def test_what_was_best_goes_when_a_better_one_is_known(self, make, tmp_path):
        saver = make(keep=1, keep_best=1, best="-accuracy")
        for step, accuracy in ((1, 0.5), (2, 0.4), (3, 0.9)):
            saver.save(state(step), {}, {})
            saver.record(step, {"accuracy": accuracy})
        saver.wait()
        assert steps_of(tmp_path) == [3]
        saver.close()

    def test_what_was_found_outlives_a_kill(self, make, tmp_path):
        first = make(keep=1, keep_best=1)
        first.save(state(1), {}, {})
        first.record(1, {"validation_loss": 1.0})
        first.record(1, {"validation_psnr": 30.0})
        first.wait()  # and nothing more: it is killed
        saver = make(keep=1, keep_best=1)
        for step in (2, 3):
            saver.save(state(step), {}, {})
            saver.record(step, {"validation_loss": float(step)})
        saver.close()
        assert steps_of(tmp_path) == [1, 3]
        assert read_index(tmp_path).metrics[1] == {"validation_loss": 1.0, "validation_psnr": 30.0}

    def test_a_validation_between_checkpoints_changes_nothing(self, make, tmp_path):
        saver = make(keep=1, keep_best=1)
        saver.save(state(1), {}, {})
        saver.record(1, {"validation_loss": 2.0})
        saver.record(2, {"validation_loss": 1.0})
        saver.save(state(3), {}, {})
        saver.close()
        assert steps_of(tmp_path) == [1, 3]

    def test_what_a_killed_save_left_goes(self, make, tmp_path):
        saver = make(keep=9)
        for step in (10, 20, 30):
            saver.save(state(step), {}, {})
        saver.close()
        (checkpoint_folder(tmp_path, 20) / COMPLETE).unlink()
        prune(tmp_path, CheckpointConfig(keep=2), newest=30)
        assert steps_of(tmp_path) == [10, 30]

    def test_one_that_is_being_copied_stays_for_now(self, make, tmp_path):
        saver = make(keep=9)
        for step in (10, 20, 30):
            saver.save(state(step), {}, {})
        saver.close()
        prune(tmp_path, CheckpointConfig(keep=1), newest=30, spare=10)
        assert steps_of(tmp_path) == [10, 30]


class TestConfig:
    def test_a_relative_place_is_refused(self):
        with pytest.raises(ValueError, match="path from the root on"):
            CheckpointConfig(upload="copies/run")

    def test_a_scheme_that_is_not_known_is_refused(self):
        with pytest.raises(ValueError, match="scheme 'ftp'"):
            CheckpointConfig(upload="ftp://host/run")

    def test_credentials_are_refused(self):
        with pytest.raises(ValueError, match="is a credential"):
            CheckpointConfig(upload="s3://bkt/run", storage_options={"secret": "x"})
