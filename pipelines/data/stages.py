"""Run a function over items with Ray Data, aloud, and bring a worker's failure out as the one line it is."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kineograph.errors import DiskFullError, Failure, KineographError, UserError, is_disk_full
from kineograph.media.guard import stop_guarded
from kineograph.progress import Progress
from kineograph.ray_session import start_ray
from pipelines.data.times import add_times

# Items of a stage lie in at most so many blocks. A block is a Ray task of about 10 ms; up to this many each
# item is a block of its own, so that progress is seen and nothing waits behind another's long video.
MOST_BLOCKS = 512
# Items of a stage up to which this process does it itself: Ray and its workers take ten seconds to start.
MOST_ITEMS_HERE = 64

_ERRORS: dict[str, type[KineographError]] = {e.__name__: e for e in (DiskFullError, Failure, UserError)}

DISK_FULL = "the disk is full: free some space and run the same command again, what is done is kept"

Item = dict[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True)
class Resources:
    """What one item of a stage takes of the cluster."""

    cpus: float = 1.0
    gpus: float = 0.0
    at_a_time: int | None = None
    """Most items worked on at a time; None takes what the cluster has room for."""
    in_threads: bool = False
    """Whether threads can do it as well as processes: what is heavy happens in guarded children, or is short."""


def run_stage(
    run: Path,
    label: str,
    unit: str,
    items: Sequence[Item],
    function: Callable[[Item], Item],
    resources: Resources,
    workers: int | None,
) -> list[Item]:
    """What ``function`` makes of each of ``items``, in no order; its times are added to those of ``run``.

    Runs on Ray Data, and starts Ray with ``workers`` CPUs when it does not run yet; a small stage that threads can do
    runs in those of this process, where no Ray is there. Raises the error for the user that a worker raised, UserError
    when this machine lacks the GPU that is asked for or a worker does not see ``run``, or Failure when Ray gives up.
    """
    if not items:
        return []
    call = _OnItem(function, str(run.resolve()))
    answers = _here if _goes_here(items, resources) else _on_ray
    began, busy, results = time.monotonic(), 0.0, list[Item]()
    try:
        # Ray says on stdout that a worker was killed, where the answer of --json goes.
        with Progress(label, len(items), unit) as progress, redirect_stdout(sys.stderr):
            for row in answers(label, [{"item": json.dumps(item)} for item in items], call, resources, workers):
                if row["error"]:
                    raise _ERRORS[row["error"]](row["message"]) from WorkerTrace(row["trace"])
                progress.update()
                busy += row["busy_s"]
                results.append(json.loads(row["item"]))
    finally:
        add_times(run, label, len(results), time.monotonic() - began, busy)
    return results


def _goes_here(items: Sequence[Item], resources: Resources) -> bool:
    """Whether the stage is so small that it would be done before Ray has started, and no Ray runs or is named."""
    ray = sys.modules.get("ray")
    running = bool(os.environ.get("RAY_ADDRESS")) or (ray is not None and ray.is_initialized())
    return resources.in_threads and len(items) <= MOST_ITEMS_HERE and not running


def _here(
    label: str, rows: list[Row], call: Callable[[Row], Row], resources: Resources, workers: int | None
) -> Iterator[Row]:
    """``call`` on ``rows`` in threads of this process."""
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        pending = [pool.submit(call, row) for row in rows]
        try:
            for future in as_completed(pending):
                yield future.result()
        except BaseException:
            for future in pending:
                future.cancel()
            stop_guarded()  # the pool waits for its threads, and they for their children
            raise


def _on_ray(
    label: str, rows: list[Row], call: Callable[[Row], Row], resources: Resources, workers: int | None
) -> Iterator[Row]:
    """``call`` on ``rows`` in Ray's workers."""
    import ray.data
    from ray.exceptions import RayError

    start_ray(workers)
    _require_gpus(label, resources)
    _quieten()
    at_a_time = min(n for n in (resources.at_a_time, workers, len(rows)) if n is not None)
    limited = resources.at_a_time is not None or workers is not None
    dataset = ray.data.from_items(rows, override_num_blocks=min(len(rows), MOST_BLOCKS)).map(
        call,
        num_cpus=resources.cpus,
        num_gpus=resources.gpus or None,
        compute=ray.data.TaskPoolStrategy(size=at_a_time if limited else None),
    )
    try:
        yield from dataset.iter_rows()
    except RayError as error:
        raise _as_failure(label, error) from error


class WorkerTrace(Exception):
    """The trace of an exception in a worker, for --debug."""


class _OnItem:
    """A function from item to item as one from row to row. Items travel as JSON, and errors as values.

    An exception that leaves a Ray task reaches the driver as text among Ray's own; a value arrives as it is.
    """

    def __init__(self, function: Callable[[Item], Item], run: str) -> None:
        self.function, self.run = function, run

    def __call__(self, row: dict[str, str]) -> dict[str, Any]:
        began = time.monotonic()
        try:
            # Before the function makes the folder on a disk of this node's own, where nobody would find its work.
            if not Path(self.run).is_dir():
                raise UserError(
                    f"{self.run} is not there on node {socket.gethostname()}: "
                    "the run directory must be on storage that all nodes share, give such an --out"
                )
            result = self.function(json.loads(row["item"]))
        except KineographError as error:
            kind = next(name for name, known in _ERRORS.items() if isinstance(error, known))
            return _failed(kind, str(error), "")
        except Exception as error:  # noqa: BLE001 - it is raised again where the results are read
            full = is_disk_full(error)
            what = f"a worker failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            message = DISK_FULL if full else what
            kind = DiskFullError.__name__ if full else Failure.__name__
            return _failed(kind, message, traceback.format_exc())
        busy = time.monotonic() - began
        return {"item": json.dumps(result), "busy_s": busy, "error": "", "message": "", "trace": ""}


def _failed(kind: str, message: str, trace: str) -> dict[str, Any]:
    return {"item": "", "busy_s": 0.0, "error": kind, "message": message, "trace": trace}


def _require_gpus(label: str, resources: Resources) -> None:
    """Raise UserError where Ray would wait for ever. A cluster may yet start a node with a GPU; this machine does not
    grow one."""
    import ray

    if resources.gpus and not os.environ.get("RAY_ADDRESS") and not ray.cluster_resources().get("GPU"):
        raise UserError(f"{label}: this stage needs a GPU, and this machine has none: set its device to cpu")


def _as_failure(label: str, error: Exception) -> KineographError:
    """What Ray itself gave up on."""
    from ray.exceptions import OutOfDiskError

    if isinstance(error, OutOfDiskError) or "No space left on device" in str(error):
        return DiskFullError(DISK_FULL)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    what = lines[0][:300] if lines else type(error).__name__
    return Failure(f"Ray gave up on what is {label}: {what} (--debug shows the trace)")


def _quieten() -> None:
    """Ray Data's own bars and notices would bury the progress line."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray.data.dataset", "ray.data._internal"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
