"""A folder of fetched files that never grows past its limit, shared by all processes of a machine.

Every state is a file and every claim a lock on it (flock), which the kernel gives back when its process ends, however
it ends. A file that is being made is NAME.part, locked by its maker; its length on disk, a hole at first, is the room
that was reserved for it. A finished file is NAME; whoever reads it holds a shared lock. What nobody holds may be
removed, longest unused first, and is when room is needed. ``.total`` holds the sum of all lengths, so that the folder
is counted only when it is full.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kineograph.errors import UserError
from kineograph.store.commit import disk_full

_TOTAL = ".total"
_PART = ".part"
# Room is made down to this share of the limit, so that a full folder is not counted for every file.
_LOW_WATER = 0.9
# First reservation for a file whose size nobody knows; it doubles.
_FIRST_BYTES = 32 << 20
_POLL_S = (0.05, 2.0)


class Part:
    """A file that is being made: what ``fill`` of :meth:`Scratch.obtain` writes to."""

    def __init__(self, scratch: Scratch, descriptor: int) -> None:
        self.bytes = 0
        """Written so far."""
        self._scratch = scratch
        self._descriptor = descriptor

    def restart(self) -> None:
        """Forget what was written."""
        self.bytes = 0

    def write(self, piece: bytes) -> None:
        """Append ``piece``. Raises DiskFullError."""
        end = self.bytes + len(piece)
        reserved = os.fstat(self._descriptor).st_size
        if end > reserved:
            more = min(max(end, 2 * reserved, _FIRST_BYTES), max(end, self._scratch.limit))
            if not self._scratch.reserve(self._descriptor, more):
                raise NoRoom(more)
        while piece:
            written = os.pwrite(self._descriptor, piece, self.bytes)
            self.bytes, piece = self.bytes + written, piece[written:]


class NoRoom(Exception):
    """A file outgrew its reservation while all else was in use: it must start again once there is more room."""

    def __init__(self, wanted: int) -> None:
        super().__init__(wanted)
        self.wanted = wanted


class Scratch:
    """The folder ``folder`` with at most ``limit`` bytes."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = Path(folder), limit

    @contextmanager
    def obtain(self, name: str, size: int | None, fill: Callable[[Part], None]) -> Iterator[Path]:
        """The file ``name``, which stays while the block runs; made by ``fill`` when it is not there.

        ``size`` is the room it needs, None when unknown; at most ``limit``. Waits while another process makes it or
        while all the room is in use. Of several that want it one calls ``fill``; what that raises is raised here.
        """
        path = self.folder / name
        held: int | None = None
        while held is None:
            held = self._hold(path)
            if held is None:
                try:
                    held = self._make(path, size, fill)
                except OSError as error:
                    raise disk_full(path, error) or error from error
        try:
            yield path
        finally:
            os.utime(held)
            os.close(held)

    def newest(self, prefix: str) -> str | None:
        """The name of the file made last of those that begin with ``prefix``."""
        try:
            found = [e for e in os.scandir(self.folder) if e.name.startswith(prefix) and not e.name.endswith(_PART)]
            return max(found, key=lambda entry: entry.stat().st_mtime_ns).name if found else None
        except FileNotFoundError:
            return None

    def clear(self) -> None:
        """Remove all that nobody holds."""
        if self.folder.is_dir():
            with self._account() as account:
                account[0] = self._evict(0)

    def reserve(self, descriptor: int, size: int) -> bool:
        """Lengthen or shorten the file to ``size`` bytes if there is room, or can be made by removing idle files."""
        with self._account() as account:
            more = size - os.fstat(descriptor).st_size
            if more > 0 and account[0] + more > self.limit:
                account[0] = self._evict(max(0, int(self.limit * _LOW_WATER) - more))
                if account[0] + more > self.limit:
                    return False
            os.ftruncate(descriptor, size)
            account[0] += more
            return True

    def _hold(self, path: Path) -> int | None:
        """A descriptor of ``path`` with a shared lock; None when it is not there."""
        try:
            descriptor = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return None
        _lock(descriptor, fcntl.LOCK_SH, path)
        if not _is(descriptor, path):  # it was removed meanwhile
            os.close(descriptor)
            return None
        os.utime(descriptor)
        return descriptor

    def _make(self, path: Path, size: int | None, fill: Callable[[Part], None]) -> int | None:
        """Make ``path``; a descriptor with a shared lock, or None when another process was before us."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temp = path.with_name(path.name + _PART)
        descriptor = os.open(temp, os.O_RDWR | os.O_CREAT, 0o666)
        finished = False
        try:
            _lock(descriptor, fcntl.LOCK_EX, temp)
            if not _is(descriptor, temp):
                return None
            try:
                if not path.exists():
                    self._fill(descriptor, size, fill)
                    self._publish(descriptor, temp, path)
                    finished = True
            finally:
                if not finished:
                    with self._account() as account:
                        account[0] -= os.fstat(descriptor).st_size
                        temp.unlink(missing_ok=True)
            return descriptor if finished else None
        finally:
            if not finished:
                os.close(descriptor)

    def _fill(self, descriptor: int, size: int | None, fill: Callable[[Part], None]) -> None:
        wanted = min(_FIRST_BYTES, self.limit) if size is None else size
        while True:
            self._wait_for(descriptor, wanted)
            part = Part(self, descriptor)
            try:
                fill(part)
                break
            except NoRoom as error:
                # Whoever waits holds no room, so that two that wait for more never wait for each other.
                wanted = error.wanted
                self.reserve(descriptor, 0)
        self.reserve(descriptor, part.bytes)
        os.fsync(descriptor)

    def _wait_for(self, descriptor: int, size: int) -> None:
        pause, most = _POLL_S
        while not self.reserve(descriptor, size):
            time.sleep(pause)
            pause = min(most, pause * 2)

    def _publish(self, descriptor: int, temp: Path, path: Path) -> None:
        # Under the account's lock, for a lock is let go for a moment while it becomes a shared one.
        with self._account():
            os.replace(temp, path)
            fcntl.flock(descriptor, fcntl.LOCK_SH)

    @contextmanager
    def _account(self) -> Iterator[list[int]]:
        """The sum of all lengths, as the one item of a list, to read and to change; nobody else does meanwhile."""
        path = self.folder / _TOTAL
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, fcntl.LOCK_EX, path)
            text = os.pread(descriptor, 32, 0)
            account = [int(text) if text.strip().isdigit() else sum(length for _, length, _ in self._files())]
            yield account
            if b"%d" % account[0] != text.strip():
                os.pwrite(descriptor, b"%-32d" % account[0], 0)
        finally:
            os.close(descriptor)

    def _files(self) -> list[tuple[int, int, str]]:
        """(time of last use in ns, length in bytes, path) of every file but the account, longest unused first."""
        files = []
        for entry in os.scandir(self.folder):
            if entry.name != _TOTAL and entry.is_file(follow_symlinks=False):
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                files.append((status.st_mtime_ns, status.st_size, entry.path))
        return sorted(files)

    def _evict(self, goal: int) -> int:
        """Remove idle files until at most ``goal`` bytes are left, or none is idle; returns what is left."""
        files = self._files()
        total = sum(length for _, length, _ in files)
        for _, length, path in files:
            if total <= goal:
                break
            if _remove_idle(Path(path)):
                total -= length
        return total


def _remove_idle(path: Path) -> bool:
    """Remove ``path`` unless a process holds it; a crashed one holds nothing."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _lock(descriptor: int, kind: int, path: Path) -> None:
    """Wait for a lock. Raises UserError where the file system has none."""
    try:
        fcntl.flock(descriptor, kind)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise
        raise UserError(
            f"{path.parent} is on a file system without locks: set inputs.scratch to a local disk"
        ) from error


def _is(descriptor: int, path: Path) -> bool:
    """Whether ``path`` still names the open file."""
    try:
        here, there = os.fstat(descriptor), os.stat(path)
    except FileNotFoundError:
        return False
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
