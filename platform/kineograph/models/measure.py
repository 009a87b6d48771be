"""What a training step keeps in memory between its forward and its backward pass, measured while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Saved:
    """Storages that were saved for the backward pass, each counted once; parameters are not among them."""

    def __init__(self) -> None:
        self._storages: dict[int, torch.UntypedStorage] = {}

    @property
    def bytes(self) -> int:
        """Of all of them."""
        return sum(storage.nbytes() for storage in self._storages.values())

    def add(self, tensor: Tensor) -> None:
        """Count the storage of ``tensor``, of which it may be a view."""
        base = tensor if tensor._base is None else tensor._base
        if base.requires_grad and base.is_leaf:
            return
        storage = tensor.untyped_storage()
        self._storages[storage._cdata] = storage  # held, so that no other can come to stand at its address


_open: list[Saved] = []


@contextmanager
def saved_for_backward() -> Iterator[Saved]:
    """Count what operations in the block save for the backward pass, as long as they are not counted elsewhere: by
    :func:`torch.utils.checkpoint.checkpoint`, which keeps inputs alone, they are saved again only in the backward pass.

    A tensor that requires gradients and was not computed counts as a parameter. What is counted is held until the block's
    result is let go.
    """
    saved = Saved()

    def pack(tensor: Tensor) -> Tensor:
        saved.add(tensor)
        return tensor

    _open.append(saved)
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield saved
    finally:
        _open.remove(saved)


def note_kept(output: object) -> None:
    """Tell of tensors that are kept for the backward pass outside of autograd's sight (execution.py)."""
    for saved in _open:
        for tensor in output if isinstance(output, list | tuple) else [output]:
            if type(tensor) is Tensor:  # and none that only stands for one while a graph is made
                saved.add(tensor)


def activation_bytes(run: Callable[[], object]) -> int:
    """What ``run``, a forward and a backward pass, takes of memory beside weights and gradients.

    On a GPU the most that was allocated at once, beyond what was there before: ``run`` is called twice, first to let
    gradients and workspaces be made. Elsewhere the bytes saved for the backward pass, in one call.
    """
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        run()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with saved_for_backward() as saved:
        run()
    return saved.bytes
