"""Where every file of a revision's sources went, stored as ``datasets/NAME/REVISION.sources.json``.

The build that first writes a revision writes it. Revisions of earlier versions have none.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .parse import parse_record

_Count = Annotated[int, Field(ge=0)]


class _StoredAccount(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class UncoveredImages(_StoredAccount):
    """Images in no class folder, row or sample: their folder, why they are not taken, how many, and the first."""

    folder: str
    reason: str
    images: _Count
    example: str


class UnreadPlace(_StoredAccount):
    """A folder or link that was not entered, and why."""

    path: str
    reason: str


class SourceRecord(_StoredAccount):
    """The account of one source; :attr:`files` is the sum of what follows.

    Attributes
    ----------
    source
        The source as given.
    layout
        The layout that was recognised or named.
    files
        All files under the root: members of archives, rows of tables.
    images
        Those that were taken for images of the data set: used, rejected and leaked.
    used
        Images in the data set.
    rejected
        Reason -> images that cannot be used.
    leaked
        Images left out of a split because another has the same bytes.
    not_images
        Files that are no images by their first bytes.
    hidden
        Hidden files, and files that operating systems leave.
    uncovered
        Images that were not taken.
    unreadable
        Places that were not entered. Their files are counted nowhere.
    notes
        What was guessed, mapped or left out.
    """

    source: str
    layout: str
    files: _Count
    images: _Count
    used: _Count
    rejected: dict[str, _Count]
    leaked: _Count
    not_images: _Count
    hidden: _Count
    uncovered: tuple[UncoveredImages, ...]
    unreadable: tuple[UnreadPlace, ...]
    notes: tuple[str, ...]

    @model_validator(mode="after")
    def _adds_up(self) -> SourceRecord:
        """Raise ValueError if a file is counted nowhere, or twice."""
        if self.images != self.used + sum(self.rejected.values()) + self.leaked:
            raise ValueError("used, rejected and leaked are not the images")
        if self.files != self.images + self.not_images + self.hidden + sum(one.images for one in self.uncovered):
            raise ValueError("the parts are not the sum of the files")
        return self


class SourceRecords(_StoredAccount):
    """The accounts of all sources of a revision, in the order in which they were given."""

    version: Literal[1] = 1
    sources: tuple[SourceRecord, ...]

    def as_json(self) -> bytes:
        """Return the content of the file."""
        return self.model_dump_json(indent=2).encode() + b"\n"


def parse_sources(data: bytes, name: str) -> SourceRecords:
    """Parse what :meth:`SourceRecords.as_json` wrote. Raises IntegrityError, with the file's ``name``, for anything else."""
    return parse_record(SourceRecords, data, name, "account of sources")
