"""Parse a record that lies beside a revision's table."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from ...errors import IntegrityError

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
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        fault = f"{where}: {first['msg']}" if where else first["msg"]
        raise IntegrityError(f"{name}: is not a valid {what} ({fault.lower()}), so the file is damaged.") from error
