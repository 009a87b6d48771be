"""The only file that knows Ray Train: start the workers, restart them when one dies, hand back the error that matters."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from kineograph.errors import Failure, KineographError
from pipelines.train.config import WorkersConfig


def run_workers(job: dict[str, Any], workers: WorkersConfig, run: Path) -> None:
    """Run ``loop.train_worker(job)`` on ``workers.count`` ranks; Ray must be up. Raises Failure when they fail."""
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
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _cause(error) from error


def _worker(job: dict[str, Any]) -> None:
    os.dup2(2, 1)  # what libraries print here is a log: the driver's stdout is for its facts
    from pipelines.train.loop import train_worker

    train_worker(job)


def _cause(error: BaseException) -> KineographError:
    """The first error of a worker, as one of ours."""
    failures = getattr(error, "worker_failures", None) or {}
    for _, failure in sorted(failures.items()):
        original = getattr(failure, "base_exc", None) or getattr(failure, "_base_exc", None) or failure
        if isinstance(original, KineographError):
            return original
        text = " ".join(str(original).split())
        return Failure(f"a training worker failed: {type(original).__name__}: {text[-300:]}")
    return Failure(f"training failed: {' '.join(str(error).split())[-300:]}")
