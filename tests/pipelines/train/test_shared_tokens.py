"""Two ranks that share the tokens of each clip take the steps of one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kineograph.errors import UserError
from kineograph.store.checkpoints import checkpoint_folder
from pipelines.train.pipeline import plan
from pipelines.train.registry import open_kind, parse_train_recipe
from tests.pipelines.train.tiny_dataset import STILLS, VAE, VIDEOS, make_dataset

STEPS = 4
RECIPE = {
    "steps": STEPS,
    "model": {"width": 32, "depth": 2, "heads": 2},
    "vae": VAE,
    "batch": {"videos": 3, "images": 3, "packs": 2},
    "optimizer": {"lr": 1e-3, "warmup_steps": 1},
    "data": {"validation_share": 0},
    "tracking": {"log_every": 1},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data"), buckets=(VIDEOS, STILLS))


def trained(folder, data, world, **parts):
    """The run's metrics and averaged weights, trained by ``world`` ranks."""
    kind = open_kind(parse_train_recipe({**RECIPE, **parts}), data, folder / "train")
    kind.run.mkdir(parents=True)
    kind.prepare()
    job = folder / "job.json"
    job.write_text(json.dumps({"config": kind.config.model_dump(mode="json"), "run": str(kind.run), "data": str(data)}))
    script = Path(__file__).with_name("worker_ranks.py")
    arguments = [[sys.executable, script, str(rank), str(world), folder, job] for rank in range(world)]
    ranks = [subprocess.Popen(a, stderr=subprocess.PIPE, text=True) for a in arguments]
    errors = [rank.communicate(timeout=200)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * world, errors[0][-3000:]
    metrics = [json.loads(line) for line in (kind.run / "metrics.jsonl").read_text().splitlines()]
    return metrics, load_file(checkpoint_folder(kind.run, STEPS) / "ema.safetensors")


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("alone"), data, 1)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_two_ranks_that_share_clips_take_the_steps_of_one(data, alone, tmp_path, stage):
    steps, weights = alone
    workers = {"count": 2, "sequence_parallel": 2}
    shared, theirs = trained(tmp_path / "shared", data, 2, workers=workers, deepspeed={"zero_stage": stage})
    for name in ("loss", "gradient_norm"):
        assert [row[name] for row in shared] == pytest.approx([row[name] for row in steps], rel=1e-5)
    assert [row["clips"] for row in shared] == [row["clips"] for row in steps]
    torch.testing.assert_close(theirs, weights, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "model", [{"layout": "full", "width": 32, "heads": 2}, {"preset": "dit-s/2", "condition": "text"}]
)
def test_what_cannot_share_is_refused(data, tmp_path, model):
    config = parse_train_recipe({**RECIPE, "model": model, "workers": {"count": 2, "sequence_parallel": 2}})
    with pytest.raises(UserError, match=r"set workers\.sequence_parallel=1"):
        plan(config, data, tmp_path / "run")
