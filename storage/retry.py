"""Retry requests to an object store after transient failures of the store or the network."""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from ..errors import UserError
from .text import visible

_Result = TypeVar("_Result")

TRIES = 4
FIRST_PAUSE = 0.5
"""Seconds before the second try. Each further pause is twice as long, with jitter so that clients spread out."""

_FINAL = {
    FileNotFoundError: errno.ENOENT,
    FileExistsError: errno.EEXIST,
    PermissionError: errno.EACCES,
    IsADirectoryError: errno.EISDIR,
    NotADirectoryError: errno.ENOTDIR,
}
"""Errors that a retry would meet again, with their errno, which libraries leave out."""
_BUGS = (TypeError, ValueError, AttributeError, LookupError, NotImplementedError, ImportError, AssertionError)
"""Programming errors, here or in a library: retrying cannot help, and they must not be hidden."""
_FINAL_ERRNOS = (*_FINAL.values(), errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.ENAMETOOLONG, errno.EMSGSIZE)
"""The store understood the request and refuses it."""

_log = logging.getLogger(__name__)


def with_retries(call: Callable[[], _Result], what: str) -> _Result:
    """Return the result of ``call``, retried with exponential backoff while the store or the network fails.

    Parameters
    ----------
    call
        Makes one request. It is called at most ``TRIES`` times.
    what
        Names the object in errors and log lines.

    Raises
    ------
    FileNotFoundError, FileExistsError, PermissionError
        At once.
    OSError
        For any other failure of the store, after the last try. Its ``errno`` and ``strerror`` are always set.
    """
    pause = FIRST_PAUSE
    for left in reversed(range(TRIES)):
        try:
            return call()
        except (UserError, *_BUGS):
            raise
        except Exception as error:  # each library defines its own exceptions
            if not left or _is_final(error):
                raise OSError(_errno(error), _message(error), what) from error
            _log.warning("%s: %s; trying again", visible(what), visible(_message(error)))
        time.sleep(pause * random.uniform(0.75, 1.25))
        pause *= 2
    raise AssertionError("no tries")


def _is_final(error: Exception) -> bool:
    """Return whether the request itself is at fault, so that a retry would fail too."""
    if isinstance(error, OSError):
        return _errno(error) in _FINAL_ERRNOS
    return type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ParamValidationError")


def _errno(error: Exception) -> int:
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return next((number for kind, number in _FINAL.items() if isinstance(error, kind)), errno.EIO)


def _message(error: Exception) -> str:
    """Return an error's message as one line."""
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(message.split()) or type(error).__name__
