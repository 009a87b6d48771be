"""Files appear whole or not at all: write beside, fsync, rename, fsync the directory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kineograph.errors import DISK_FULL_ERRNOS, DiskFullError

_TEMP_MARK = ".tmp-"


@contextmanager
def committed(path: Path, durable: bool = True) -> Iterator[Path]:
    """Give a temporary path beside ``path``; when the block ends well, it is ``path``, durably.

    Without ``durable`` it survives a kill but not a power cut: for small files that are made again when they cannot be
    read. On an error nothing is left behind. Raises DiskFullError when the file system is full.
    """
    path = Path(path)
    temp = path.with_name(f"{path.name}{_TEMP_MARK}{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temp
        if durable:
            with open(temp, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temp, path)
        if durable:
            _fsync_dir(path.parent)
    except OSError as error:
        raise disk_full(path, error) or error from error
    finally:
        temp.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Commit ``data`` as ``path``."""
    with committed(path) as temp:
        temp.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Commit ``text`` as ``path`` in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Commit ``value`` as indented JSON with sorted keys."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def disk_full(path: Path, error: OSError) -> DiskFullError | None:
    """The error a user sees when ``error`` means that the disk under ``path`` is full; else None."""
    if error.errno not in DISK_FULL_ERRNOS:
        return None
    existing = next((p for p in [path, *path.parents] if p.exists()), Path("/"))
    free = shutil.disk_usage(existing).free / 2**20
    return DiskFullError(
        f"the disk is full at {existing} ({free:.0f} MiB free): free some space and run the same command again, "
        "what is done is kept"
    )


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files that killed writers left under ``folder``. Call when no writer is at work."""
    for temp in Path(folder).rglob(f"*{_TEMP_MARK}*"):
        if temp.is_file():
            temp.unlink(missing_ok=True)


def sha256_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, read in pieces of 1 MiB."""
    hasher = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            hasher.update(piece)
    return hasher.hexdigest()


def _fsync_dir(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
