"""Read a JSON file that somebody else may have written: bounded, a regular file, and of the expected form."""

from __future__ import annotations

from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from ..errors import IntegrityError, UserError
from . import AnyPath, path_exists
from .atomic import read_file

MOST_BYTES = 64 * 2**20
"""Largest record that is read."""

T = TypeVar("T")


def read_record(path: AnyPath, form: TypeAdapter[T], what: str, advice: str) -> T:
    """Read and validate a JSON file.

    Parameters
    ----------
    path
        The file.
    form
        What it must hold.
    what
        What the file is, such as ``the record of a run``, for the error message.
    advice
        What to do if it is not, a sentence.

    Raises
    ------
    UserError
        If the file is missing, too large, not a regular file, or does not hold that.
    """
    try:
        return form.validate_json(read_file(path, MOST_BYTES))
    except IntegrityError as error:
        raise UserError(f"{error} {advice}") from error
    except ValidationError as error:
        raise UserError(f"{path}: is not {what} ({first_fault(error)}). {advice}") from error


def find_record(path: AnyPath, form: TypeAdapter[T], what: str, advice: str) -> T | None:
    """Read and validate a JSON file that need not be there, as `read_record`; None without it.

    Raises
    ------
    UserError
        If the file is there and damaged.
    """
    return read_record(path, form, what, advice) if path_exists(path) else None


def first_fault(error: ValidationError) -> str:
    """Return the first fault of a validation in a few words, such as ``epochs: input should be a valid integer``."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    message = f"{first['msg'][:1].lower()}{first['msg'][1:]}"
    return f"{where}: {message}" if where else message
