"""What Ray Train says of a failure, in our words: why the workers ended, and the error that matters."""

from __future__ import annotations

from typing import Any

import ray.exceptions
import ray.train
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError

from kineograph.errors import Failure, KineographError
from pipelines.train.watch.restarts import Cause, GroupFailure

CONSEQUENCES = ("gloo", "NCCL", "Connection", "Broken pipe", "TCPStore", "Socket")
"""Words of errors that a rank gets when another one is gone."""
SHORT_OF_MEMORY = ("out of memory", "can't allocate memory", "low on memory")


def explain(error: Any) -> GroupFailure:
    """What failed, in our words."""
    if isinstance(error, ray.train.PreemptionError):
        return GroupFailure("taken away", f"a machine is taken away (ranks {error.preemption_info.preempted_ranks})")
    if isinstance(error, ray.train.ControllerError):
        failure = error.controller_failure
        if isinstance(failure, WorkerGroupStartupTimeoutError):
            return GroupFailure("no room", f"there is no room for {failure.num_workers} workers now")
        if isinstance(failure, WorkerGroupStartupFailedError):
            return GroupFailure("start", "a training worker died while it started")
        return GroupFailure("ours", one_line(failure))
    rank, first = _first(error.worker_failures)
    reason = one_line(first)
    if _is_death(first):
        reason = "its process ended"
    elif _is_consequence(first):  # the worker that ended has not been noticed yet
        reason = "it lost the connection to another one"
    return GroupFailure(_cause_of(first), f"a training worker died (rank {rank}: {reason[:200]})", rank)


def as_ours(error: BaseException) -> KineographError:
    """The error of a worker that matters, as one of ours."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", None) or {}
    if not failures:
        return Failure(f"training failed: {one_line(error)[-300:]}")
    rank, first = _first(failures)
    if isinstance(first, KineographError):
        return first
    if _is_death(first):
        return Failure(
            f"the process of training worker {rank} ended, perhaps for want of memory: "
            "run the same command again to go on from the last checkpoint"
        )
    return Failure(f"a training worker failed: {type(first).__name__}: {one_line(first)[-300:]}")


def one_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())


def _cause_of(error: Exception) -> Cause:
    if isinstance(error, KineographError):
        return "ours"
    if isinstance(error, ray.exceptions.RayActorError) and error.preempted:
        return "taken away"
    if isinstance(error, MemoryError) or any(words in str(error) for words in SHORT_OF_MEMORY):
        return "memory"
    return "death" if _is_death(error) else "error"


def _first(failures: dict[int, Exception]) -> tuple[int, Exception]:
    """Rank and error of the worker that failed first: when one fails, the others fail at their next message to it."""
    originals = {rank: _original(failure) for rank, failure in sorted(failures.items())}
    return min(originals.items(), key=lambda item: _is_consequence(item[1]))


def _original(failure: Exception) -> Exception:
    """What Ray Train wrapped: an exception of ours, or the death of an actor."""
    for name in ("base_exc", "_base_exc", "health_check_failure", "failure"):
        inner = getattr(failure, name, None)
        if isinstance(inner, Exception):
            return _original(inner)
    return failure


def _is_consequence(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and any(word in str(error) for word in CONSEQUENCES)


def _is_death(error: Exception) -> bool:
    return isinstance(error, ray.exceptions.RayActorError)
