"""The error types a user can meet. Each carries the exit code that the command line returns.

Raise ``UserError`` when the user can mend it by changing what was asked, ``Failure`` when what was asked was right
and could not be done. The message is one line and says what to do.
"""

from __future__ import annotations

import errno


class KineographError(Exception):
    """Base of every error that is shown to a user as one line."""

    exit_code = 1


class UserError(KineographError):
    """What was asked cannot be done as asked: a wrong key, a missing input. Exit code 2."""

    exit_code = 2


class RecipeError(UserError):
    """A recipe or an override that does not fit its config model."""


class Failure(KineographError):
    """The request was right and the work failed: a full disk, a dead worker. Exit code 1."""

    exit_code = 1


class DiskFullError(Failure):
    """A file could not be written because the file system is full."""


class GateError(Failure):
    """The work was done and its result falls short of what the recipe demands."""


DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether ``error`` or anything it was raised from says that the disk is full."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, DiskFullError) or (isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS):
            return True
        error = error.__cause__ or error.__context__
    return False
