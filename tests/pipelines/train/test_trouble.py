"""What may go wrong with a run: numbers that are not finite, checkpoints and clips that are damaged, another recipe, and a
tracking server that dies."""

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from itertools import accumulate

import pytest
import torch

from kineograph.errors import UserError
from kineograph.store.checkpoints import checkpoint_folder
from kineograph.store.torch_tensors import pack_tensor
from pipelines.train.pipeline import check_resume
from tests.pipelines.train.loading.tiny_run import rewrite
from tests.pipelines.train.runs import RankFailed, Run, dies_saving, differing, not_finite_after
from tests.pipelines.train.steps import named
from tests.pipelines.train.tiny_dataset import STILLS, VAE, VIDEOS, make_dataset

STEPS = 12
RECIPE = {
    "steps": STEPS,
    "model": {"width": 32, "depth": 1, "heads": 2},
    "vae": VAE,
    "batch": {"videos": 3, "images": 3, "packs": 2},
    "optimizer": {"lr": 1e-3, "warmup_steps": 2, "max_skipped": 3},
    "data": {"validation_share": 0},
    "checkpoint": {"every": 4, "keep": 20},
    "tracking": {"log_every": 1},
}
EXACT = ("step", "loss", "gradient_norm", "clips")
DAMAGED = (f"{VIDEOS.name}-2", f"{VIDEOS.name}-5")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data"), buckets=(VIDEOS, STILLS))


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    return Run(tmp_path_factory.mktemp("straight"), RECIPE, data).train()


@pytest.fixture
def run(data, tmp_path):
    return Run(tmp_path, RECIPE, data)


def assert_same(run, straight):
    assert [run.column(name) for name in EXACT] == [straight.column(name) for name in EXACT]
    assert differing(run.state(), straight.state()) == set()


class TestNotFinite:
    def test_a_step_is_skipped_by_all_ranks_and_counted(self, run, straight):
        run.train(ill=not_finite_after(5, rank=1), checkpoint={"every": 1, "keep": 20})
        assert "step 6 is skipped: its gradient is not finite" in run.log
        assert run.column("skipped_steps") == [0] * 5 + [1] * (STEPS - 5)
        assert [math.isfinite(norm) for norm in run.column("gradient_norm")] == [step != 5 for step in range(STEPS)]
        assert differing(run.state(6), run.state(5)) == set()
        assert differing(run.state(7), run.state(6))
        # What came before it is as ever, and no clip is lost or comes twice.
        assert run.column("loss")[:5] == straight.column("loss")[:5]
        assert run.column("clips") == straight.column("clips")

        run.train(steps=STEPS + 1)
        assert run.column("skipped_steps") == [0] * 5 + [1] * (STEPS - 4)

    def test_too_many_in_a_row_stop_it_and_a_lower_rate_goes_on(self, run, straight):
        run.train(kill_at=8)
        assert run.saved() == 8
        with pytest.raises(
            RankFailed, match=r"the loss was not finite in 3 steps in a row: lower optimizer\.lr and run"
        ):
            run.train(optimizer={**RECIPE["optimizer"], "lr": 1e30}, steps=30, checkpoint={"every": 8, "keep": 20})
        assert json.loads((run.path / "train.json").read_text())["status"] == "failed"
        assert run.saved() == 8
        assert_same(run.train(), straight)


class TestDamagedCheckpoints:
    def test_they_are_named_and_the_one_before_them_is_used(self, run, straight):
        with pytest.raises(RankFailed, match=r"exit codes .*-9"):
            run.train(ill=dies_saving(12))
        cut_off, flipped, used = (checkpoint_folder(run.path, step) for step in (12, 8, 4))
        os.truncate(cut_off / "ema.safetensors", 100)
        with open(flipped / "optimizer.safetensors", "r+b") as file:
            file.seek(1000)
            (byte,) = file.read(1)
            file.seek(1000)
            file.write(bytes([byte ^ 16]))
        run.train()
        told = [line for line in run.log.splitlines() if "checkpoint" in line]
        assert told[:2] == [
            f"skipping checkpoint {cut_off}: it was not finished",
            f"skipping checkpoint {flipped}: the bytes of optimizer.safetensors are not those that were saved",
        ]
        assert json.loads((run.path / "train.json").read_text())["starts"] == 2
        assert used.is_dir()
        assert_same(run, straight)


@pytest.mark.parametrize(
    ("parts", "change"),
    [
        ({"seed": 1}, "plan.seed is 1, it was 0"),
        ({"batch": {"videos": 2, "images": 3, "packs": 2}}, "plan.videos is 2, it was 3"),
        ({"batch": {**RECIPE["batch"], "mix": {"images": 0.5}}}, "plan.mix is {'images': 0.5}, it was {}"),
        ({"data": {"validation_share": 0.1}}, "plan.validation_share is 0.1, it was 0.0"),
        ({"diffusion": {"kind": "gaussian"}}, "diffusion.kind is gaussian, it was flow"),
    ],
)
def test_another_recipe_is_refused_with_what_changed(straight, parts, change):
    with pytest.raises(UserError) as info:
        check_resume(straight.kind(**parts))
    assert str(info.value) == f"{straight.path} cannot go on from step {STEPS}: {change}; give another --out"


class TestDamagedClips:
    @pytest.fixture
    def run(self, data, tmp_path):
        """Of a dataset with two damaged clips, that goes twice through all."""
        damaged = shutil.copytree(data, tmp_path / "data")
        nothing = pack_tensor(torch.full((4, 3, 8, 8), math.nan))
        for number in (2, 5):  # DAMAGED
            rewrite(damaged, VIDEOS, number, lambda row: {**row, "latent": nothing})
        return Run(tmp_path, {**RECIPE, "steps": 6, "checkpoint": {"every": 100}}, damaged)

    def test_the_first_one_ends_the_run(self, run):
        with pytest.raises(RankFailed, match=r"clip 64x64x9-[25] of shards/64x64x9.parquet is damaged: .* not finite"):
            run.train()

    @pytest.mark.parametrize("world", [1, 2])
    def test_they_are_named_by_the_rank_that_meets_them_and_left_out_where_the_recipe_allows_it(self, run, world):
        run.train(world, data={"validation_share": 0, "skip_damaged": True})
        for clip in DAMAGED:
            assert f"clip {clip} of shards/{VIDEOS.name}.parquet is damaged: " in run.log
        assert run.column("damaged_clips") == list(accumulate(damaged_slots(run.kind(), step) for step in range(6)))
        assert run.column("damaged_clips")[-1] > 2  # again in the second epoch
        assert all(map(math.isfinite, run.column("loss")))


class TestTracking:
    @pytest.fixture
    def server(self, tmp_path):
        """Start an MLflow server, in a process group that is killed at the end of the block."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        uri = f"http://127.0.0.1:{port}"
        store = [
            "--backend-store-uri",
            f"sqlite:///{tmp_path}/server.db",
            "--artifacts-destination",
            tmp_path / "files",
        ]
        command = [sys.executable, "-m", "mlflow", "server", "--port", port, "--workers", 1, *store]

        @contextmanager
        def serving():
            process = subprocess.Popen(
                list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
            try:
                wait_for(lambda: is_up(uri))
                yield process
            finally:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

        return serving, uri

    def test_a_server_that_dies_is_told_later_and_training_is_unharmed(self, server, run, straight):
        from mlflow.tracking import MlflowClient

        serving, uri = server
        parts = {
            "tracking": {"uri": uri, "log_every": 1},
            "checkpoint": {**RECIPE["checkpoint"], "mlflow_models": False},
        }
        with serving() as process:

            def kill():
                wait_for(lambda: run.saved() >= 4)
                os.killpg(process.pid, signal.SIGKILL)

            assassin = threading.Thread(target=kill)
            assassin.start()
            run.train(**parts)
            assassin.join()
        assert_same(run, straight)
        spool = run.path / "tracking-spool.jsonl"
        assert f"what is missing is kept in {spool} and is sent when the run is started again" in run.log

        run.train(kill_at=STEPS + 4, **parts, steps=STEPS + 4)  # it is not there from the start

        with serving():
            run.train(**parts, steps=STEPS + 5)
            if spool.exists():  # the end waits for a slow server, but not for long
                run.train(**parts, steps=STEPS + 6)
            client = MlflowClient(uri)
            (found,) = client.search_runs(["0", "1"])
            sent = {m.step: m.value for m in client.get_metric_history(found.info.run_id, "loss")}
            assert sent.items() >= dict(zip(straight.column("step"), straight.column("loss"), strict=True)).items()
            assert sent[STEPS + 5] == run.column("loss")[STEPS + 4]
            assert found.info.status == "FINISHED"
        assert not spool.exists()


def damaged_slots(kind, step):
    slots = [slot for stretch in kind.plan.step(step).stretches for slot in named(kind, kind.plan.slots(stretch))]
    return sum(slot.clip_id in DAMAGED for slot in slots)


def is_up(uri):
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=1) as answer:
            return answer.status == 200
    except OSError:
        return False


def wait_for(is_there, timeout_s=200):
    end = time.monotonic() + timeout_s
    while not is_there():
        assert time.monotonic() < end
        time.sleep(0.05)
