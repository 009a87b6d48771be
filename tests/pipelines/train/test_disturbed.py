"""A run that is preempted, whose newest checkpoint is damaged, that loses a worker, is told to stop by a file, is killed
whole, and whose tracking server is dead until its last start, ends as an undisturbed one."""

import json
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from kineograph.store.checkpoints import COMPLETE, checkpoint_folder, list_checkpoints, step_of
from kineograph.tracking import SPOOL_NAME
from tests.pipelines.train.conftest import STEPS, Training

UNTIL_THE_LAST = ("--set", "checkpoint.every=1000", "--set", "tracking.uri=http://127.0.0.1:9")
"""Nothing is saved but what was asked for, and no tracking server answers."""

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
    return Start(training.run, code, training.log, rows(training.run), saved_steps(training.run))


def saved_steps(run):
    return sorted(step_of(folder) for folder in list_checkpoints(run) if (folder / COMPLETE).exists())


def wait_for_start(training, number, step):
    """Until rank 0 has made more steps than ``step`` in the run's start ``number``: a restart counts as one."""

    def is_there():
        starts = json.loads((training.run / "train.json").read_text())["starts"]
        return starts == number and len(rows(training.run)) > step

    training.wait_for(is_there, f"step {step + 1} of start {number}")


def save(training):
    """Ask for a checkpoint, and wait for it."""
    before = saved_steps(training.run)
    (training.run / "save").touch()
    training.wait_for(lambda: saved_steps(training.run) > before, "a checkpoint")


@pytest.fixture(scope="module")
def preempted(recipe, dataset, tmp_path_factory):
    """A start that was asked to save, and then got SIGTERM."""
    run = tmp_path_factory.mktemp("disturbed") / "train"
    with Training(recipe, dataset, run, *UNTIL_THE_LAST) as training:
        training.wait_for(lambda: (run / "metrics.jsonl").is_file() and rows(run), "metrics")
        save(training)
        training.process.send_signal(signal.SIGTERM)
        return ended(training)


@pytest.fixture(scope="module")
def stopped(preempted, recipe, dataset):
    """The same command again, after a bit of the newest checkpoint was flipped; a worker was killed, and when all had begun
    again it was told to stop by a file."""
    weights = checkpoint_folder(preempted.run, preempted.saved[-1]) / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    with Training(recipe, dataset, preempted.run, *UNTIL_THE_LAST) as training:
        wait_for_start(training, 2, preempted.saved[0])
        next(p for p in training.children if "RayTrainWorker" in " ".join(p.cmdline())).kill()
        wait_for_start(training, 3, preempted.saved[0])
        (preempted.run / "stop").touch()
        return ended(training)


@pytest.fixture(scope="module")
def killed(stopped, recipe, dataset):
    """The same command again; when it had saved, its whole process group was killed. Where it went on from."""
    with Training(recipe, dataset, stopped.run, *UNTIL_THE_LAST) as training:
        wait_for_start(training, 4, stopped.saved[-1])
        save(training)
        training.kill()
    return saved_steps(stopped.run)[-1]


@pytest.fixture(scope="module")
def resumed(stopped, killed, recipe, dataset):
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


def test_it_says_that_a_worker_died_and_from_where_all_go_on(preempted, stopped):
    assert f"its process ended); all start again from step {preempted.saved[0]}" in stopped.log


def test_a_file_stops_it_as_ctrl_c_does(stopped):
    assert stopped.code == 128 + signal.SIGINT, stopped.log
    assert stopped.saved[-1] == len(stopped.rows) < STEPS
    said = (
        f"stopped by the file {stopped.run / 'stop'} with {stopped.saved[-1]} steps saved; run the same command again"
    )
    assert said in stopped.log.splitlines()[-1]


def test_it_goes_on_from_there_and_nothing_that_asked_is_left(stopped, killed, resumed):
    assert stopped.saved[-1] < killed < STEPS
    assert f"starting 2 workers at step {killed}" in resumed.log
    assert [name for name in ("stop", "save") if (resumed.run / name).exists()] == []


def test_no_trace_is_shown(preempted, stopped, resumed):
    assert [start for start in (preempted, stopped, resumed) if "Traceback" in start.log] == []


def test_it_ends_well_with_the_losses_of_an_undisturbed_run(resumed, undisturbed):
    assert resumed.code == 0, resumed.log
    assert resumed.rows == rows(undisturbed.run)


@pytest.mark.parametrize("part", ["model", "ema", "optimizer", "vae/model"])
def test_it_ends_at_the_bits_of_an_undisturbed_run(resumed, undisturbed, part):
    ours, theirs = (load_file(checkpoint_folder(r.run, STEPS) / f"{part}.safetensors") for r in (resumed, undisturbed))
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def test_what_the_dead_server_missed_is_kept(preempted):
    (said,) = [line for line in preempted.log.splitlines() if "is sent when the run is started again" in line]
    assert str(preempted.run / SPOOL_NAME) in said


def test_and_sent_to_one_that_answers_as_one_run(resumed):
    client = MlflowClient(tracking_uri=f"sqlite:///{resumed.run.parent}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "kineograph"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == json.loads((resumed.run / "train.json").read_text())["mlflow"]["run_id"]
    sent = {(m.step, m.value) for m in client.get_metric_history(found.info.run_id, "loss")}
    assert sent == {(step, loss) for step, loss, *_ in resumed.rows}
    assert found.info.status == "FINISHED"
    assert not (resumed.run / SPOOL_NAME).exists()
