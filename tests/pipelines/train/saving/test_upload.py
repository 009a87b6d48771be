"""Copies of checkpoints in an object store or a folder: made beside training, whole, and enough to go on elsewhere."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from kineograph.errors import DiskFullError, Failure, UserError
from kineograph.store.checkpoints import (
    COMPLETE,
    CONFIG,
    DIGESTS,
    best_checkpoint,
    checkpoint_folder,
    find_fault,
    latest_checkpoint,
    list_checkpoints,
    step_of,
)
from pipelines.train.saving.config import CheckpointConfig
from pipelines.train.saving.depot import Depot
from pipelines.train.saving.fetch import fetch_latest, prepare_upload
from pipelines.train.saving.saver import Saver
from pipelines.train.saving.state import TrainState, load_state
from pipelines.train.saving.upload import Mirror, upload_missing


def state(step):
    numbers = {"weight": torch.full((3,), float(step))}
    return TrainState(step, numbers, numbers, {"exp_avg.weight": torch.zeros(3)}, {"more": numbers})


def steps_of(run):
    return [step_of(folder) for folder in list_checkpoints(run)]


@pytest.fixture(params=["s3", "folder"])
def place(request, tmp_path):
    """Where to upload to, as a part of a recipe."""
    if request.param == "folder":
        return {"upload": str(tmp_path / "copies")}
    _, options = request.getfixturevalue("s3")
    return {"upload": f"s3://bkt/{tmp_path.name}/run", "storage_options": options}


@pytest.fixture
def folder_place(tmp_path):
    return {"upload": str(tmp_path / "copies")}


@pytest.fixture
def run(tmp_path):
    """A run with an autoencoder, and files beside its checkpoints."""
    run = tmp_path / "train"
    (run / "vae").mkdir(parents=True)
    (run / "vae" / "model.safetensors").write_bytes(b"autoencoder")
    (run / "costs.json").write_text('{"source": "measured"}')
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    (run / "tracking-spool.jsonl").write_text("{}\n")
    (run / "stop").write_text("{}")
    return run


def train(run, steps, config, found=None):
    """Save at ``steps``, and record what was found."""
    saver = Saver(run, config, lambda folder: None)
    for step in steps:
        saver.save(state(step), {"kind": "diffusion"}, {"vae": run / "vae"})
        if found:
            saver.record(step, {"validation_loss": found[step]})
    saver.close()
    return saver


def depot(place):
    return Depot(place["upload"], place.get("storage_options", {}))


def config_of(place, **settings):
    return CheckpointConfig(**place, **settings)


class TestCopies:
    def test_what_the_run_keeps_is_there(self, run, place):
        train(run, (1, 2, 3), config_of(place, keep=2))
        assert depot(place).steps() == [2, 3]
        names = depot(place).names("checkpoints/step-00000003")
        assert names == sorted(
            [
                COMPLETE,
                CONFIG,
                DIGESTS,
                "ema.safetensors",
                "extra-more.safetensors",
                "model.safetensors",
                "optimizer.safetensors",
                "vae/model.safetensors",
            ]
        )
        assert depot(place).names("checkpoints/step-00000001") == []

    def test_the_best_is_kept_there_too(self, run, folder_place):
        train(run, (1, 2, 3), config_of(folder_place, keep=1, keep_best=1), {1: 0.1, 2: 0.3, 3: 0.2})
        assert depot(folder_place).steps() == [1, 3]

    def test_what_else_is_needed_goes_along_and_nothing_more(self, run, folder_place):
        train(run, (1,), config_of(folder_place))
        others = {name for name in depot(folder_place).names() if "/" not in name}
        assert others == {"costs.json", "metrics.jsonl"}

    def test_it_is_named_in_mlflow(self, run, folder_place):
        told = []

        class Log:
            def __getattr__(self, name):
                return lambda *arguments, **_: told.append((name, *arguments))

        saver = Saver(run, config_of(folder_place), lambda folder: None, Log())
        saver.save(state(1), {"kind": "vae", "manifest_digest": "abc"}, {})
        saver.record(1, {"validation_loss": 0.5})
        saver.close()
        assert {name for name, *_ in told} == {"log_model", "keep_models", "log_model_metrics", "set_model_tags"}
        name, step, folder, params, tags = next(entry[1:] for entry in told if entry[0] == "log_model")
        assert (name, step, folder) == ("train-step-00000001", 1, checkpoint_folder(run, 1))
        assert params["kind"] == "vae"
        assert tags["manifest_digest"] == "abc"
        assert tags["sha256.model.safetensors"] == json.loads((folder / DIGESTS).read_text())["model.safetensors"]
        copy = f"{folder_place['upload']}/checkpoints/step-00000001"
        assert ("set_model_tags", name, {"copy": copy}) in told
        assert ("log_model_metrics", name, 1, {"validation_loss": 0.5}) in told

    def test_a_run_that_had_none_brings_what_it_keeps(self, run, folder_place):
        train(run, (1, 2), CheckpointConfig(keep=2))
        upload_missing(run, config_of(folder_place, keep=2))
        assert depot(folder_place).steps() == [1, 2]

    def test_one_that_was_saved_anew_is_copied_anew(self, run, place):
        train(run, (1, 2), config_of(place))
        other = TrainState(2, {"weight": torch.zeros(3)}, {}, {})
        saver = Saver(run, config_of(place), lambda folder: None)
        saver.save(other, {}, {})
        saver.close()
        ours = (checkpoint_folder(run, 2) / DIGESTS).read_bytes()
        assert depot(place).read(f"checkpoints/step-00000002/{DIGESTS}") == ours
        assert depot(place).steps() == [1, 2]

    def test_a_damaged_one_does_not_take_the_place_of_a_whole_one(self, run, folder_place, tmp_path, capsys):
        train(run, (1, 2), config_of(folder_place))
        (checkpoint_folder(run, 2) / DIGESTS).write_text("{}")
        upload_missing(run, config_of(folder_place))
        assert "is not copied: digests.json does not list its files" in capsys.readouterr().err
        assert (
            step_of(fetch_latest(folder_place["upload"], tmp_path / "new", config_of(folder_place).storage_options))
            == 2
        )


class TestTrainingGoesOn:
    def test_while_a_copy_is_made(self, run, folder_place, monkeypatch):
        """A place that takes for ever holds up neither the next save nor what is told of it."""
        may, began = threading.Event(), threading.Event()
        put = Depot.put

        def slow(self, source, name):
            if name.endswith("safetensors"):
                began.set()
                assert may.wait(60)
            put(self, source, name)

        monkeypatch.setattr(Depot, "put", slow)
        saver = Saver(run, config_of(folder_place, keep=1), lambda folder: None)
        saver.save(state(1), {}, {})
        assert began.wait(60)
        for step in (2, 3):
            saver.save(state(step), {}, {})
        saver.wait()
        assert steps_of(run) == [1, 3], "the one that is being copied is not deleted under it"
        may.set()
        saver.close()
        assert steps_of(run) == [3]
        assert depot(folder_place).steps() == [3]

    def test_when_the_place_takes_nothing_and_it_is_made_up_for(self, run, folder_place, monkeypatch, capsys):
        config = config_of(folder_place, keep=2)

        def broken(*_):
            raise OSError(5, "Input/output error")

        saver = Saver(run, config, lambda folder: None)
        with monkeypatch.context() as patch:
            patch.setattr(Depot, "put", broken)
            saver.save(state(1), {}, {})
            saver.wait()
            saver._uploads._waiting.result(60)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"checkpoints are not copied to {config.upload} now, with the next one: ")
        saver.save(state(2), {}, {})
        saver.close()
        assert depot(folder_place).steps() == [1, 2]
        assert capsys.readouterr().err == ""

    def test_what_is_missing_in_the_end_is_told(self, run, capsys):
        """A dead server. The run itself went well."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        options = {"endpoint_url": f"http://127.0.0.1:{port}", "config_kwargs": {"retries": {"max_attempts": 1}}}
        place = {"upload": "s3://bkt/dead", "storage_options": {**options, "key": "testing", "anon": False}}
        config = CheckpointConfig.model_construct(**{**CheckpointConfig().model_dump(), **place})
        place["storage_options"]["secret"] = "testing"
        train(run, (1,), config)
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("NOT copied to s3://bkt/dead are the checkpoints of steps 1: ")
        with pytest.raises(Failure, match="s3://bkt/dead"):
            upload_missing(run, config)
        assert find_fault(checkpoint_folder(run, 1)) == ""

    def test_a_full_place_is_told_in_one_line(self, run, tmp_path):
        """In a process of its own: the kernel refuses what is beyond a limit as it does on a full disk."""
        train(run, (1,), CheckpointConfig())
        done = subprocess.run(
            [sys.executable, "-c", FULL, str(run), str(tmp_path / "copies")],
            capture_output=True,
            text=True,
            check=True,
            cwd=os.getcwd(),
        )
        assert done.stdout.startswith("the disk is full at ")
        assert Depot(tmp_path / "copies").steps() == []


FULL = """
import resource, signal, sys
from pathlib import Path
from kineograph.errors import DiskFullError
from pipelines.train.saving.config import CheckpointConfig
from pipelines.train.saving.upload import upload_missing

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    upload_missing(Path(sys.argv[1]), CheckpointConfig(upload=sys.argv[2]))
except DiskFullError as error:
    print(error)
"""


class TestGoingOnElsewhere:
    def fetch(self, place, run):
        return fetch_latest(place["upload"], run, place.get("storage_options", {}))

    def test_a_new_machine_has_all_it_needs(self, run, place, tmp_path):
        train(run, (1, 2), config_of(place, keep_best=1), {1: 0.1, 2: 0.2})
        new = tmp_path / "new"
        folder = self.fetch(place, new)
        assert folder == checkpoint_folder(new, 2) == latest_checkpoint(new)
        assert load_state(folder).weights["weight"].tolist() == [2.0, 2.0, 2.0]
        assert (new / "vae" / "model.safetensors").read_bytes() == b"autoencoder"
        assert (new / "costs.json").read_text() == '{"source": "measured"}'
        assert step_of(best_checkpoint(new)) == 2  # of those that it has

    def test_and_goes_on_where_the_other_stopped(self, run, place, tmp_path):
        train(run, (1, 2), config_of(place, keep=1, keep_best=1), {1: 0.1, 2: 0.2})
        new = tmp_path / "new"
        assert prepare_upload(new, config_of(place)) == checkpoint_folder(new, 2)
        train(new, (3,), config_of(place, keep=1, keep_best=1), {3: 0.3})
        assert steps_of(new) == [2, 3], "2 is the best that it has"
        assert depot(place).steps() == [1, 2, 3], "1 is the best that is there"

    def test_a_run_that_has_a_checkpoint_goes_on_from_it(self, run, folder_place):
        train(run, (1, 2), config_of(folder_place))
        shutil.rmtree(checkpoint_folder(run, 2))
        assert self.fetch(folder_place, run) is None
        assert steps_of(run) == [1]

    def test_a_run_whose_checkpoints_are_all_damaged_gets_a_whole_one(self, run, place):
        train(run, (1, 2), config_of(place))
        for step in (1, 2):
            (checkpoint_folder(run, step) / "ema.safetensors").write_bytes(b"")
        assert self.fetch(place, run) == checkpoint_folder(run, 2)
        assert latest_checkpoint(run) == checkpoint_folder(run, 2)

    def test_nothing_is_brought_where_nothing_is(self, place, tmp_path):
        assert self.fetch(place, tmp_path / "new") is None

    @pytest.mark.parametrize(
        ("name", "fault"),
        [
            ("model.safetensors", "the bytes of model.safetensors are not those that were saved"),
            (CONFIG, "the bytes of config.json are not those that were saved"),
            ("vae/model.safetensors", "the bytes of vae/model.safetensors are not those that were saved"),
            (DIGESTS, "digests.json cannot be read"),
        ],
    )
    def test_a_damaged_copy_is_named_and_the_one_before_it_is_taken(
        self, run, folder_place, tmp_path, capsys, name, fault
    ):
        train(run, (1, 2), config_of(folder_place))
        path = f"checkpoints/step-00000002/{name}"
        data = bytearray(depot(folder_place).read(path))
        data[0] ^= 0x80
        depot(folder_place).put_bytes(bytes(data), path)
        new = tmp_path / "new"
        assert self.fetch(folder_place, new) == checkpoint_folder(new, 1)
        assert steps_of(new) == [1]
        skipped = f"skipping checkpoint {folder_place['upload']}/checkpoints/step-00000002: {fault}"
        assert skipped in capsys.readouterr().err.splitlines()

    def test_a_copy_without_a_file_is_named(self, run, place, tmp_path, capsys):
        train(run, (1, 2), config_of(place))
        depot(place).remove("checkpoints/step-00000002/ema.safetensors")
        assert step_of(self.fetch(place, tmp_path / "new")) == 1
        assert "ema.safetensors is missing" in capsys.readouterr().err

    def test_a_copy_that_was_not_finished_is_as_none(self, run, place, tmp_path):
        train(run, (1, 2), config_of(place))
        depot(place).remove(f"checkpoints/step-00000002/{COMPLETE}")
        assert step_of(self.fetch(place, tmp_path / "new")) == 1

    def test_a_copy_cannot_write_elsewhere(self, run, folder_place, tmp_path, capsys):
        train(run, (1,), config_of(folder_place))
        path = f"checkpoints/step-00000001/{DIGESTS}"
        digests = json.loads(depot(folder_place).read(path))
        depot(folder_place).put_bytes(json.dumps({**digests, "../../../escaped": "0"}).encode(), path)
        assert self.fetch(folder_place, tmp_path / "new") is None
        assert "lists a file outside of the folder" in capsys.readouterr().err

    def test_a_disk_that_is_full_here_is_not_a_fault_of_the_copy(self, run, folder_place, tmp_path, monkeypatch):
        train(run, (1,), config_of(folder_place))
        new = tmp_path / "new"

        def full(self, name, target):
            raise DiskFullError("the disk is full")

        monkeypatch.setattr(Depot, "fetch", full)
        with pytest.raises(DiskFullError):
            self.fetch(folder_place, new)
        assert steps_of(new) == []


class TestWhosePlaceItIs:
    def test_the_place_of_another_run_is_refused_before_it_starts(self, run, place, tmp_path):
        train(run, (1,), config_of(place))
        other = tmp_path / "other"
        (other / "vae").mkdir(parents=True)
        train(other, (1,), CheckpointConfig())
        with pytest.raises(UserError, match="not of this run"):
            prepare_upload(other, config_of(place))

    def test_and_is_not_written_to(self, run, folder_place, tmp_path, capsys):
        train(run, (1,), config_of(folder_place))
        before = depot(folder_place).read(f"checkpoints/step-00000001/{DIGESTS}")
        other = tmp_path / "other"
        (other / "vae").mkdir(parents=True)
        train(other, (1, 2), config_of(folder_place))
        assert "not of this run" in capsys.readouterr().err
        assert depot(folder_place).steps() == [1]
        assert depot(folder_place).read(f"checkpoints/step-00000001/{DIGESTS}") == before

    def test_a_run_that_was_lost_before_its_first_copy_may_start_again(self, folder_place, tmp_path):
        assert prepare_upload(tmp_path / "lost", config_of(folder_place)) is None
        new = tmp_path / "new"
        (new / "vae").mkdir(parents=True)
        assert prepare_upload(new, config_of(folder_place)) is None
        train(new, (1,), config_of(folder_place))
        assert depot(folder_place).steps() == [1]

    def test_the_run_itself_is_no_place(self, run):
        with pytest.raises(UserError, match="is the run itself"):
            prepare_upload(run, CheckpointConfig(upload=str(run)))

    def test_a_place_that_cannot_be_written_is_found_out_before_training(self, run, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(Failure, match="cannot be"):
            prepare_upload(run, CheckpointConfig(upload=str(tmp_path / "file" / "run")))

    def test_a_bucket_that_is_not_there_is_found_out_before_training(self, run, s3):
        _, options = s3
        with pytest.raises(Failure, match="cannot be written"):
            prepare_upload(run, CheckpointConfig(upload="s3://nobucket/run", storage_options=options))

    def test_nothing_is_asked_where_nothing_is_uploaded(self, run):
        assert prepare_upload(run, CheckpointConfig()) is None
        assert upload_missing(run, CheckpointConfig()) is None


def test_a_copy_that_a_kill_cut_off_is_finished_by_the_next_start(run, folder_place, tmp_path):
    """SIGKILL in the middle of an upload: there is no marker, and a start without a new checkpoint makes up for it."""
    writer = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(run), folder_place["upload"]], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout.readline() == "copying\n"
    writer.kill()
    writer.wait()
    assert depot(folder_place).steps() == []
    assert Path(folder_place["upload"], "checkpoints/step-00000001/config.json").exists()
    saver = Saver(run, config_of(folder_place), lambda folder: None)
    saver.close()
    assert depot(folder_place).steps() == [1]
    assert Mirror(run, config_of(folder_place)).update() == [1]


KILLED = """
import sys, time
from pathlib import Path
from pipelines.train.saving.config import CheckpointConfig
from pipelines.train.saving.depot import Depot
from tests.pipelines.train.saving.test_upload import train

put = Depot.put

def slow(self, source, name):
    put(self, source, name)
    if name.endswith("config.json"):
        print("copying", flush=True)
        time.sleep(600)

Depot.put = slow
train(Path(sys.argv[1]), (1,), CheckpointConfig(upload=sys.argv[2]))
"""
