"""Run a function over items with Ray Data, aloud, and bring a worker's failure out as the one line it is."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import ray.data
from ray.exceptions import RayError

from kineograph.errors import DiskFullError, Failure, KineographError, UserError, is_disk_full
from kineograph.progress import Progress
from kineograph.ray_session import start_ray

# Items of a stage lie in at most so many blocks. A block is a Ray task of about 10 ms; up to this many each
# item is a block of its own, so that progress is seen and nothing waits behind another's long video.
MOST_BLOCKS = 512

_ERRORS: dict[str, type[KineographError]] = {e.__name__: e for e in (DiskFullError, Failure, UserError)}

Item = dict[str, Any]


def run_stage(
    label: str,
    unit: str,
    items: Sequence[Item],
    stage: Callable[[ray.data.Dataset], ray.data.Dataset],
    workers: int | None,
) -> Iterator[Item]:
    """Yield what ``stage``, a chain of maps with :class:`OnItem` functions, makes of ``items``, as it comes.

    Starts Ray with ``workers`` CPUs when it does not run yet. Raises the error for the user that a worker
    raised, or Failure when Ray gives up.
    """
    start_ray(workers)
    _quieten()
    rows = [{"item": json.dumps(item), "error": "", "message": ""} for item in items]
    dataset = stage(ray.data.from_items(rows, override_num_blocks=min(len(rows), MOST_BLOCKS)))
    try:
        with Progress(label, len(items), unit) as progress:
            for row in dataset.iter_rows():
                if row["error"]:
                    raise _ERRORS[row["error"]](row["message"])
                progress.update()
                yield json.loads(row["item"])
    except RayError as error:
        raise _as_failure(label, error) from error


class OnItem:
    """A function from item to item as one from row to row. Items travel as JSON, errors for the user as
    values."""

    def __init__(self, function: Callable[[Item], Item]) -> None:
        self.function = function

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        try:
            result = self.function(json.loads(row["item"]))
        except KineographError as error:
            kind = next(name for name, known in _ERRORS.items() if isinstance(error, known))
            return {"item": "", "error": kind, "message": str(error)}
        return {"item": json.dumps(result), "error": "", "message": ""}


def _as_failure(label: str, error: BaseException) -> KineographError:
    cause = getattr(error, "cause", None) or error.__cause__ or error
    if is_disk_full(cause) or is_disk_full(error) or "No space left on device" in str(error):
        return DiskFullError(
            "the disk is full: free some space and run the same command again, what is done is kept"
        )
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    what = lines[-1] if lines else type(cause).__name__
    return Failure(f"{label} failed in a worker: {what[:300]} (--debug shows the trace)")


def _quieten() -> None:
    """Ray Data's own bars and notices would bury the progress line."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray.data.dataset", "ray.data._internal"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
