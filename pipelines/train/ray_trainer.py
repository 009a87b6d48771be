"""The only file that knows Ray Train: start the workers, restart them when one dies, hand back the error that matters."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.exceptions
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from kineograph.errors import Failure, KineographError, UserError
from kineograph.progress import say
from pipelines.train.config import WorkersConfig


def run_workers(job: dict[str, Any], workers: WorkersConfig, run: Path) -> None:
    """Run ``loop.train_worker(job)`` on ``workers.count`` ranks; Ray must be up. Raises Failure when they fail."""
    if not os.environ.get("RAY_ADDRESS"):  # a cluster may have nodes to come
        check_room(workers, ray.cluster_resources())
    trainer = TorchTrainer(
        _worker,
        train_loop_config=job,
        torch_config=TorchConfig(backend="nccl" if workers.gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.gpu,
            # A rank computes all the time: it gets its CPUs for itself.
            resources_per_worker={"CPU": workers.cpus, **({"GPU": 1} if workers.gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=str(run.resolve()),
            failure_config=ray.train.FailureConfig(max_failures=workers.max_failures),
            callbacks=[Announcer(workers.max_failures)],
            logging_config=ray.train.LoggingConfig(log_level="CRITICAL"),  # errors are raised, or announced
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _cause(error) from error


def check_room(workers: WorkersConfig, have: Mapping[str, float]) -> None:
    """Raise UserError when ``have`` (Ray's resources) can never hold the workers: Ray would wait for ever."""
    cpus, gpus = workers.count * workers.cpus, workers.count * workers.gpu
    for need, unit, name in ((cpus, "CPU", "workers.count or workers.cpus"), (gpus, "GPU", "workers.count")):
        if need > have.get(unit, 0):
            raise UserError(
                f"{workers.count} workers need {need:g} {unit}s and this machine has {have.get(unit, 0):g}: lower {name}"
            )


def _worker(job: dict[str, Any]) -> None:
    os.dup2(2, 1)  # what libraries print here is a log: the driver's stdout is for its facts
    from pipelines.train.loop import train_worker

    train_worker(job)


class Announcer(ray.train.UserCallback):
    """Says that a worker died and what happens then. Lives in Ray Train's controller, whose stderr is the driver's."""

    def __init__(self, restarts: int) -> None:
        self._restarts = restarts

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        if self._restarts > 0:  # else the error is raised
            self._restarts -= 1
            rank, error = _first(worker_exceptions)
            reason = "its process ended" if _is_death(error) else _one_line(error)
            say(f"a training worker died (rank {rank}: {reason[:200]}); all start again from the last checkpoint")


def _cause(error: BaseException) -> KineographError:
    """The error of a worker that matters, as one of ours."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", None) or {}
    if not failures:
        return Failure(f"training failed: {_one_line(error)[-300:]}")
    rank, first = _first(failures)
    if isinstance(first, KineographError):
        return first
    if _is_death(first):
        return Failure(
            f"the process of training worker {rank} ended, perhaps for want of memory: "
            "run the same command again to go on from the last checkpoint"
        )
    return Failure(f"a training worker failed: {type(first).__name__}: {_one_line(first)[-300:]}")


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
    return isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "NCCL", "Connection"))


def _is_death(error: Exception) -> bool:
    return isinstance(error, ray.exceptions.RayActorError)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
