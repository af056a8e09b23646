"""What the records beside a revision's table have in common: their models, and how they are parsed."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from ...errors import IntegrityError
from ...storage.json_record import InvalidRecordError, parse_model

Area = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
"""An AUC, or an end of its interval."""
Count = Annotated[int, Field(ge=0)]


class StoredRecord(BaseModel):
    """A record, or a part of one: complete, without unknown fields, and never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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
        return parse_model(record, data)
    except InvalidRecordError as error:
        raise IntegrityError(f"{name}: is not a valid {what} ({error}), so the file is damaged.") from error
