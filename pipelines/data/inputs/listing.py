"""Folders that inputs lie in, on disk or in an object store: their files' names, and small files of them in one go."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from kineograph.errors import UserError
from pipelines.data.inputs.locations import Inputs, Location, file_system, printable, what_failed

_WILDCARD = re.compile(r"[*?\[]")
# Small files of a store are asked for so many at a time.
_BATCH = 1000


class Folder(Protocol):
    """A folder and all below it."""

    unread: list[str]
    """Folders in it that may not be read."""

    def names(self, depth: int | None = None) -> Iterator[str]:
        """Paths of its files below it, with forward slashes, down to ``depth`` levels."""

    def path_of(self, name: str) -> str:
        """What opens the file ``name`` of it: a path or URL."""

    def read(self, names: Sequence[str], most_bytes: int) -> Iterator[bytes | Exception]:
        """What is in each of ``names``, or why it cannot be had."""


class Disk:
    """A local folder. Links to folders are not followed."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.unread: list[str] = []

    def names(self, depth: int | None = None) -> Iterator[str]:
        top = self.root.rstrip("/") or "/"
        for folder, folders, names in os.walk(top, onerror=self._note):
            below = folder[len(top) :].strip("/")
            if depth is not None and below.count("/") + bool(below) + 1 >= depth:
                folders.clear()
            prefix = below + "/" if below else ""
            for name in names:
                yield prefix + name

    def path_of(self, name: str) -> str:
        return os.path.join(self.root, name)

    def read(self, names: Sequence[str], most_bytes: int) -> Iterator[bytes | Exception]:
        for name in names:
            try:
                status = os.stat(self.path_of(name))
                if not stat.S_ISREG(status.st_mode):
                    raise ValueError("no regular file")
                _check_size(name, status.st_size, most_bytes)
                with open(self.path_of(name), "rb") as file:
                    yield file.read(most_bytes)
            except (OSError, ValueError) as error:
                yield error

    def _note(self, error: OSError) -> None:
        self.unread.append(printable(str(error.filename)))


class Store:
    """A folder of an object store; only what begins with ``prefix`` in it."""

    def __init__(self, location: Location, config: Inputs, prefix: str = "") -> None:
        self.location, self.prefix = location, prefix
        self.unread: list[str] = []
        self._files = file_system(location.scheme, config)
        self._sizes: dict[str, int] = {}

    def names(self, depth: int | None = None) -> Iterator[str]:
        try:
            only = {"prefix": self.prefix} if self.prefix else {}
            found: dict[str, Any] = self._files.find(self.location.path, maxdepth=depth, detail=True, **only)
        except Exception as error:
            reason = what_failed(error, self.location.scheme)
            raise UserError(f"input {self.location.shown} cannot be listed: {reason}") from error
        top = len(self.location.path) + 1
        for path, info in found.items():
            # A key with a slash at its end stands for a folder; the prefix itself can be a key, too.
            if info["type"] == "file" and not path.endswith("/") and len(path) > top:
                self._sizes[path[top:]] = info["size"]
                yield path[top:]

    def path_of(self, name: str) -> str:
        return Location(self.location.scheme, f"{self.location.path}/{name}").url

    def read(self, names: Sequence[str], most_bytes: int) -> Iterator[bytes | Exception]:
        for begin in range(0, len(names), _BATCH):
            batch = names[begin : begin + _BATCH]
            wanted = [name for name in batch if 0 < self._sizes[name] <= most_bytes]
            paths = [f"{self.location.path}/{name}" for name in wanted]
            ends = [self._sizes[name] for name in wanted]
            got = self._files.cat_ranges(paths, [0] * len(paths), ends, on_error="return") if paths else []
            contents = dict(zip(wanted, got, strict=True))
            for name in batch:
                content = contents.get(name, b"")
                if isinstance(content, Exception):
                    yield ValueError(what_failed(content, self.location.scheme))
                elif self._sizes[name] > most_bytes:
                    yield ValueError(_too_large(name, most_bytes))
                else:
                    yield content


def is_glob(path: str) -> bool:
    """Whether ``path`` has wildcards in it."""
    return _WILDCARD.search(path) is not None


def split_glob(path: str) -> tuple[str, re.Pattern[str], int | None]:
    """The folder before the first wildcard of ``path``, what the rest must match, and how deep it goes (None: all).

    ``*`` and ``?`` stay within a folder, ``**`` stands for any number of them. Raises UserError for a glob that is none.
    """
    from fsspec.utils import glob_translate

    parts = path.split("/")
    first = next(index for index, part in enumerate(parts) if is_glob(part))
    root, rest = "/".join(parts[:first]), parts[first:]
    if first == 1 and not root:
        root = "/"
    try:
        pattern = re.compile(glob_translate("/".join(rest)))
    except (ValueError, re.error) as error:
        raise UserError(f"{printable(path)} is no glob: {' '.join(str(error).split())}") from error
    return root, pattern, None if "**" in rest else len(rest)


def _check_size(name: str, size: int, most_bytes: int) -> None:
    if size > most_bytes:
        raise ValueError(_too_large(name, most_bytes))


def _too_large(name: str, most_bytes: int) -> str:
    return f"{os.path.basename(name)} is larger than {most_bytes} bytes"
