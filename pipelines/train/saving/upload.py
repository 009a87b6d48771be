"""Copies of a run's checkpoints in another place, made beside training."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from kineograph.errors import Failure, UserError
from kineograph.outbox import reason
from kineograph.progress import say
from kineograph.store.checkpoints import (
    CHECKPOINTS,
    COMPLETE,
    DIGESTS,
    INDEX,
    checkpoint_folder,
    find_fault,
    parse_digests,
    read_index,
)
from kineograph.store.commit import write_json
from kineograph.tracking import SPOOL_NAME
from pipelines.train.saving.config import CheckpointConfig
from pipelines.train.saving.depot import ORIGIN, Depot, step_name
from pipelines.train.saving.policy import finished_steps, kept_steps

RUN_FILES = ("*.json", "*.jsonl", "*.yaml")
"""Files of a run, beside its checkpoints, without which it does not go on as it did: what clips cost, where MLflow is."""


class Mirror:
    """Makes a place hold the checkpoints that a run keeps. One thread at a time."""

    def __init__(self, run: Path, config: CheckpointConfig) -> None:
        assert config.upload is not None
        self._run, self._config, self.place = run, config, config.upload
        self._there: dict[int, bytes] = {}
        self._damaged: set[int] = set()
        self._depot: Depot | None = None
        self.guard = threading.Lock()
        """Held by whoever chooses a checkpoint, to copy or to delete it."""
        self.busy: int | None = None
        """The step whose checkpoint is being copied: it must not be deleted."""

    def open(self) -> Depot:
        """The place, with the run's name on it. Raises as :meth:`update` does."""
        if self._depot is None:
            depot = Depot(self.place, self._config.storage_options)
            if not depot.is_remote and Path(self.place).resolve() == self._run.resolve():
                raise UserError(f"checkpoint.upload {self.place} is the run itself: give another place")
            check_origin(depot, self._run)
            mine = origin_of(self._run) or uuid.uuid4().hex
            write_json(self._run / CHECKPOINTS / ORIGIN, {"id": mine})
            if depot.origin() != mine:
                depot.put(self._run / CHECKPOINTS / ORIGIN, f"{CHECKPOINTS}/{ORIGIN}")
            self._depot = depot
        return self._depot

    def missing(self) -> list[int]:
        """Steps that the run keeps and that are not known to be there, the newest first."""
        new = self._kept(finished_steps(self._run)) - self._damaged
        return sorted((s for s in new if self._there.get(s) != read_digests(self._run, s)), reverse=True)

    def update(self) -> list[int]:
        """Copy what is missing, the newest first, then delete what the run's policy does not keep. Returns what was copied.

        Raises NotReached or Failure where the place does not take it, and UserError where it is another run's.
        """
        depot = self.open()
        self._damaged.clear()  # what is saved anew may be whole now
        sent = []
        while True:
            with self.guard:
                step = self.busy = next(iter(self.missing()), None)
            if step is None:
                break
            try:
                if self._copy(depot, step):
                    sent.append(step)
            finally:
                self.busy = None
        self._prune(depot)
        return sent

    def _copy(self, depot: Depot, step: int) -> bool:
        """Copy a checkpoint, its marker last; not one that is damaged, which would take the place of a whole one."""
        folder, top, digests = checkpoint_folder(self._run, step), step_name(step), read_digests(self._run, step)
        if step in depot.steps() and depot.read(f"{top}/{DIGESTS}") == digests:
            self._there[step] = digests
            return True
        if fault := find_fault(folder):
            say(f"checkpoint {folder} is not copied: {fault}")
            self._damaged.add(step)
            return False
        depot.remove(f"{top}/{COMPLETE}")
        for name in (*parse_digests(digests), DIGESTS):
            depot.put(folder / name, f"{top}/{name}")
        for path in sorted(path for pattern in RUN_FILES for path in self._run.glob(pattern)):
            if path.name != SPOOL_NAME:
                depot.put_bytes(path.read_bytes(), path.name)
        self._put_index(depot)
        depot.put_bytes(b"", f"{top}/{COMPLETE}")
        self._there[step] = digests
        return True

    def _prune(self, depot: Depot) -> None:
        """Delete there what the policy keeps neither of what is there, which may be more than here, nor of what is here.
        What lies beyond the newest of the run was there when it went on from one before it: it stays."""
        mine = finished_steps(self._run)
        steps = [step for step in depot.steps() if mine and step <= mine[-1]]
        for step in set(steps) - self._kept(steps) - self._kept(mine):
            depot.remove_checkpoint(step)
            self._there.pop(step, None)
        self._put_index(depot)

    def _kept(self, steps: list[int]) -> set[int]:
        return kept_steps(steps, read_index(self._run), self._config)

    def _put_index(self, depot: Depot) -> None:
        path = self._run / CHECKPOINTS / INDEX
        if path.is_file():
            depot.put_bytes(path.read_bytes(), f"{CHECKPOINTS}/{INDEX}")


class Uploads:
    """Keeps a :class:`Mirror` up to date, in a thread. Training never fails for it."""

    def __init__(self, mirror: Mirror, sent: Callable[[int], None]) -> None:
        """``sent`` is told, in that thread, of the steps that are there."""
        self.mirror, self._sent = mirror, sent
        self._thread = ThreadPoolExecutor(1, "upload")
        self._waiting: Future[None] | None = None
        self._trouble = ""

    def wake(self) -> None:
        """There may be something new."""
        if self._waiting is None or self._waiting.running() or self._waiting.done():
            self._waiting = self._thread.submit(self._update)

    def wait(self) -> None:
        """Until nothing is under way."""
        if self._waiting is not None:
            self._waiting.result()

    def close(self) -> None:
        """Try once more, wait for it, and say what is missing for good."""
        self.wake()
        self._thread.shutdown()
        if self._trouble:
            steps = ", ".join(map(str, self.mirror.missing())) or "none"
            say(f"NOT copied to {self.mirror.place} are the checkpoints of steps {steps}: {self._trouble}")

    def _update(self) -> None:
        try:
            for step in self.mirror.update():
                self._sent(step)
            self._trouble = ""
        except Exception as error:  # noqa: BLE001  whatever is wrong with the place, training goes on
            self._trouble = reason(error)
            say(f"checkpoints are not copied to {self.mirror.place} now, with the next one: {self._trouble}")


def upload_missing(run: Path, config: CheckpointConfig) -> None:
    """Copy what the run's training could not. Raises UserError or Failure, in one line, when it still cannot be."""
    if config.upload is None:
        return
    mirror = Mirror(run, config)
    try:
        mirror.update()
    except OSError as error:
        raise Failure(f"checkpoints cannot be copied to {config.upload}: {reason(error)}") from error


def origin_of(run: Path) -> str:
    """What a run is known by where its checkpoints are copied to; "" before they were."""
    try:
        return str(json.loads((run / CHECKPOINTS / ORIGIN).read_bytes())["id"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def check_origin(depot: Depot, run: Path) -> None:
    """Raise UserError when the place holds another run's checkpoints."""
    theirs = depot.origin()
    if theirs and theirs != origin_of(run) and depot.steps():
        raise UserError(f"{depot} holds checkpoints that are not of this run: give it a checkpoint.upload of its own")


def read_digests(run: Path, step: int) -> bytes:
    """digests.json of a checkpoint; b"" when it cannot be read."""
    try:
        return (checkpoint_folder(run, step) / DIGESTS).read_bytes()
    except OSError:
        return b""
