"""What goes from process to process comes out as it went in, in memory of the receiver's own."""

import os
import socket
from dataclasses import dataclass

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch

from pipelines.train.loading.parcels import Parcel, receive


@dataclass(frozen=True)
class Pair:
    one: torch.Tensor
    other: object


def through(value):
    """``value`` after its way through a socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        parcel = Parcel(value)
        parcel.send(ours)
        parcel.close()
        return receive(theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (7,), (2, 3, 5)])
def test_a_tensor_arrives_as_it_was(dtype, shape):
    tensor = (torch.randn(shape) * 3).to(dtype)
    again = through(Pair(tensor, [tensor, {"a": tensor}]))
    for found in (again.one, again.other[0], again.other[1]["a"]):
        assert found.dtype == dtype
        assert torch.equal(found, tensor)


def test_what_does_not_lie_in_one_piece_arrives(tmp_path):
    tensor = torch.arange(24).reshape(2, 3, 4)
    table = pa.table({"id": ["a", None, "c"], "video": [b"12", b"", b"x" * 10**5]})
    array = np.arange(12).reshape(3, 4)
    moved, cut, rows, columns = through([tensor.movedim(0, -1), tensor[:, 1:2], table.slice(1), array.T])
    assert torch.equal(moved, tensor.movedim(0, -1))
    assert torch.equal(cut, tensor[:, 1:2])
    assert rows == table.slice(1)
    np.testing.assert_array_equal(columns, array.T)


def test_what_arrives_can_be_changed_and_the_sender_does_not_see_it():
    tensor = torch.zeros(1000)
    again = through(tensor)
    again += 1
    assert tensor.sum() == 0
    assert again.sum() == 1000


def test_a_parcel_can_be_sent_twice():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        parcel = Parcel(torch.arange(5))
        parcel.send(ours)
        parcel.send(ours)
        assert [receive(theirs).tolist() for _ in range(2)] == [[0, 1, 2, 3, 4]] * 2


def test_nothing_is_left_of_what_is_not_used_any_more():
    through(torch.zeros(10))
    before = psutil.Process().num_fds()
    kept = [through([torch.full((10**5,), number), np.full(10, number)]) for number in range(50)]
    assert [(int(tensor[-1]), int(array[-1])) for tensor, array in kept] == [(number, number) for number in range(50)]
    assert psutil.Process().num_fds() <= before + 50
    del kept
    assert psutil.Process().num_fds() == before
    assert not [name for name in os.listdir("/dev/shm") if "kineograph" in name]


def test_the_end_of_the_other_side_is_the_end():
    ours, theirs = socket.socketpair()
    with theirs:
        parcel = Parcel(list(range(1000)))
        parcel.send(ours)
        ours.close()
        assert receive(theirs) == list(range(1000))
        with pytest.raises(EOFError):
            receive(theirs)
