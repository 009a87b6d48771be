"""Row groups are kept within their memory, those used last; batches of any make have their tensors found."""

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pytest
import torch

from pipelines.train.loading.row_groups import RowGroups
from pipelines.train.loading.tensors import bytes_of, map_tensors

ROW_GROUP = pa.table({"video": [b"x" * 996]})


class Reader:
    """Row groups of 1000 bytes."""

    def __init__(self):
        self.read = Counter()
        self.broken = set()

    def row_group(self, shard, group, columns):
        self.read[shard, group] += 1
        if (shard, group) in self.broken:
            raise OSError("broken")
        return ROW_GROUP


def asked(most_bytes, keys):
    """How often each of ``keys`` is read when they are asked for one after the other."""
    reader = Reader()
    groups = RowGroups(reader, ["video"], most_bytes)
    for key in keys:
        assert groups.ask(key).result() is ROW_GROUP
    groups.close()
    return dict(reader.read)


def test_those_used_last_are_kept():
    assert ROW_GROUP.nbytes <= 1010
    a, b, c = (0, 0), (0, 1), (1, 0)
    assert asked(3100, [a, b, c, a, b, c]) == {a: 1, b: 1, c: 1}
    assert asked(2100, [a, b, a, c, a, b]) == {a: 1, b: 2, c: 1}
    assert asked(0, [a, a, b]) == {a: 2, b: 1}


def test_one_that_could_not_be_read_is_read_again():
    reader = Reader()
    groups = RowGroups(reader, ["video"], 10**6)
    reader.broken.add((0, 0))
    with pytest.raises(OSError, match="broken"):
        groups.ask((0, 0)).result()
    reader.broken.clear()
    assert groups.ask((0, 0)).result() is ROW_GROUP
    groups.close()


@dataclass(frozen=True)
class Data:
    one: torch.Tensor
    name: str
    nothing: torch.Tensor | None = None


class Named(NamedTuple):
    one: torch.Tensor
    other: list


def test_tensors_are_found_wherever_they_are():
    one = torch.ones(3)
    batch = {"a": Data(one, "name"), "b": Named(one, [one, (one, 5)]), "c": None}
    assert bytes_of(batch) == 4 * 12
    doubled = map_tensors(batch, lambda tensor: 2 * tensor)
    assert isinstance(doubled["a"], Data)
    assert isinstance(doubled["b"], Named)
    assert doubled["a"].name == "name"
    assert bytes_of(doubled) == bytes_of(batch)
    for tensor in (doubled["a"].one, doubled["b"].one, doubled["b"].other[0], doubled["b"].other[1][0]):
        assert tensor.tolist() == [2.0] * 3
    assert doubled["b"].other[1][1] == 5
    assert one.tolist() == [1.0] * 3
