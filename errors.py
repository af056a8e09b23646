"""Errors that are meant for the user: each carries one clear sentence and the exit code that the command ends with."""

from __future__ import annotations

from collections.abc import Sequence


class DistilCacheError(Exception):
    """Ends a command with its sentence. ``str(error)`` says what happened, to what, and what to do."""

    exit_code = 1
    details: tuple[str, ...] = ()
    """Lines that follow the sentence."""


class UserError(DistilCacheError):
    """Something the user can mend."""


class ChoiceError(UserError):
    """Several things fit, and the user must choose one of them.

    Parameters
    ----------
    message
        The sentence.
    choices
        A line for each, with what to type.
    """

    def __init__(self, message: str, choices: Sequence[str]) -> None:
        super().__init__(message)
        self.details = tuple(choices)

    def __str__(self) -> str:
        return "\n".join([super().__str__(), *self.details])


class UnreachableError(DistilCacheError):
    """A disk, an object store or the network failed, which says nothing about what is there.

    Not a UserError: code that catches UserError to go on without damaged things must not mistake this for damage.
    """


class TemporaryFolderError(UnreachableError):
    """The folder for temporary files failed or is full, so a command that needs it cannot judge anything."""


class ReadOnlyError(UserError):
    """What was to be written lies where this user may only read."""


class UsageError(UserError):
    """The arguments of a command do not fit together."""

    exit_code = 2


class StoppedError(UserError):
    """Ctrl-C or a signal stopped the command; what was finished is kept.

    Parameters
    ----------
    message
        The sentence.
    exit_code
        128 and the number of the signal.
    """

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class IntegrityError(UserError):
    """What lies in the cache is not what its marker says."""

    exit_code = 4
