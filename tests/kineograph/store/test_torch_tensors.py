"""Torch tensors in cells: every dtype comes back as it went in, and damage is named."""

import pytest
import torch

from kineograph.store.torch_tensors import DTYPES, pack_tensor, unpack_tensor


@pytest.mark.parametrize("dtype", list(DTYPES.values()))
@pytest.mark.parametrize("shape", [(), (1,), (2, 3, 5)])
def test_a_tensor_survives_its_cell(dtype, shape):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    again = unpack_tensor(pack_tensor(tensor))
    assert again.dtype == dtype
    assert torch.equal(again, tensor)


def test_a_tensor_that_is_a_view_survives():
    tensor = torch.arange(12.0).reshape(3, 4).T[1:]
    assert torch.equal(unpack_tensor(pack_tensor(tensor)), tensor)


def test_numbers_that_are_no_latent_are_refused():
    with pytest.raises(ValueError, match="complex64"):
        pack_tensor(torch.zeros(2, dtype=torch.complex64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "object"}, "object"),
        ({"bytes": b"123"}, "3 bytes are no tensor of float16"),
        ({"shape": [2, 4]}, "of shape .2, 4."),
    ],
)
def test_a_damaged_cell_is_named(change, message):
    cell = pack_tensor(torch.zeros(2, 3, dtype=torch.float16))
    with pytest.raises(ValueError, match=message):
        unpack_tensor({**cell, **change})
