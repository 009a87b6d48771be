"""Where a run lies: a folder of this machine, or a place in an object store, whose files are read without being fetched.

A place is named by a path, or by a URL: s3://BUCKET/RUN or gs://BUCKET/RUN. Credentials are those of the standard AWS
and Google environment variables and files.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import unquote

from kineograph.errors import Failure, UserError
from kineograph.store.commit import write_bytes

T = TypeVar("T")

Options = Mapping[str, Any]
NO_OPTIONS: Options = MappingProxyType({})

_SCHEMES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
_INSTALL = {"s3": "pip install 'kineograph[s3]'", "gs": "pip install gcsfs"}
_CREDENTIALS = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; a public bucket needs none with "
    "storage_options {anon: true}",
    "gs": "run 'gcloud auth application-default login', or set GOOGLE_APPLICATION_CREDENTIALS",
}
_CREDENTIAL_ERRORS = frozenset(
    ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError")
)
_WAITS_S = (0.5, 2.0, 8.0)
"""Before a request in the middle of training is made again. The libraries below try a few times at shorter distances."""
_SHORT = "the file is shorter than was said"
_MOST_GAP = 64 << 10
"""Bytes between two ranges that are read along with them: sooner than a request of their own."""


class NotReached(Failure):
    """A place that should be there does not answer, or says no."""


class Place:
    """A folder that is read: of this machine or of an object store. Threads may share it."""

    def __init__(self, path: str | Path, options: Options = NO_OPTIONS) -> None:
        """``options`` are those of s3fs or gcsfs, such as endpoint_url or anon.

        Raises UserError for a URL of another scheme and where the scheme's package is missing.
        """
        self.scheme, self._root = _parse(os.fspath(path))
        self._options = options
        if self.scheme:
            _ = self._files

    @property
    def is_remote(self) -> bool:
        return bool(self.scheme)

    @property
    def path(self) -> str | Path:
        """The folder, as a path where it is of this machine and else as a URL."""
        return f"{self.scheme}://{self._root}" if self.scheme else Path(self._root)

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> str:
        """What to call a file of the folder."""
        return f"{self.path}/{name}"

    def local(self, name: str) -> Path:
        """A file of a folder of this machine."""
        assert not self.scheme
        return Path(self._root, name)

    def has(self, name: str) -> bool:
        """Whether there is a file ``name``. Raises NotReached."""
        if not self.scheme:
            return self.local(name).is_file()
        try:  # fsspec's isfile calls every error a no
            info = self._ask(lambda: self._files.info(self._key(name)), name)
        except FileNotFoundError:
            return False
        return bool(info["type"] == "file")

    def read(self, name: str) -> bytes:
        """The content of a file. Raises FileNotFoundError or another OSError, and NotReached."""
        if not self.scheme:
            return self.local(name).read_bytes()
        return bytes(self._ask(lambda: self._files.cat_file(self._key(name)), name))

    def read_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, bytes]]:
        """Pieces of a remote file that cover ``ranges`` (first byte, behind the last), which are in order and do not
        overlap: the place of each in the file, and its bytes. Raises FileNotFoundError, NotReached, and ValueError when the
        file is shorter."""
        wanted = _merged(ranges)
        keys, starts, ends = [self._key(name)] * len(wanted), [a for a, _ in wanted], [b for _, b in wanted]
        pieces = self._ask(partial(self._files.cat_ranges, keys, starts, ends, on_error="raise"), name, _WAITS_S)
        if [len(piece) for piece in pieces] != [end - start for start, end in wanted]:
            raise ValueError(_SHORT)
        return list(zip(starts, map(bytes, pieces), strict=True))

    def copy_folder(self, name: str, target: Path) -> None:
        """Write the files of the folder ``name``, which is small, below ``target``. Raises UserError when it has none."""
        top = self._key(name) + "/"
        found = self._ask(lambda: self._files.find(top), name) if self.scheme else _files_below(self.local(name))
        if not found:
            raise UserError(f"{self / name} holds no files: is {self} a whole copy of the run?")
        for key in found:
            below = key[len(top) :]
            write_bytes(target / below, self.read(f"{name}/{below}"))

    @cached_property
    def _files(self) -> Any:
        """The fsspec file system."""
        import fsspec

        try:
            # Listings are not cached: a file that changed must not be taken for what it was.
            return fsspec.filesystem(self.scheme, use_listings_cache=False, **self._options)
        except ImportError as error:
            raise UserError(
                f"{self.scheme}:// needs a package that is not installed: {_INSTALL[self.scheme]}"
            ) from error
        except (TypeError, ValueError, KeyError) as error:
            raise UserError(f"storage_options do not fit {self.scheme}://: {_one_line(error)}") from error

    def _key(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _ask(self, ask: Callable[[], T], name: str, waits_s: tuple[float, ...] = ()) -> T:
        """``ask()``, again after ``waits_s`` when it is the network's fault. Raises FileNotFoundError and NotReached."""
        for wait_s in (*waits_s, None):
            try:
                return ask()
            except FileNotFoundError:
                raise
            except Exception as error:
                if "range is not satisfiable" in str(error).lower() or "range not satisfiable" in str(error).lower():
                    raise ValueError(_SHORT) from error
                if wait_s is None or _is_lasting(error):
                    reason = _what_failed(error, self.scheme)
                    raise NotReached(f"{self / name} cannot be read: {reason}") from error
                time.sleep(wait_s)
        raise AssertionError("the last try returns or raises")


def is_url(path: str | Path) -> bool:
    """Whether ``path`` is behind a URL and not in a folder of this machine."""
    return bool(_parse(os.fspath(path))[0])


def _parse(text: str) -> tuple[str, str]:
    """Scheme ("" for a path of this machine), and the path or bucket/key."""
    scheme, mark, rest = text.partition("://")
    if not mark:
        return "", text
    if scheme == "file":
        return "", unquote(rest.removeprefix("localhost"))
    if scheme not in _SCHEMES:
        raise UserError(f"{text[:200]}: scheme {scheme[:40]!r} is not read; paths, s3:// and gs:// are")
    if not rest.strip("/"):
        raise UserError(f"{text} names no bucket: write {scheme}://BUCKET/RUN")
    return _SCHEMES[scheme], rest.rstrip("/")


def _merged(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in ranges:
        if merged and start - merged[-1][1] <= _MOST_GAP:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _files_below(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.rglob("*")) if path.is_file()]


def _is_lasting(error: BaseException) -> bool:
    """Whether it is of no use to ask again after ``error``."""
    names = {type(e).__name__ for e in _chain(error)}
    return bool(names & _CREDENTIAL_ERRORS) or isinstance(error, PermissionError | IsADirectoryError | TypeError)


def _what_failed(error: BaseException, scheme: str) -> str:
    """One line for an error that the file system of ``scheme`` raised."""
    names = {type(e).__name__ for e in _chain(error)}
    if names & _CREDENTIAL_ERRORS:
        return f"no credentials were found: {_CREDENTIALS[scheme]}"
    if isinstance(error, PermissionError):
        return (
            f"access is denied ({_one_line(error) or 'no reason given'}): check the credentials and the bucket's policy"
        )
    if names & {"FSTimeoutError", "TimeoutError"}:
        return "the server took too long to answer"
    if "EndpointConnectionError" in names:
        return f"{_one_line(error)}: check the network, and endpoint_url of storage_options"
    if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
        return f"storage_options has no {str(error).rpartition(' ')[2]}; a server of one's own is endpoint_url"
    return _one_line(error) or type(error).__name__


def _one_line(error: BaseException) -> str:
    """The text of ``error`` on one line, without the user and password of a URL in it."""
    return re.sub(r"(?<=://)[^/\s?#]*@", "", " ".join(str(error).split()))[:200]


def _chain(error: BaseException | None) -> list[BaseException]:
    """``error`` and what it was raised from."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain
