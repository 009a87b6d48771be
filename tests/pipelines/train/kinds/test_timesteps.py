"""Importance-sampled timesteps in training: one history on all ranks, kept in checkpoints, and a mean that stays."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kineograph.diffusion.processes import build_process, parse_diffusion
from pipelines.train.kinds.diffusion.timesteps import Timesteps, Told

N = 4


def timesteps(kind="importance"):
    config = parse_diffusion({"kind": "gaussian", "schedule": "cosine", "steps": N, "timesteps": kind})
    return Timesteps(config, build_process(config))


def normals(count, seed=0):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def taught(count=400):
    """Told that timestep t loses t + 1."""
    ours = timesteps()
    drawn = ours.draw(normals(count), 64, 3).timesteps
    ours.tell(Told("whole", tuple(range(count)), drawn, drawn + 1.0))
    ours.learn(count)
    return ours


def test_all_ranks_have_the_history_of_one(tmp_path):
    script = Path(__file__).with_name("timesteps_ranks.py")
    for world in (1, 2):
        arguments = [[sys.executable, script, str(rank), str(world), tmp_path] for rank in range(world)]
        ranks = [subprocess.Popen(a, stderr=subprocess.PIPE, text=True) for a in arguments]
        errors = [rank.communicate(timeout=100)[1] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0] * world, errors[0][-3000:]
    one, *two = (load_file(tmp_path / f"{name}.safetensors") for name in ("1-0", "2-0", "2-1"))
    assert int(one["seen"].min()) > 100
    assert all(torch.equal(rank[name], one[name]) for rank in two for name in ("losses", "seen"))


def test_what_loses_more_is_drawn_more_and_weighs_less():
    drawn = taught().draw(normals(20_000, seed=1), 64, 3)
    share = drawn.timesteps.bincount(minlength=N) / 20_000
    torch.testing.assert_close(share, torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.01, rtol=0)
    # What is minimised keeps its mean: that of 1, 2, 3 and 4.
    assert float((drawn.weights * (drawn.timesteps + 1)).mean()) == pytest.approx(2.5, abs=0.01)


def test_a_run_goes_on_with_its_history():
    ours, resumed = taught(), timesteps()
    resumed.load(ours.state())
    for one, other in zip(ours.draw(normals(50), 64, 3), resumed.draw(normals(50), 64, 3), strict=True):
        assert torch.equal(one, other)


def test_uniform_timesteps_have_no_history_and_weigh_one():
    ours = timesteps("uniform")
    drawn = ours.draw(normals(50), 64, 3)
    ours.tell(Told("whole", tuple(range(50)), drawn.timesteps, drawn.timesteps + 1.0))
    ours.learn(50)
    assert ours.state() == {}
    assert torch.equal(drawn.weights, torch.ones(50))
