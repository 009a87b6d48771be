"""Start the workers, start them again when one dies, return the error that matters.

Ray Train is known here, and its errors in watch/failures.py; nowhere else.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TextIO, cast

import ray
import ray.exceptions
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision, ScalingDecision
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy

from kineograph.errors import Failure, KineographError, UserError
from pipelines.train.watch.events import Events
from pipelines.train.watch.failures import as_ours, explain, one_line
from pipelines.train.watch.restarts import GroupFailure, Restarts, Saved, record_restart
from pipelines.train.watch.stop import StopRequest, stopped, stopped_by_signals
from pipelines.train.workers import WorkersConfig

DEATHS = ("died or was killed", "Raylet is terminated")
"""Words of what Ray prints when a process or a machine is gone, the last with its log."""


def run_workers(
    job: dict[str, Any],
    workers: WorkersConfig,
    run: Path,
    begun: int | None = None,
    work: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Run ``work(job)``, which is loop.train_worker, on ``workers.count`` ranks until it is done; Ray must be up.

    ``run`` is seen by all machines; ``begun`` is the step that it goes on from, by default that of its newest checkpoint.
    Raises Failure when the workers fail for good, Stopped when they left because a signal to this process, or RUN/stop,
    asked them to.
    """
    if not os.environ.get("RAY_ADDRESS"):  # a cluster may have nodes to come
        check_room(workers, ray.cluster_resources())
    StopRequest(run).take_back()  # of an earlier start
    saved = Saved(run, begun)
    fitting = Fitting(_trainer(work or _train, job, workers, run, saved))
    events = Events(run)
    try:
        with stopped_by_signals(run), _environment(workers), redirect_stdout(cast(TextIO, Aside())):
            fitting.start()
            while fitting.is_alive():
                fitting.join(0.2)
                events.look()
    except BaseException:
        ray.shutdown()  # at once: whoever trains here is ended with it
        raise
    left_at = StopRequest(run).facts().get("step")
    if left_at is not None or (fitting.error is not None and StopRequest(run).is_set()):
        raise stopped(run, saved.steps() if left_at is None else left_at)
    StopRequest(run).take_back()  # it came when all was done
    if isinstance(fitting.error, ray.train.TrainingFailedError):
        raise events.hang() or as_ours(fitting.error) from fitting.error
    if fitting.error is not None:
        raise fitting.error


def run_once(task: Callable[[dict[str, Any]], None], job: dict[str, Any], workers: WorkersConfig) -> None:
    """Run ``task(job)`` in a process with what one worker has, and wait for it. Raises Failure when it fails."""
    remote = ray.remote(num_cpus=workers.cpus, num_gpus=int(workers.gpu), max_retries=0)(task)
    try:
        ray.get(remote.remote(job))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, KineographError):
            raise error.cause from error
        raise Failure(f"measuring failed: {one_line(error.cause)[-300:]}") from error


class Fitting(threading.Thread):
    """``trainer.fit()`` beside the main thread, which so hears signals, and keeps Ray from answering them."""

    def __init__(self, trainer: TorchTrainer) -> None:
        super().__init__(name="fit", daemon=True)
        self._trainer = trainer
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:  # noqa: BLE001  the main thread raises it
            self.error = error


class Aside:
    """Where what Ray prints goes: to stderr, the driver's stdout is for its facts. A death is announced by us."""

    def __init__(self) -> None:
        self._is_dropped = False

    def write(self, text: str) -> int:
        """What ``print`` writes: a line, then its end."""
        if text != "\n":
            self._is_dropped = "(raylet)" in text and any(words in text for words in DEATHS)
        return len(text) if self._is_dropped else sys.stderr.write(text)

    def flush(self) -> None:
        """What stderr holds back."""
        sys.stderr.flush()


def check_room(workers: WorkersConfig, have: Mapping[str, float]) -> None:
    """Raise UserError when ``have`` (Ray's resources) can never hold the workers: Ray would wait for ever."""
    fewest = workers.fewest
    key = "count" if workers.least is None else "least"
    needs = (
        (fewest * workers.cpus, "CPU", f"workers.{key} or workers.cpus"),
        (fewest * workers.gpu, "GPU", f"workers.{key}"),
    )
    for need, unit, name in needs:
        if need > have.get(unit, 0):
            raise UserError(
                f"{fewest} workers need {need:g} {unit}s and this machine has {have.get(unit, 0):g}: lower {name}"
            )


def _trainer(
    work: Callable[[dict[str, Any]], None], job: dict[str, Any], workers: WorkersConfig, run: Path, saved: Saved
) -> TorchTrainer:
    scaling = ray.train.ScalingConfig(
        num_workers=workers.count if workers.fewest == workers.count else (workers.fewest, workers.count),
        elastic_resize_monitor_interval_s=workers.room_every_s,
        use_gpu=workers.gpu,
        # A rank computes all the time: it gets its CPUs for itself.
        resources_per_worker={"CPU": workers.cpus, **({"GPU": 1} if workers.gpu else {})},
    )
    return Trainer(
        work,
        train_loop_config=job,
        torch_config=ProcessGroup(
            backend="nccl" if workers.gpu else "gloo", timeout_s=round(workers.collective_timeout_s)
        ),
        scaling_config=scaling,
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=str(run.resolve()),
            logging_config=ray.train.LoggingConfig(log_level="CRITICAL"),  # errors are raised, or announced
        ),
        policies={
            "failure_policy": Retries(Restarts(run, workers.max_failures, saved)),
            **({"scaling_policy": Elastic(scaling, workers, run, saved)} if scaling.elasticity_enabled else {}),
        },
    )


def _train(job: dict[str, Any]) -> None:
    os.dup2(2, 1)  # what libraries print here is a log: the driver's stdout is for its facts
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train shows what any library remarks
    from pipelines.train.loop import train_worker

    train_worker(job)


@contextmanager
def _environment(workers: WorkersConfig) -> Iterator[None]:
    """What Ray Train takes from the environment alone, while the block lasts."""
    settings = {
        # Workers are asked so often whether they live; it takes each of them, and Ray's controller, a millisecond.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": min(2.0, 0.25 + workers.count / 100),
        # A process that does not answer: the ranks notice it first, unless there is but one.
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": workers.hang_timeout_s + 10,
        # What is printed is logged, and printed too where a library has put something of its own in place of stderr.
        "RAY_TRAIN_ENABLE_PRINT_PATCH": 0,
    }
    if workers.fewest < workers.count:
        # Ray may think for a while that a lost machine is there: then it asks again how many workers there is room for.
        settings["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = 10
    missing = {name: str(value) for name, value in settings.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)


class Trainer(TorchTrainer):
    """Ray Train's, with policies of ours: its own counts all failures of a run, however much was done between them."""

    def __init__(self, *arguments: Any, policies: Mapping[str, Any], **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._policies = policies

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        return super()._initialize_and_run_controller(**{**parts, **self._policies})


class ProcessGroup(TorchConfig):
    """torch.distributed as Ray Train sets it up, and not torn down: with a rank gone that may take for ever."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _Backend


class _Backend(_TorchBackend):
    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """The processes are ended next."""


class Elastic(ElasticScalingPolicy):
    """As many workers as there is room for, in multiples of workers.sequence_parallel.

    A group grows when its next checkpoint is there, so that nothing is done twice.
    """

    def __init__(self, scaling: ray.train.ScalingConfig, workers: WorkersConfig, run: Path, saved: Saved) -> None:
        super().__init__(scaling)
        self._multiple, self._run, self._saved = workers.sequence_parallel, run, saved
        self._room_since: int | None = None
        """The newest checkpoint when there was room for more workers first."""

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        self._room_since = None
        decision = super().make_decision_for_non_running_worker_group()
        return self._rounded(decision) if isinstance(decision, ResizeDecision) else decision

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        saved = self._saved.steps()
        if self._room_since is not None:
            if saved == self._room_since:
                self._maybe_send_resource_request()  # or what is reserved would be given away
                return NoopDecision()
            self._latest_monitor_time = float("-inf")  # look again now: there may be less room than there was
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        grown = self._rounded(decision) if isinstance(decision, ResizeDecision) else None
        if grown is None or grown.num_workers <= worker_group_state.num_workers:
            self._room_since = None
            return NoopDecision()
        if self._room_since is None:
            self._room_since = saved
            return NoopDecision()
        record_restart(self._run, GroupFailure("room", f"there is room for {grown.num_workers} workers"), saved)
        return grown

    def _rounded(self, decision: ResizeDecision) -> ResizeDecision:
        return ResizeDecision(decision.num_workers // self._multiple * self._multiple, decision.resources_per_worker)


class Retries(FailurePolicy):
    """Asks ``restarts`` after each failure. Lives in Ray Train's controller, on the driver's machine."""

    def __init__(self, restarts: Restarts) -> None:
        super().__init__(ray.train.FailureConfig(max_failures=-1))
        self._restarts = restarts

    def make_decision(self, training_failed_error: ray.train.TrainingFailedError) -> FailureDecision:
        starts_again = self._restarts.after(explain(training_failed_error))
        return FailureDecision.RETRY if starts_again else FailureDecision.RAISE
