"""A run that is preempted, whose newest checkpoint is damaged, whose tracking server is dead and which is told to stop by
a file, ends as an undisturbed one."""

import json
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from kineograph.store.checkpoints import checkpoint_folder, list_checkpoints, step_of
from kineograph.tracking import SPOOL_NAME
from tests.pipelines.train.conftest import STEPS, Training

DEAD = ("--set", "tracking.uri=http://127.0.0.1:9")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def rows(run):
    names = ("step", "loss", "gradient_norm", "clips")
    return [[row[n] for n in names] for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())]


@dataclass
class Start:
    """A start of `kineo train` that has ended."""

    run: Path
    code: int
    log: str
    rows: list
    saved: list


def ended(training):
    code = training.wait()
    saved = [step_of(folder) for folder in list_checkpoints(training.run)]
    return Start(training.run, code, training.log, rows(training.run), sorted(saved))


@pytest.fixture(scope="module")
def preempted(recipe, dataset, tmp_path_factory):
    """A start that was asked to save, and then got SIGTERM."""
    run = tmp_path_factory.mktemp("stopped") / "train"
    with Training(recipe, dataset, run, "--set", "checkpoint.every=1000", *DEAD) as training:
        training.wait_for(lambda: (run / "metrics.jsonl").is_file() and rows(run), "metrics")
        (run / "save").touch()
        training.wait_for_step(1)
        training.process.send_signal(signal.SIGTERM)
        return ended(training)


def has_begun_again(preempted):
    starts = json.loads((preempted.run / "train.json").read_text())["starts"]
    return starts == 2 and len(rows(preempted.run)) > preempted.saved[0]


@pytest.fixture(scope="module")
def stopped(preempted, recipe, dataset):
    """The same command again, after a bit of the newest checkpoint was flipped; it was told to stop by a file."""
    weights = checkpoint_folder(preempted.run, preempted.saved[-1]) / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    with Training(recipe, dataset, preempted.run, "--set", "checkpoint.every=1000", *DEAD) as training:
        training.wait_for(lambda: has_begun_again(preempted), "a step more")
        (preempted.run / "stop").touch()
        return ended(training)


@pytest.fixture(scope="module")
def resumed(stopped, recipe, dataset):
    """The same command again, with a tracking server that answers."""
    with Training(recipe, dataset, stopped.run) as training:
        return ended(training)


def test_it_saves_and_leaves_as_one_that_was_terminated(preempted):
    assert preempted.code == 128 + signal.SIGTERM, preempted.log
    assert len(preempted.saved) == 2
    assert preempted.saved[-1] == len(preempted.rows) < STEPS


def test_it_says_how_to_go_on(preempted):
    said = f"stopped by SIGTERM with {preempted.saved[-1]} steps saved; run the same command again to go on"
    assert said in preempted.log.splitlines()[-1]


def test_the_damaged_checkpoint_is_named_and_the_one_before_it_used(preempted, stopped):
    asked, last = preempted.saved
    assert f"skipping checkpoint {checkpoint_folder(stopped.run, last)}: the bytes of model.safetensors" in stopped.log
    assert f"starting 2 workers at step {asked}" in stopped.log


def test_a_file_stops_it_as_ctrl_c_does(stopped):
    assert stopped.code == 128 + signal.SIGINT, stopped.log
    assert stopped.saved[-1] == len(stopped.rows) < STEPS
    said = (
        f"stopped by the file {stopped.run / 'stop'} with {stopped.saved[-1]} steps saved; run the same command again"
    )
    assert said in stopped.log.splitlines()[-1]


def test_it_goes_on_from_there_and_nothing_that_asked_is_left(stopped, resumed):
    assert f"starting 2 workers at step {stopped.saved[-1]}" in resumed.log
    assert [name for name in ("stop", "save") if (resumed.run / name).exists()] == []


def test_it_ends_at_the_bits_of_an_undisturbed_run(resumed, undisturbed):
    assert resumed.code == 0, resumed.log
    assert resumed.rows == rows(undisturbed.run)
    for part in ("model", "ema", "optimizer"):
        ours, theirs = (
            load_file(checkpoint_folder(run, STEPS) / f"{part}.safetensors") for run in (resumed.run, undisturbed.run)
        )
        assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def test_what_the_dead_server_missed_is_kept(preempted):
    (said,) = [line for line in preempted.log.splitlines() if "is sent when the run is started again" in line]
    assert str(preempted.run / SPOOL_NAME) in said


def test_and_sent_to_one_that_answers(resumed):
    client = MlflowClient(tracking_uri=f"sqlite:///{resumed.run.parent}/mlflow.db")
    run_id = json.loads((resumed.run / "train.json").read_text())["mlflow"]["run_id"]
    sent = {(m.step, m.value) for m in client.get_metric_history(run_id, "loss")}
    assert sent == {(step, loss) for step, loss, *_ in resumed.rows}
    assert client.get_run(run_id).info.status == "FINISHED"
    assert not (resumed.run / SPOOL_NAME).exists()
