"""Asking an object store again when it, or the network, failed for a moment."""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from ..errors import UserError

_Result = TypeVar("_Result")

TRIES = 4
FIRST_PAUSE = 0.5
"""Seconds before the second try; each further pause is twice as long, and somewhat random so that many do not meet again."""

_FINAL = {
    FileNotFoundError: errno.ENOENT,
    FileExistsError: errno.EEXIST,
    PermissionError: errno.EACCES,
    IsADirectoryError: errno.EISDIR,
    NotADirectoryError: errno.ENOTDIR,
}
"""Answers that the next request would get too, and their numbers, which libraries leave out."""
_MISTAKES = (TypeError, ValueError, AttributeError, LookupError, NotImplementedError, ImportError, AssertionError)
"""Of the program or the libraries: asking again cannot help, and hiding them would."""
_ANSWERED = (*_FINAL.values(), errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.ENAMETOOLONG, errno.EMSGSIZE)
"""What the store says of a request that it has understood and will not carry out."""

_log = logging.getLogger(__name__)


def with_retries(call: Callable[[], _Result], what: str) -> _Result:
    """Return what ``call`` returns, called up to four times while the store or the network fails.

    what : names the object in the errors. FileNotFoundError, FileExistsError and PermissionError are raised at once; any
    other failure of the store, at last, as an OSError. All have a number, and a ``strerror`` that says what it was.
    """
    pause = FIRST_PAUSE
    for left in reversed(range(TRIES)):
        try:
            return call()
        except (UserError, *_MISTAKES):
            raise
        except Exception as error:  # each library has exceptions of its own
            if not left or _is_answer(error):
                raise OSError(_number(error), _words(error), what) from error
            _log.warning("%s: %s; trying again", what, _words(error))
        time.sleep(pause * random.uniform(0.75, 1.25))
        pause *= 2
    raise AssertionError("no tries")


def _is_answer(error: Exception) -> bool:
    """Say whether it is the request that is wrong, so that the next one would be too."""
    if isinstance(error, OSError):
        return _number(error) in _ANSWERED
    return type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ParamValidationError")


def _number(error: Exception) -> int:
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return next((number for kind, number in _FINAL.items() if isinstance(error, kind)), errno.EIO)


def _words(error: Exception) -> str:
    """Return what an error says, in one line."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(said.split()) or type(error).__name__
