"""The engine on two ranks (engine_ranks.py): what one ZeRO stage saved goes on under any other."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

WORLD = 2
STAGES = (0, 1, 2)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """What the ranks wrote, by name: weights, moments, and the norms of the gradients on the way."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("engine_ranks.py")
    logs = [open(folder / f"{rank}.log", "w+") for rank in range(WORLD)]  # noqa: SIM115
    ranks = [
        subprocess.Popen([sys.executable, script, str(rank), str(WORLD), folder], stdout=log, stderr=log)
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [rank.wait(timeout=150) for rank in ranks]
    finally:
        for rank, log in zip(ranks, logs, strict=True):
            rank.kill()
            rank.wait()
            log.close()
    assert codes == [0] * WORLD, (folder / "0.log").read_text()[-3000:]
    return {path.stem: load_file(path) for path in folder.glob("*.safetensors")}


def assert_equal(ours, theirs, tolerance):
    assert ours.keys() == theirs.keys()
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


@pytest.mark.parametrize("stage", STAGES)
def test_loading_gives_back_what_was_saved(walked, stage):
    assert_equal(walked[f"loaded {stage}"], walked["at 10"], 0)


@pytest.mark.parametrize("stage", STAGES)
def test_ten_and_ten_steps_are_twenty(walked, stage):
    assert_equal(walked[f"resumed {stage}"], walked[f"straight {stage}"], 1e-6)


@pytest.mark.parametrize("stage", [1, 2])
def test_every_stage_takes_the_same_steps(walked, stage):
    assert_equal(walked[f"straight {stage}"], walked["straight 0"], 1e-6)


def test_going_on_under_the_same_stage_gives_the_same_bits(walked):
    assert_equal(walked["resumed 2"], walked["straight 2"], 0)


def test_moments_are_saved_under_the_names_of_the_weights(walked):
    names = ["up.weight", "up.bias", "down.weight"]
    expected = {f"{moment}.{name}" for name in names for moment in ("exp_avg", "exp_avg_sq")}
    assert {name for name in walked["at 10"] if name.startswith("exp_avg")} == expected


@pytest.mark.parametrize("stage", [1, 2])
def test_in_bf16_it_takes_nearly_the_same_steps(walked, stage):
    """Weights move by up to 0.01 a step; bf16 has 8 bits."""
    assert_equal(walked[f"bf16 {stage}"], walked["straight 0"], 0.05)


@pytest.mark.parametrize("stage", [1, 2])
def test_in_bf16_it_goes_on_from_weights_in_fp32(walked, stage):
    assert_equal(walked[f"bf16 resumed {stage}"], walked[f"bf16 {stage}"], 1e-6)


def test_what_is_frozen_stays_as_it_was_also_in_bf16(walked):
    """It is 1.1, which bf16 does not have; engines that load it begin with 1.2."""
    names = [f"{name} {stage}" for name in ("straight", "loaded", "bf16", "bf16 resumed") for stage in (1, 2)]
    assert all(torch.equal(walked[name]["frozen"], torch.full((5,), 1.1)) for name in names)
