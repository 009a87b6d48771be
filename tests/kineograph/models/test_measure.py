"""What is kept for the backward pass, against counts by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kineograph.models.execution import selective_contexts
from kineograph.models.measure import activation_bytes, saved_for_backward

B, D, H = 5, 8, 32


def test_a_linear_layer_keeps_its_input():
    layer, x = nn.Linear(D, H), torch.randn(B, D)
    assert activation_bytes(lambda: layer(x).sum().backward()) == 4 * B * D  # and no weight, also not transposed


def test_a_storage_counts_once():
    x = torch.randn(B, D, requires_grad=True)
    y = x * 2  # keeps nothing: a number
    with saved_for_backward() as saved:
        (y.sin() + y.cos() + y[1:].exp().sum()).sum().backward()
    # y for sin and cos, and what exp gave.
    assert saved.bytes == 4 * (B * D + (B - 1) * D)


def test_an_mlp():
    up, down, x = nn.Linear(D, H), nn.Linear(H, D), torch.randn(B, D)
    # The input, the hidden layer before and after GELU; squaring keeps the output, the mean nothing.
    expected = 4 * B * (D + H + H + D)
    assert activation_bytes(lambda: down(F.gelu(up(x))).square().mean().backward()) == expected


def test_weights_that_autocast_made_of_others_count():
    up, down, x = nn.Linear(D, H), nn.Linear(H, D), torch.randn(B, D)

    def run():
        with torch.autocast("cpu", torch.bfloat16):
            loss = down(up(x)).sum()
        loss.backward()

    # Copies of the input and, where a gradient goes on to the hidden layer, of a weight; the hidden layer.
    assert activation_bytes(run) == 2 * (B * D + H * D + B * H)


def checkpointed(**contexts):
    up, down, x = nn.Linear(D, H), nn.Linear(H, D), torch.randn(B, D, requires_grad=True)

    def run():
        block = torch.utils.checkpoint.checkpoint(lambda x: down(F.gelu(up(x))), x * 2, use_reentrant=False, **contexts)
        block.sum().backward()

    return activation_bytes(run)


def test_a_recomputed_block_keeps_its_input():
    assert checkpointed() == 4 * B * D


def test_selective_recomputation_keeps_products_beside_autograd():
    assert checkpointed(context_fn=selective_contexts) == 4 * B * (D + H + D)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_it_is_what_was_allocated():
    layer, x = nn.Linear(1024, 1024, device="cuda"), torch.randn(4096, 1024, device="cuda")
    kept = activation_bytes(lambda: F.gelu(layer(x)).sum().backward())
    assert 2 * 4 * 4096 * 1024 <= kept < 10 * 4 * 4096 * 1024
