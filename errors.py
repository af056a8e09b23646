"""Errors that are meant for the user: each carries one clear sentence and the exit code that the command ends with."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend. ``str(error)`` says what happened, to what, and what to do."""

    exit_code = 1


class ReadOnlyError(UserError):
    """What was to be written lies where this user may only read."""


class UsageError(UserError):
    """The arguments of a command do not fit together."""

    exit_code = 2


class IntegrityError(UserError):
    """What lies in the cache is not what its marker says."""

    exit_code = 4
