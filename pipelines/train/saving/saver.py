"""Checkpoints written beside training: a thread writes while the next steps are done."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipelines.train.saving.config import CheckpointConfig
from pipelines.train.saving.policy import add_metrics, prune
from pipelines.train.saving.state import TrainState, save_state


class Saver:
    """Saves a run's states one after the other, and deletes those that need not stay. Rank 0 has one."""

    def __init__(self, run: Path, config: CheckpointConfig, saved: Callable[[Path], None]) -> None:
        """``saved`` is told of every checkpoint that stands, in the thread that wrote it."""
        self._run, self._config, self._saved = run, config, saved
        self._thread = ThreadPoolExecutor(1, "saver")
        self._last: Future[None] | None = None
        self._saved_at = time.monotonic()

    def save(self, state: TrainState, config: Mapping[str, Any], folders: Mapping[str, Path]) -> None:
        """Have ``state`` written, whose tensors nobody changes any more: they are copies, in the host's memory. Returns at
        once, or when the state before is written. Raises what went wrong with that, such as DiskFullError."""
        self.wait()
        self._saved_at = time.monotonic()
        self._last = self._thread.submit(self._write, state, dict(config), dict(folders))

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """What validation found after ``step`` steps, for which checkpoints are best."""
        self.wait()
        add_metrics(self._run, step, metrics)
        prune(self._run, self._config)

    def is_due_by_time(self) -> bool:
        """Whether checkpoint.minutes have passed since the last checkpoint."""
        minutes = self._config.minutes
        return minutes is not None and time.monotonic() - self._saved_at > 60 * minutes

    def wait(self) -> None:
        """Until what was given is written. Raises what went wrong."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """As :meth:`wait`, for the last time."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _write(self, state: TrainState, config: dict[str, Any], folders: dict[str, Path]) -> None:
        folder = save_state(self._run, state, config, folders)
        prune(self._run, self._config)
        self._saved(folder)
