"""Parse a record that lies beside a revision's table."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from ...errors import IntegrityError
from ...storage.json_record import first_fault

Record = TypeVar("Record", bound=BaseModel)


def parse_record(record: type[Record], data: bytes, name: str, what: str) -> Record:
    """Parse the JSON of a record.

    Parameters
    ----------
    record
        Its model.
    data
        The content of the file.
    name, what
        The file's name, and what it is, for the message.

    Raises
    ------
    IntegrityError
        If it is not valid.
    """
    try:
        return record.model_validate_json(data)
    except ValidationError as error:
        raise IntegrityError(
            f"{name}: is not a valid {what} ({first_fault(error)}), so the file is damaged."
        ) from error
