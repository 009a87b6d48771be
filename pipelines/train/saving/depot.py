"""The place that a run's checkpoints are copied to: an object store or a folder, laid out as the run itself.

PLACE/checkpoints/step-…/   as in the run; a checkpoint is there when its marker is
PLACE/checkpoints/index.json
PLACE/checkpoints/origin.json   whose place it is
PLACE/*.json, *.jsonl, *.yaml   what else of the run is needed to go on elsewhere
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from kineograph.errors import Failure, KineographError, is_disk_full
from kineograph.outbox import reason
from kineograph.store.checkpoints import CHECKPOINTS, COMPLETE, checkpoint_folder, remove_checkpoint
from kineograph.store.commit import committed
from kineograph.store.places import NO_OPTIONS, NotReached, Options, Place

T = TypeVar("T")

ORIGIN = "origin.json"
"""In the folder of checkpoints, here and in the run: of which run they are."""
_MARKER = re.compile(rf"^step-(\d{{8}})/{COMPLETE}$")


def step_name(step: int) -> str:
    """Where the checkpoint of ``step`` lies, in a run and here."""
    return checkpoint_folder(Path(), step).as_posix()


class Depot(Place):
    """A :class:`Place` that is written too. Whatever it is, a file is there whole or not at all.

    Methods raise NotReached when the place does not answer; those that write raise Failure, in one line.
    """

    def __init__(self, path: str | Path, options: Options = NO_OPTIONS) -> None:
        super().__init__(path, options)

    def put(self, source: Path, name: str) -> None:
        """Copy a file of this machine here."""
        self._write(lambda: self._put(source, name), name)

    def put_bytes(self, data: bytes, name: str) -> None:
        """Write a small file."""
        self._write(lambda: self._put_bytes(data, name), name)

    def remove(self, name: str) -> None:
        """Delete a file; it may be gone already."""
        self._write(lambda: self._remove(name), name)

    def fetch(self, name: str, target: Path) -> None:
        """Copy a file from here to ``target``. Raises FileNotFoundError and DiskFullError."""
        with committed(target) as temp:
            if not self.is_remote:
                shutil.copyfile(self.local(name), temp)
                return
            try:
                self._ask(lambda: self._files.get_file(self._key(name), str(temp)), name)
            except NotReached as error:
                if is_disk_full(error):  # it is ours that is full
                    raise OSError(errno.ENOSPC, "no space left") from error
                raise

    def names(self, folder: str = "") -> list[str]:
        """Files below ``folder``, by their paths in it; [] where it is not there."""
        if not self.is_remote:
            top = Path(self.path, folder)
            return sorted(p.relative_to(top).as_posix() for p in top.rglob("*") if p.is_file())
        key = (self._key(folder) if folder else self._root) + "/"
        try:
            found: list[str] = self._ask(lambda: self._files.find(key), folder)
        except FileNotFoundError:
            return []
        return sorted(path[len(key) :] for path in found)

    def steps(self) -> list[int]:
        """Steps of the checkpoints that were copied to their end, in order."""
        return [int(m[1]) for m in map(_MARKER.match, self.names(CHECKPOINTS)) if m]

    def origin(self) -> str:
        """Of which run the checkpoints are; "" where that was not written down."""
        try:
            return str(json.loads(self.read(f"{CHECKPOINTS}/{ORIGIN}"))["id"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return ""

    def remove_checkpoint(self, step: int) -> None:
        """Delete a checkpoint, its marker first."""
        top = step_name(step)
        if not self.is_remote:
            folder = self.local(top)
            self._write(lambda: remove_checkpoint(folder) if folder.exists() else None, top)
            return
        for name in sorted(self.names(top), key=lambda name: name != COMPLETE):
            self.remove(f"{top}/{name}")

    # Below: what may raise anything.

    def _put(self, source: Path, name: str) -> None:
        if self.is_remote:
            self._files.put_file(str(source), self._key(name))
            return
        with committed(self.local(name)) as temp:
            shutil.copyfile(source, temp)

    def _put_bytes(self, data: bytes, name: str) -> None:
        if self.is_remote:
            self._files.pipe_file(self._key(name), data)
            return
        with committed(self.local(name)) as temp:
            temp.write_bytes(data)

    def _remove(self, name: str) -> None:
        try:
            if self.is_remote:
                self._files.rm_file(self._key(name))
            else:
                self.local(name).unlink()
        except FileNotFoundError:
            return

    def _write(self, write: Callable[[], None], name: str) -> None:
        try:
            write()
        except KineographError:
            raise
        except Exception as error:
            raise Failure(f"{self / name} cannot be written: {reason(error)}") from error
