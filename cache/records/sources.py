"""Where every file of a revision's sources went, stored as ``datasets/NAME/REVISION.sources.json``.

The build that first writes a revision writes it. Revisions of earlier versions have none.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import FailFast, model_validator

from ...storage.json_record import CountByName
from .parse import Count, StoredRecord, parse_record


class UncoveredImages(StoredRecord):
    """Images in no class folder, row or sample: their folder, why they are not taken, how many, and the first."""

    folder: str
    reason: str
    images: Count
    example: str


class UnreadPlace(StoredRecord):
    """A folder or link that was not entered, and why."""

    path: str
    reason: str


class SourceRecord(StoredRecord):
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
    files: Count
    images: Count
    used: Count
    rejected: CountByName
    leaked: Count
    not_images: Count
    hidden: Count
    uncovered: Annotated[tuple[UncoveredImages, ...], FailFast()]
    unreadable: Annotated[tuple[UnreadPlace, ...], FailFast()]
    notes: Annotated[tuple[str, ...], FailFast()]

    @model_validator(mode="after")
    def _adds_up(self) -> SourceRecord:
        """Raise ValueError if a file is counted nowhere, or twice."""
        if self.images != self.used + sum(self.rejected.values()) + self.leaked:
            raise ValueError("used, rejected and leaked are not the images")
        if self.files != self.images + self.not_images + self.hidden + sum(one.images for one in self.uncovered):
            raise ValueError("the parts are not the sum of the files")
        return self


class SourceRecords(StoredRecord):
    """The accounts of all sources of a revision, in the order in which they were given."""

    version: Literal[1] = 1
    sources: Annotated[tuple[SourceRecord, ...], FailFast()]

    def as_json(self) -> bytes:
        """Return the content of the file."""
        return self.model_dump_json(indent=2).encode() + b"\n"

    def within(self, most_bytes: int) -> SourceRecords:
        """Return the accounts with so few folders, places and notes listed that their JSON has at most so many bytes."""
        listed, shorter = max(map(_longest_list, self.sources), default=0), self
        while len(shorter.as_json()) > most_bytes and listed > 1:
            listed //= 2
            shorter = SourceRecords(sources=tuple(_with_fewer(source, listed) for source in self.sources))
        return shorter


def _longest_list(record: SourceRecord) -> int:
    return max(len(record.uncovered), len(record.unreadable), len(record.notes))


def _with_fewer(record: SourceRecord, most: int) -> SourceRecord:
    """Return an account in which each list has at most ``most`` items, and one that stands for the others."""
    uncovered = sorted(record.uncovered, key=lambda entry: -entry.images)
    if others := uncovered[most:]:
        images, folder = sum(entry.images for entry in others), f"{len(others):,} other folders"
        rest = UncoveredImages(
            folder=folder, reason="these folders are too many to list", images=images, example=others[0].example
        )
        uncovered = [*uncovered[:most], rest]
    unreadable, notes = list(record.unreadable[:most]), list(record.notes[:most])
    if more := record.unreadable[most:]:
        unreadable.append(UnreadPlace(path=f"{len(more):,} other places", reason=more[0].reason))
    if len(record.notes) > most:
        notes.append(f"{len(record.notes) - most:,} other notes are not listed.")
    return record.model_copy(
        update={"uncovered": tuple(uncovered), "unreadable": tuple(unreadable), "notes": tuple(notes)}
    )


def parse_sources(data: bytes, name: str) -> SourceRecords:
    """Parse what :meth:`SourceRecords.as_json` wrote. Raises IntegrityError, with the file's ``name``, for anything else."""
    return parse_record(SourceRecords, data, name, "account of sources")
