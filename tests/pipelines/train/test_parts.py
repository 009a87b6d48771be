"""How tensors are dealt to ranks, and what is filled into a part of one."""

import torch

from pipelines.train.parts import Part, dealt, fill


def test_every_rank_is_dealt_about_as_much():
    sizes = {f"{n}": 100 + n % 7 for n in range(61)}
    owners = dealt(sizes, 4)
    loads = [sum(size for name, size in sizes.items() if owners[name] == rank) for rank in range(4)]
    assert sum(loads) == sum(sizes.values())
    assert max(loads) - min(loads) <= max(sizes.values())


def test_one_large_tensor_is_alone():
    owners = dealt({"small": 3, "large": 100, "middle": 20}, 2)
    assert owners["small"] == owners["middle"] != owners["large"]


def test_a_part_is_filled_from_where_it_begins():
    values = torch.zeros(3)
    fill({"a": Part(2, values)}, {"a": torch.arange(8.0).view(2, 4), "b": torch.ones(1)})
    assert values.tolist() == [2.0, 3.0, 4.0]
