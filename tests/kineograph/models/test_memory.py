"""Memory of a training step's state, against counts by hand."""

import subprocess
import sys

import pytest

from kineograph.models.memory import STATE_BYTES, host_bytes, state_bytes

N = 1000
ON_ONE = {"weights": 4 * N, "gradients": 4 * N, "moments": 8 * N, "average": 4 * N}


def test_one_rank_has_it_all():
    assert state_bytes(N, N) == sum(ON_ONE.values()) == STATE_BYTES * N
    assert host_bytes(N, N, 0, 1, "none") == 0


@pytest.mark.parametrize(
    ("stage", "whole", "shared"),
    [
        (0, 16, 4),  # the average alone is shared out
        (1, 8, 4 + 8 + 4),  # and moments, and the copy of the weights that a rank updates
        (2, 4, 4 + 4 + 8 + 4),  # and gradients
        (3, 0, 4 + 4 + 4 + 8 + 4),  # and weights
    ],
)
def test_stages_share_out_more_and_more(stage, whole, shared):
    assert state_bytes(N, N, stage, ranks=4) == whole * N + shared * N // 4
    assert state_bytes(N, N, stage, ranks=3) == whole * N + -(-shared * N // 3)  # the largest part


def test_frozen_weights_are_weights_alone():
    assert state_bytes(N, 10) == 4 * N + 16 * 10
    assert state_bytes(N, 0, 3, ranks=4) == N


@pytest.mark.parametrize(
    ("stage", "offload", "device", "host"),
    [
        (1, "optimizer", 8 * N, (4 + 8 + 4) * N // 4),
        (2, "optimizer", 4 * N, (4 + 4 + 8 + 4) * N // 4),
        (3, "optimizer", 4 * N // 4, (4 + 4 + 8 + 4) * N // 4),
        (3, "parameters", 0, (4 + 4 + 4 + 8 + 4) * N // 4),
    ],
)
def test_what_is_offloaded_is_in_the_hosts_memory(stage, offload, device, host):
    assert state_bytes(N, N, stage, 4, offload) == device
    assert host_bytes(N, N, stage, 4, offload) == host
    assert device + host == state_bytes(N, N, stage, 4)


def test_it_loads_no_torch():
    code = "import sys, kineograph.models.memory; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
