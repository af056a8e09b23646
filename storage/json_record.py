"""Read a JSON file that somebody else may have written: bounded, a regular file, and of the expected form.

pydantic keeps an error for each wrong item of a list or a mapping, some hundred bytes for every few bytes of a file. So
lists of items that are all alike are :data:`Items`, or are declared with ``FailFast``. Mappings are :data:`TextByName`,
:data:`CountByName`, :data:`NumberByName` or :data:`RecordByName`, or are declared with :func:`entries`. No object may have more
than `MOST_NAMES` names, for each one that its form does not know would be an error. The errors of a file that has very
many are not listed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, FailFast, TypeAdapter, ValidationError

from ..errors import IntegrityError, UserError
from . import AnyPath, path_exists
from .atomic import read_file
from .text import visible

MOST_BYTES = 64 * 2**20
"""Largest record that is read."""
MOST_NAMES = 500_000
"""Names in one object of a record. There may be one for each shard of a cache."""
_MOST_FAULTS = 1000
_LONGEST_NAME = 200
"""Characters of a name in a message: the name of a field that does not exist may be as long as the file."""

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)


class InvalidRecordError(ValueError):
    """A JSON text is not what it should be; the message says why in a few words."""


def parse_model(model: type[Model], text: bytes) -> Model:
    """Validate a JSON text, with memory in proportion to its length. Raises InvalidRecordError."""
    return _validated(model.model_validate_json, text)


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
        return _validated(form.validate_json, read_file(path, MOST_BYTES))
    except IntegrityError as error:
        raise UserError(f"{error} {advice}") from error
    except InvalidRecordError as error:
        raise UserError(f"{path}: is not {what} ({error}). {advice}") from error


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
    if error.error_count() > _MOST_FAULTS:
        return f"{error.error_count():,} of its values are wrong"
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = _shortened(".".join(map(str, first["loc"])))
    message = f"{first['msg'][:1].lower()}{first['msg'][1:]}"
    return f"{where}: {message}" if where else message


def entries(
    is_name: Callable[[str], object], value: type | tuple[type, ...] | Callable[[object], bool]
) -> BeforeValidator:
    """Return a validator of a mapping that stops at the first wrong entry, before pydantic looks at each.

    Parameters
    ----------
    is_name
        Whether a text may be the name of an entry.
    value
        The type of the JSON values, or whether one is a value of an entry.
    """
    is_value = (lambda found: isinstance(found, value)) if isinstance(value, (type, tuple)) else value

    def check(content: object) -> object:
        for name, found in content.items() if isinstance(content, dict) else ():
            if not is_name(name) or not is_value(found):
                raise ValueError(f"the entry {_shortened(name)} is not one of these")
        return content

    return BeforeValidator(check)


def _is_text(name: object) -> bool:
    return isinstance(name, str)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: object) -> bool:
    if type(value) is int:
        return abs(value) < 2**63
    return value is None or (type(value) is float and math.isfinite(value))


class _FirstOnly(FailFast):
    """``FailFast`` in a type that may be one of a union: pydantic's own has no hash, which ``|`` asks for."""

    __hash__ = object.__hash__


Items = Annotated[list[T], _FirstOnly()]
"""A list of which the first wrong item is reported, and no other."""
TextByName = Annotated[dict[str, str], entries(_is_text, str)]
CountByName = Annotated[dict[str, int], entries(_is_text, _is_count)]
RecordByName = Annotated[dict[str, dict[str, Any]], entries(_is_text, dict)]
NumberByName = Annotated[dict[str, float | int | None], entries(_is_text, _is_number)]
"""Finite numbers; None for one that is not defined."""


def _validated(validate: Callable[[bytes], T], text: bytes) -> T:
    """Validate a JSON text, with memory in proportion to its length. Raises InvalidRecordError."""
    _check_names(text)
    try:
        return validate(text)
    except ValidationError as error:
        raise InvalidRecordError(first_fault(error)) from error


def _check_names(text: bytes) -> None:
    """Raise InvalidRecordError if an object of a JSON text has more than `MOST_NAMES` names, each counted when it comes.

    A text that is no JSON passes: its form refuses it.
    """

    def check(pairs: list[tuple[str, object]]) -> None:
        if len(pairs) > MOST_NAMES:
            raise InvalidRecordError(f"one object has {len(pairs):,} names")

    if text.count(b":") > MOST_NAMES:
        with suppress(json.JSONDecodeError, UnicodeDecodeError, RecursionError):
            json.loads(text, object_pairs_hook=check)


def _shortened(name: str) -> str:
    return visible(name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…")
