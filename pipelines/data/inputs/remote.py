"""Remote files become local ones for as long as they are used: fetched once, checked, kept within a bounded folder."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from kineograph.config import digest
from kineograph.errors import KineographError
from kineograph.media.faults import MediaFault
from kineograph.store.schema import Reason
from pipelines.data.inputs.locations import Inputs, Location, file_system, is_lasting, locate, what_failed
from pipelines.data.inputs.scratch import Part, Scratch
from pipelines.data.inputs.sources import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS

T = TypeVar("T")

# One request of an object store; a dropped connection costs no more than this much again.
_PIECE_BYTES = 8 << 20
_STREAM_BYTES = 1 << 20
_TRIES = 3
_BACKOFF_S = 0.5
# What an information record may hold that changes when the content does: of s3fs, gcsfs and https.
_VERSION_KEYS = ("ETag", "etag", "size", "LastModified", "Last-Modified", "mtime", "updated", "md5Hash", "generation")


def scratch_folder(run: Path, config: Inputs) -> Path:
    """Where fetched files of ``run`` are kept."""
    return Path(config.scratch) if config.scratch else Path(run) / "work" / "scratch"


@contextmanager
def local_copy(path: str | Path, scratch: Path, config: Inputs, max_bytes: int) -> Iterator[Path]:
    """The local file with the content of ``path``, a path or URL, while the block runs.

    A local path is given as it is. A remote file is fetched into ``scratch``, unless it was before and has not
    changed; it may be removed from there once no block uses it. When the server cannot be asked, a copy fetched
    before is good. Waits while the scratch folder is full of files in use, so hold one copy at a time.

    Raises MediaFault: too_large (more than ``max_bytes`` or than the scratch folder holds), fetch_failed (it is not
    there, may not be read, did not arrive whole or in time). Raises DiskFullError, and UserError when the scheme is
    not allowed or its package is missing.
    """
    location = locate(path, config)
    if not location.scheme:
        yield Path(location.path)
        return
    store = Scratch(scratch, config.scratch_bytes)
    fetch = _Fetch(location, config, max_bytes)
    with store.obtain(*fetch.plan(store), fetch.fill) as copy:
        yield copy


def version_of(path: str | Path, config: Inputs) -> str:
    """What changes when the content of ``path`` does, without reading it: size, time and inode of a local file, one
    request for a remote one. "" when it cannot be told."""
    location = locate(path, config)
    try:
        if not location.scheme:
            status = os.stat(location.path)
            return digest([status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev])[:32]
        info = _guarded(lambda: file_system(location.scheme, config).info(location.path))
    except (OSError, _Transient):
        return ""
    known = [key for key in _VERSION_KEYS if info.get(key) is not None and key != "size"]
    return _version(info) if known else ""


class _Fetch:
    """One remote file on its way here."""

    def __init__(self, location: Location, config: Inputs, max_bytes: int) -> None:
        self.location, self.config, self.max_bytes = location, config, max_bytes
        self.size: int | None = None
        """As declared; None when the server does not say."""
        self.version = ""
        self.files = file_system(location.scheme, config)
        self.deadline = time.monotonic() + config.fetch_seconds

    def plan(self, store: Scratch) -> tuple[str, int | None]:
        """The name of its copy and the bytes it needs."""
        prefix = hashlib.sha256(self.location.url.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        try:
            info = self._retry(lambda: _guarded(lambda: self.files.info(self.location.path)))
        except MediaFault:
            before = store.newest(prefix)
            if before is None:
                raise
            return before, (store.folder / before).stat().st_size
        if info.get("type") == "directory":
            raise MediaFault(Reason.FETCH_FAILED, "it is a folder")
        self.size = None if info.get("size") is None else int(info["size"])
        self._check_size(self.size or 0)
        self.version = _version(info)
        # A demuxer may look at the name, too: it sees the one that it would see on disk.
        extension = os.path.splitext(self.location.name)[1].lower()
        extension = extension if extension in VIDEO_EXTENSIONS | IMAGE_EXTENSIONS else ""
        return f"{prefix}-{self.version}{extension}", self.size

    def fill(self, part: Part) -> None:
        """Write its content to ``part``."""
        # Waiting for room is not counted.
        self.deadline = time.monotonic() + self.config.fetch_seconds
        self._retry(lambda: self._stream(part))

    def _stream(self, part: Part) -> None:
        part.restart()
        with self._open() as stream:
            pieces = _PIECE_BYTES if self.location.scheme != "https" else _STREAM_BYTES
            while piece := _guarded(lambda: stream.read(pieces)):
                self._check_size(part.bytes + len(piece))
                if self.size is not None and part.bytes + len(piece) > self.size:
                    raise _Transient(f"more arrived than the {self.size} bytes that were declared")
                part.write(piece)
                self._check_time(f"{part.bytes} of {self.size or 'unknown'} bytes arrived")
        if self.size is not None and part.bytes != self.size:
            raise _Transient(f"{part.bytes} of {self.size} bytes arrived")

    def _open(self) -> Any:
        """A stream of its bytes. No declared size is believed: https is read as it comes, stores in ranges."""
        if self.location.scheme == "https":
            return _guarded(lambda: self.files.open(self.location.path, "rb", block_size=0, size=1))
        stream = _guarded(lambda: self.files.open(self.location.path, "rb", block_size=_PIECE_BYTES, cache_type="none"))
        if self.version and _version(stream.details) != self.version:
            raise _Transient("it was replaced by another while it was asked for")
        return stream

    def _check_size(self, size: int) -> None:
        limit, whose = min((self.max_bytes, "a source"), (self.config.scratch_bytes, "inputs.scratch_bytes"))
        if size > limit:
            raise MediaFault(Reason.TOO_LARGE, f"{size} bytes or more, the limit of {whose} is {limit}")

    def _check_time(self, what: str) -> None:
        if time.monotonic() > self.deadline:
            raise MediaFault(Reason.FETCH_FAILED, f"{what} in {self.config.fetch_seconds:g} s (inputs.fetch_seconds)")

    def _retry(self, attempt: Callable[[], T]) -> T:
        """What ``attempt`` returns; asked up to three times when it is the network's fault."""
        for number in range(1, _TRIES + 1):
            try:
                return attempt()
            except _Transient as error:
                cause = error.__cause__ or error
                reason = what_failed(cause, self.location.scheme)
                if number == _TRIES or is_lasting(cause, self.location.scheme):
                    raise MediaFault(Reason.FETCH_FAILED, reason) from error
            self._check_time(f"nothing arrived but: {reason};")
            time.sleep(min(_BACKOFF_S * 4 ** (number - 1), max(0.0, self.deadline - time.monotonic())))
        raise AssertionError("the last try returns or raises")


def _version(info: dict[str, Any]) -> str:
    """What changes when the content does, in short."""
    return digest({key: str(info[key]) for key in _VERSION_KEYS if info.get(key) is not None})[:16]


class _Transient(Exception):
    """Something that the other side or the way there did; its cause, where it has one, says what."""


def _guarded(ask: Callable[[], T]) -> T:
    """``ask()``, with whatever a remote library raises as _Transient."""
    try:
        return ask()
    except (KineographError, MediaFault, _Transient):
        raise
    except Exception as error:
        raise _Transient(str(error)) from error
