"""The losses of an autoencoder over two ranks (vae_ranks.py), its discriminator's steps among them, are those of one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one rank came to, and what two did."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("vae_ranks.py")
    for world in (1, 2):
        arguments = [[sys.executable, script, str(rank), str(world), folder] for rank in range(world)]
        ranks = [subprocess.Popen(a, stderr=subprocess.PIPE, text=True) for a in arguments]
        errors = [rank.communicate(timeout=100)[1] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0] * world, errors[0][-3000:]
    return [load_file(folder / f"{world}.safetensors") for world in (1, 2)]


@pytest.mark.parametrize("what", ["losses", "gradient", "weights", "exp_avg", "steps"])
def test_two_ranks_come_to_what_one_does(found, what):
    one, two = ({name: t for name, t in f.items() if name.startswith(what)} for f in found)
    assert one
    torch.testing.assert_close(two, one, atol=1e-5, rtol=1e-4)
