"""Checkpoints written beside training: a thread writes while the next steps are done."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from kineograph.errors import UserError
from kineograph.progress import duration, say
from kineograph.store.checkpoints import Index, checkpoint_folder, read_index, write_index
from kineograph.tracked_models import ModelLog
from pipelines.train.saving.config import CheckpointConfig
from pipelines.train.saving.models import Models
from pipelines.train.saving.policy import finished_steps, prune
from pipelines.train.saving.state import TrainState, save_state
from pipelines.train.saving.upload import Mirror, Uploads

LONG_S = 5.0
"""Training that waited so long for a disk is told of it."""


class Saver:
    """Saves a run's states one after the other, deletes those that need not stay, has the others copied. Rank 0 has one.

    All is done in one thread, in the order it was asked for; copies are made by another. What goes wrong in saving is
    raised at the next call. A copy that cannot be made is told of and tried again with the next one.
    """

    def __init__(
        self,
        run: Path,
        config: CheckpointConfig,
        saved: Callable[[Path], None],
        tracker: ModelLog | None = None,
    ) -> None:
        """``saved`` is told of every checkpoint that stands, in the thread that wrote it; ``tracker`` gets them as
        models."""
        self._run, self._config, self._saved = run, config, saved
        self._models = Models(run, tracker) if tracker is not None and config.mlflow_models else None
        self._uploads = Uploads(Mirror(run, config), self._copied) if config.upload else None
        self._thread = ThreadPoolExecutor(1, "saver")
        self._asked: deque[Future[None]] = deque()
        self._is_closed = False
        self._newest: int | None = None
        self._saved_at = time.monotonic()
        self._submit(self._begin)

    def save(self, state: TrainState, config: Mapping[str, Any], folders: Mapping[str, Path]) -> None:
        """Have ``state`` written; ``config`` becomes config.json, ``folders`` (name to path) are linked.

        Returns at once, or when the state before is written: the host then never holds more than the one that is written
        and the one that was gathered. Tensors in the host's memory are taken as they are, until :meth:`wait` returns, and
        must be copies that nobody changes; those of a GPU are copied here. Raises what went wrong with the state before,
        such as DiskFullError.
        """
        began = time.monotonic()
        self.wait()
        waited = time.monotonic() - began
        if waited > LONG_S:
            say(f"training waited {duration(waited)} at step {state.step} for the checkpoint before to be written")
        self._saved_at = time.monotonic()
        self._submit(self._write, state.on_cpu(), dict(config), dict(folders))

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """What validation found after ``step`` steps, for which checkpoints are best. Returns at once."""
        self._submit(self._measured, step, dict(metrics))

    def is_due_by_time(self) -> bool:
        """Whether checkpoint.minutes have passed since the last checkpoint. Raises what went wrong in saving, which is so
        known at the next step and not at the next checkpoint."""
        while self._asked and self._asked[0].done():
            self._asked.popleft().result()
        minutes = self._config.minutes
        return minutes is not None and time.monotonic() - self._saved_at > 60 * minutes

    def wait(self) -> None:
        """Until all that was asked for is on this machine's disk. Raises what went wrong first."""
        asked = list(self._asked)
        self._asked.clear()
        errors = [error for error in (future.exception() for future in asked) if error is not None]
        if errors:
            raise errors[0]

    def close(self) -> None:
        """As :meth:`wait`, for the last time; copies are waited for too, and what could not be copied is said."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            if self._uploads:
                self._uploads.wait()
                self._prune()  # what was being copied when it could have gone
                if self._models and self._newest is not None:
                    self._models.kept(finished_steps(self._run))
                self._uploads.close()

    # Below: in the thread.

    def _begin(self) -> None:
        """Tell again what a killed start may not have told of the checkpoints that are there."""
        steps = finished_steps(self._run)
        if self._models and steps:
            for step in steps:
                with suppress(OSError, ValueError, UserError):  # it is damaged, which whoever reads it says
                    self._models.saved(checkpoint_folder(self._run, step))
            self._models.kept(steps)
        if self._uploads and steps:
            self._uploads.wake()

    def _write(self, state: TrainState, config: dict[str, Any], folders: dict[str, Path]) -> None:
        folder = save_state(self._run, state, config, folders)
        self._newest = state.step
        self._index(state.step, {})
        self._prune()
        self._saved(folder)
        if self._models:
            self._models.saved(folder)
            self._models.kept(finished_steps(self._run))
        if self._uploads:
            self._uploads.wake()

    def _measured(self, step: int, metrics: dict[str, float]) -> None:
        self._index(step, metrics)
        if step not in finished_steps(self._run):
            return
        self._prune()
        if self._models:
            self._models.measured(step, metrics)
            self._models.kept(finished_steps(self._run))

    def _index(self, step: int, metrics: Mapping[str, float]) -> None:
        found = read_index(self._run).metrics
        merged = {**found, step: {**found.get(step, {}), **metrics}} if metrics else found
        write_index(self._run, Index(self._config.best, merged))

    def _prune(self) -> None:
        if self._newest is None:
            return
        mirror = self._uploads.mirror if self._uploads else None
        with mirror.guard if mirror else nullcontext():
            prune(self._run, self._config, self._newest, mirror.busy if mirror else None)

    def _copied(self, step: int) -> None:
        if self._models and self._config.upload:
            self._models.copied(step, self._config.upload)

    def _submit(self, work: Callable[..., None], *arguments: Any) -> None:
        self._asked.append(self._thread.submit(work, *arguments))
