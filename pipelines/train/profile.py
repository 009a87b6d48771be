"""A trace of single steps, on demand: where the time of a step goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from kineograph.progress import say
from kineograph.store.commit import committed

ASKED = "profile-next"
"""A file in the run directory that asks for a trace of the next step."""


@contextmanager
def profiled(run: Path, step: int, steps: Sequence[int], rank: int) -> Iterator[None]:
    """Write a trace of the block, step ``step`` on this rank, where ``steps`` or the file ASKED say so. It is JSON for
    Perfetto (ui.perfetto.dev) or chrome://tracing."""
    asked = rank == 0 and (run / ASKED).exists()
    if step not in steps and not asked:
        yield
        return
    (run / ASKED).unlink(missing_ok=True)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    with profile(activities=activities, record_shapes=True) as trace:
        yield
    path = run / "profile" / f"step-{step:08d}-rank-{rank}.json"
    with committed(path, durable=False) as temp:
        trace.export_chrome_trace(str(temp))
    say(f"trace of step {step} on rank {rank}: {path}")
