"""Batches are whatever a kind of training makes of clips: tensors, alone or in dataclasses, tuples, lists and dicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor


def map_tensors(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``batch`` with every tensor in it changed; what holds none of them is left as it is."""
    if isinstance(batch, Tensor):
        return change(batch)
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(batch, **{f.name: map_tensors(getattr(batch, f.name), change) for f in fields(batch) if f.init})
    if isinstance(batch, dict):
        return {key: map_tensors(value, change) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(value, change) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(map_tensors(value, change) for value in batch)
    return batch


def bytes_of(batch: Any) -> int:
    """Memory that the tensors of ``batch`` take."""
    sizes: list[int] = []
    map_tensors(batch, lambda tensor: (sizes.append(tensor.nbytes), tensor)[1])  # type: ignore[func-returns-value]
    return sum(sizes)
