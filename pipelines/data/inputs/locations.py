"""Where inputs lie: what a name means, which schemes it may have, and the file system that opens it.

A name may come from a manifest that nobody vouches for. It is a path, or a URL of one of a few schemes; nothing else
is ever handed to a library that would know what to do with it.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from pydantic import Field, field_validator

from kineograph.config import Config
from kineograph.errors import UserError

OBJECT_STORES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
_INSTALL = {"s3": "pip install 'kineograph[s3]'", "gs": "pip install gcsfs", "https": "pip install aiohttp"}
_NO_CREDENTIALS = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; a public bucket needs none with "
    "inputs.storage_options.anon=true",
    "gs": "run 'gcloud auth application-default login', or set GOOGLE_APPLICATION_CREDENTIALS",
}
_CREDENTIAL_ERRORS = frozenset(
    ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError")
)
# Keys whose values are secrets, whatever file system they are meant for.
_SECRET_OPTIONS = frozenset(("secret", "password", "aws_secret_access_key", "aws_session_token", "private_key"))
_USER = re.compile(r"(?<=://)[^/\s?#]*@")
_SECRET_QUERY = re.compile(
    r"(?i)([?&](?:x-amz-[a-z-]+|x-goog-[a-z-]+|awsaccesskeyid|googleaccessid|expires|signature|sig|"
    r"(?:access_)?token|api_?key|password|secret|auth)=)[^&#\s'\")>]+"
)


class Inputs(Config):
    """How sources are found and brought here."""

    allow_https: bool = False
    """Whether https:// may be read; a manifest can then make this machine ask any server. http:// is never read."""
    scratch: str | None = None
    """Folder for fetched files, best on a disk of the machine's own; null is RUN/work/scratch."""
    scratch_bytes: int = Field(50 * 2**30, ge=1)
    """Most bytes of fetched files in that folder; those used longest ago make room. The largest source must fit."""
    fetch_seconds: float = Field(3600.0, gt=0)
    """Most seconds that one file may take to arrive, retries included; an hour brings 20 GiB at 6 MB/s."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """Options of s3fs or gcsfs, such as endpoint_url or anon. No credentials: those come from the standard AWS and
    Google environment variables and files."""

    @field_validator("storage_options")
    @classmethod
    def _no_secrets(cls, options: dict[str, Any]) -> dict[str, Any]:
        for key in _keys(options):
            if key.lower() in _SECRET_OPTIONS:
                raise ValueError(f"{key!r} is a credential, and recipes are stored: use the environment instead")
        return options


@dataclass(frozen=True)
class Location:
    """A file or folder: on a disk of this machine, or behind a URL."""

    scheme: str
    """"" for a local path, else s3, gs or https."""
    path: str
    """The local path, or what the scheme's file system takes: bucket/key, or the whole URL for https."""

    @property
    def url(self) -> str:
        """What opens it: the path, or the URL. It may hold credentials: see :func:`redacted`."""
        return self.path if self.scheme in ("", "https") else f"{self.scheme}://{self.path}"

    @property
    def name(self) -> str:
        """The last part of its path."""
        return posixpath.basename((urlsplit(self.path).path if self.scheme == "https" else self.path).rstrip("/"))

    @property
    def shown(self) -> str:
        """Its URL as it may be printed and stored."""
        return redacted(self.url) if self.scheme else printable(self.path)


def locate(text: str | Path, config: Inputs) -> Location:
    """What ``text`` names: a path, or a URL of an allowed scheme.

    Raises UserError for any other scheme, and for https unless it is allowed.
    """
    text = os.fspath(text)
    scheme, mark, rest = text.partition("://")
    scheme = scheme.lower()
    if not mark:
        return Location("", text)
    if scheme in OBJECT_STORES:
        bucket, _, key = rest.partition("/")
        bucket = bucket.rpartition("@")[2]
        if not bucket:
            raise UserError(f"{redacted(text)} names no bucket: write {scheme}://BUCKET/KEY")
        return Location(OBJECT_STORES[scheme], f"{bucket}/{key}".rstrip("/"))
    if scheme == "file":
        host, slash, path = rest.partition("/")
        if host not in ("", "localhost") or not slash:
            raise UserError(f"{text} is no file of this machine: write file:///PATH")
        return Location("", "/" + unquote(path))
    if scheme == "https":
        if not config.allow_https:
            raise UserError(f"{redacted(text)}: https is off, --set inputs.allow_https=true reads it")
        if not urlsplit(text).hostname:
            raise UserError(f"{redacted(text)} names no server")
        return Location("https", "https://" + rest)
    if scheme == "http":
        raise UserError(f"{redacted(text)}: plain http is never read, for anyone on the way can change it: use https")
    raise UserError(f"{redacted(text)[:200]}: scheme {scheme[:40]!r} is not read; paths, s3://, gs:// and https:// are")


def locate_beside(text: str, folder: Location, config: Inputs) -> Location:
    """What ``text`` names when it stands in a file of ``folder``: relative paths start there.

    Raises UserError as :func:`locate` does, and when a remote file names a local one or leaves its bucket.
    """
    found = locate(text, config)
    if folder.scheme == "":
        return Location("", str(Path(folder.path, found.path))) if found.scheme == "" else found
    if found.scheme:
        return found
    if folder.scheme == "https":
        joined = urljoin(folder.path.rstrip("/") + "/", text)
        if joined.startswith("https://"):
            return locate(joined, config)
    if folder.scheme == "https" or "://" in text or text.startswith("/"):
        raise UserError(f"{text[:200]} is a file of this machine, which a remote manifest may not name")
    path = posixpath.normpath(posixpath.join(folder.path, text))
    if path.split("/")[0] != folder.path.split("/")[0]:
        raise UserError(f"{text[:200]} leaves the bucket")
    return Location(folder.scheme, path)


def parent(location: Location) -> Location:
    """The folder that holds ``location``."""
    if location.scheme == "https":
        return Location("https", urljoin(location.path, "."))
    return Location(location.scheme, posixpath.dirname(location.path))


def file_system(scheme: str, config: Inputs) -> Any:
    """The fsspec file system of a remote ``scheme``. Raises UserError when its package is not installed."""
    import fsspec

    try:
        if scheme == "https":
            return fsspec.filesystem("https", get_client=_https_client, headers={"Accept-Encoding": "identity"})
        # Listings are not cached: a file that changed must not be taken for what it was.
        return fsspec.filesystem(scheme, use_listings_cache=False, **config.storage_options)
    except ImportError as error:
        raise UserError(f"{scheme}:// needs a package that is not installed: {_INSTALL[scheme]}") from error
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"inputs.storage_options do not fit {scheme}://: {one_line(error)}") from error


async def _https_client(**kwargs: Any) -> Any:
    """An aiohttp session that connects to nothing but https, wherever it is redirected to."""
    import aiohttp

    class HttpsOnly(aiohttp.TCPConnector):
        async def connect(self, req: Any, *args: Any, **kwargs: Any) -> Any:
            if req.url.scheme != "https":
                raise aiohttp.ClientError("the server redirects to plain http")
            return await super().connect(req, *args, **kwargs)

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=15, sock_read=60)
    return aiohttp.ClientSession(connector=HttpsOnly(), timeout=timeout, trust_env=True, **kwargs)


def what_failed(error: BaseException, scheme: str) -> str:
    """One line for an error that the file system of ``scheme`` raised."""
    names = {type(e).__name__ for e in _chain(error)}
    if names & _CREDENTIAL_ERRORS:
        return f"no credentials were found: {_NO_CREDENTIALS.get(scheme, one_line(error))}"
    if isinstance(error, PermissionError):
        return (
            f"access is denied ({one_line(error) or 'no reason given'}): check the credentials and the bucket's policy"
        )
    if isinstance(error, FileNotFoundError):
        causes = [e for e in _chain(error) if not isinstance(e, FileNotFoundError)]
        return one_line(causes[0]) if causes and scheme == "https" else "it does not exist"
    if names & {"FSTimeoutError", "TimeoutError"}:
        return "the server took too long to answer"
    if "EndpointConnectionError" in names:
        return f"{one_line(error)}: check the network, and inputs.storage_options.endpoint_url"
    if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
        return f"inputs.storage_options has no {str(error).rpartition(' ')[2]}; a server of one's own is endpoint_url"
    return one_line(error) or type(error).__name__


def is_lasting(error: BaseException, scheme: str) -> bool:
    """Whether it is of no use to ask again after ``error``."""
    chain = _chain(error)
    status = next((vars(e)["status"] for e in chain if isinstance(vars(e).get("status"), int)), None)
    if scheme == "https":  # whose file system calls every error FileNotFoundError
        return status is not None and 400 <= status < 500 and status not in (408, 429)
    known = any(type(e).__name__ in _CREDENTIAL_ERRORS for e in chain)
    return known or isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError))


def one_line(error: BaseException) -> str:
    """The text of ``error`` on one line, without credentials."""
    return redacted(" ".join(str(error).split()))[:200]


def redacted(text: str) -> str:
    """``text`` with the user, password and signatures of the URLs in it taken out."""
    return printable(_SECRET_QUERY.sub(r"\1***", _USER.sub("", text)))


def printable(path: str) -> str:
    """``path`` as UTF-8: bytes that are none are written as \\xNN."""
    try:
        return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return path.encode("utf-8", "backslashreplace").decode()


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from _keys(inner)


def _chain(error: BaseException | None) -> list[BaseException]:
    """``error`` and what it was raised from."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain
