"""Which checkpoint a name means: a folder, a run's newest, its best, that of a step. And every flipped bit is found."""

import errno
import json
import shutil

import pytest

from kineograph.errors import UserError
from kineograph.store import checkpoints
from kineograph.store.checkpoints import (
    COMPLETE,
    CONFIG,
    DIGESTS,
    INDEX,
    Index,
    best_checkpoint,
    checkpoint_folder,
    find_fault,
    latest_checkpoint,
    list_checkpoints,
    parse_digests,
    read_index,
    remove_checkpoint,
    resolve_checkpoint,
    seal,
    step_of,
    write_index,
)

METRICS = {
    10: {"validation_loss": 0.2, "validation_accuracy": 0.7},
    20: {"validation_loss": 0.1, "validation_accuracy": 0.8},
    30: {"validation_loss": 0.3, "validation_accuracy": 0.9},
    40: {"validation_loss": 0.0},
}


def save(run, step):
    folder = checkpoint_folder(run, step)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(range(40)))
    (folder / CONFIG).write_text(json.dumps({"step": step}))
    seal(folder)
    return folder


@pytest.fixture
def run(tmp_path):
    """A run that was validated at the step of each of its checkpoints, and later at that of one that is gone."""
    run = tmp_path / "train"
    for step in (10, 20, 30):
        save(run, step)
    write_index(run, Index("validation_loss", METRICS))
    return run


def damage(folder):
    (folder / "model.safetensors").write_bytes(b"")


class TestBest:
    def test_it_is_what_the_recipe_says(self, run):
        assert best_checkpoint(run) == checkpoint_folder(run, 20)

    def test_another_metric_may_be_asked_for(self, run):
        assert best_checkpoint(run, "-validation_accuracy") == checkpoint_folder(run, 30)
        assert best_checkpoint(run, "validation_accuracy") == checkpoint_folder(run, 10)

    def test_a_damaged_one_is_named_and_the_next_best_is_used(self, run, capsys):
        damage(checkpoint_folder(run, 20))
        assert best_checkpoint(run) == checkpoint_folder(run, 10)
        assert capsys.readouterr().err.startswith(
            f"skipping checkpoint {checkpoint_folder(run, 20)}: the bytes of model"
        )

    def test_a_metric_that_nobody_measured_is_told_with_those_that_are(self, run):
        with pytest.raises(UserError, match="metric psnr: known are validation_accuracy, validation_loss"):
            best_checkpoint(run, "-psnr")

    def test_a_run_without_validation_says_so(self, run):
        (run / "checkpoints" / INDEX).unlink()
        with pytest.raises(UserError, match="none was validated"):
            best_checkpoint(run)

    def test_numbers_that_are_none_are_never_the_best(self):
        nan, endless = float("nan"), float("-inf")
        index = Index(
            metrics={1: {"validation_loss": nan}, 2: {"validation_loss": endless}, 3: {"validation_loss": 9.0}}
        )
        assert index.best_first([1, 2, 3, 4]) == [3]


class TestIndex:
    def test_it_is_read_back(self, run):
        assert read_index(run) == Index("validation_loss", METRICS)

    def test_numbers_that_json_does_not_know_are_left_out(self, run):
        write_index(run, Index("a", {1: {"a": float("nan"), "b": float("inf"), "c": 1.0}}))
        assert read_index(run).metrics == {1: {"c": 1.0}}

    @pytest.mark.parametrize("text", ["", "[1", "[]", "{}", '{"best": "a", "metrics": {"x": {}}}', '{"metrics": 3}'])
    def test_a_damaged_one_is_as_none(self, run, text):
        (run / "checkpoints" / INDEX).write_text(text)
        assert read_index(run) == Index()


class TestNames:
    def test_a_run_is_its_newest(self, run):
        assert resolve_checkpoint(run) == checkpoint_folder(run, 30)

    @pytest.mark.parametrize(("which", "step"), [("best", 20), ("10", 10), ("0030", 30)])
    def test_one_of_a_run(self, run, which, step):
        assert resolve_checkpoint(f"{run}@{which}") == checkpoint_folder(run, step)
        assert resolve_checkpoint(f"{run}/@{which}") == checkpoint_folder(run, step)

    def test_a_step_that_is_not_there_is_told_with_those_that_are(self, run):
        (checkpoint_folder(run, 20) / COMPLETE).unlink()
        with pytest.raises(UserError, match="no checkpoint of step 15: it has 10, 30"):
            resolve_checkpoint(f"{run}@15")

    def test_a_damaged_one_is_refused(self, run):
        damage(checkpoint_folder(run, 20))
        with pytest.raises(UserError, match="is damaged: the bytes of model"):
            resolve_checkpoint(f"{run}@20")

    @pytest.mark.parametrize("which", ["newest", "", "-1", "1.5", "²", "best "])
    def test_what_is_neither_a_step_nor_best_is_refused(self, run, which):
        with pytest.raises(UserError, match="after @ comes the step"):
            resolve_checkpoint(f"{run}@{which}")

    def test_a_run_that_is_not_there_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="no training run at"):
            resolve_checkpoint(tmp_path / "gone@best")

    def test_a_folder_may_have_the_sign_in_its_name(self, run):
        other = run.with_name("me@best")
        shutil.copytree(run, other)
        assert resolve_checkpoint(other) == checkpoint_folder(other, 30)
        assert resolve_checkpoint(f"{other}@10") == checkpoint_folder(other, 10)


class TestFaults:
    @pytest.mark.parametrize("name", ["model.safetensors", CONFIG, DIGESTS])
    def test_every_flipped_bit_is_found(self, run, name):
        folder = checkpoint_folder(run, 30)
        data = (folder / name).read_bytes()
        found = []
        for bit in range(8 * len(data)):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            (folder / name).write_bytes(flipped)
            found.append(find_fault(folder))
        assert all(found)

    @pytest.mark.parametrize("name", ["model.safetensors", CONFIG, DIGESTS])
    def test_every_cut_is_found(self, run, name):
        folder = checkpoint_folder(run, 30)
        data = (folder / name).read_bytes().rstrip(b"\n")  # behind which nothing is cut off
        found = []
        for length in range(len(data)):
            (folder / name).write_bytes(data[:length])
            found.append(find_fault(folder))
        assert all(found)

    def test_a_disk_that_cannot_read_a_file_is_a_fault(self, run, monkeypatch):
        self.fail_with(monkeypatch, errno.EIO)
        assert find_fault(checkpoint_folder(run, 30)) == f"the disk cannot read {CONFIG}"

    def test_a_file_system_that_does_not_answer_is_no_fault_of_the_checkpoint(self, run, monkeypatch):
        """Else a run would start from nothing when its network drive is away for a moment."""
        self.fail_with(monkeypatch, errno.ESTALE)
        with pytest.raises(OSError, match="away"):
            latest_checkpoint(run)

    def fail_with(self, monkeypatch, number):
        def fail(path):
            raise OSError(number, "away")

        monkeypatch.setattr(checkpoints, "sha256_file", fail)

    @pytest.mark.parametrize("name", ["../model", "/etc/passwd", "vae/../../model"])
    def test_files_outside_of_the_folder_are_not_looked_at(self, run, name):
        data = json.dumps({CONFIG: "0", name: "0"}).encode()
        with pytest.raises(ValueError, match="outside"):
            parse_digests(data)
        (checkpoint_folder(run, 30) / DIGESTS).write_bytes(data)
        assert find_fault(checkpoint_folder(run, 30)) == f"{DIGESTS} lists a file outside of the folder"


def test_a_checkpoint_is_incomplete_from_the_first_file_that_goes(run, monkeypatch):
    seen = []
    monkeypatch.setattr(shutil, "rmtree", lambda folder: seen.append((folder / COMPLETE).exists()))
    remove_checkpoint(checkpoint_folder(run, 10))
    assert seen == [False]


def test_a_removed_checkpoint_is_gone(run):
    remove_checkpoint(checkpoint_folder(run, 10))
    assert [step_of(folder) for folder in list_checkpoints(run)] == [20, 30]
