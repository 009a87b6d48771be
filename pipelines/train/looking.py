"""Looking at the averaged model while training goes on: on rank 0, on a copy, without a trace in what is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pipelines.train.kinds.base import Findings, Kind


class Looking:
    """The model that is looked at. Its weights are on the CPU until they are needed."""

    def __init__(self, kind: Kind[Any]) -> None:
        self._kind = kind
        with random_numbers_kept():
            self._model = kind.build().eval()

    def __call__(self, step: int, weights: dict[str, Tensor]) -> Iterator[Findings]:
        """What each look that is due after ``step`` steps finds; ``weights`` are a state dict of :meth:`Kind.build`."""
        self._model.load_state_dict(weights)
        self._model.to(self._kind.device)
        try:
            for look in self._kind.looks(step):
                with random_numbers_kept():
                    yield look(self._model)
        finally:
            self._model.cpu()


@contextmanager
def random_numbers_kept() -> Iterator[None]:
    """Put torch's random numbers back behind the block, on the CPU and on this process's GPU."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        yield
