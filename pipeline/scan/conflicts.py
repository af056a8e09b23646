"""The rows of a scan: one for each usable file, the conflicts between them, and the dataset's table.

Files with the same bytes and both labels are rejected. Bytes that occur in several splits are kept in test only (else
in val only). Bytes that occur twice with one label in one split are two occurrences and stay two rows. All counts are
of files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa

from ...cache.records.datasets import SCHEMA
from ...images.file import Reason
from ..sources.file import SourceFile, printable

_PRECEDENCE = ("test", "val", "train")
"""An image that is in several splits stays in the first of these."""


class ScannedRow(NamedTuple):
    """One usable occurrence of an image.

    Attributes
    ----------
    file
        The file.
    key
        Key of its bytes, 32 hex digits.
    width, height
        Size in pixels as displayed.
    format
        File format in lower case.
    bytes
        Size of the file.
    turned, metadata_bytes, traits
        For an audit, see :class:`.memory.ScanEntry`. ``traits`` is empty for a row that was not scanned.
    """

    file: SourceFile
    key: str
    width: int
    height: int
    format: str
    bytes: int
    turned: bool = False
    metadata_bytes: int = 0
    traits: str = ""


@dataclass(frozen=True, slots=True)
class Reject:
    """One file that cannot be used.

    Attributes
    ----------
    path
        Its path or URL.
    reason
        One of :data:`...images.file.Reason`.
    detail
        Short description.
    file
        The file, where it is known.
    """

    path: str
    reason: Reason
    detail: str
    file: SourceFile | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, file: SourceFile, reason: Reason, detail: str) -> Reject:
        """Return the reject of a file."""
        return cls(printable(file.location), reason, detail, file)

    def as_json(self) -> dict[str, str]:
        """Return path, reason and description."""
        return {"path": self.path, "reason": self.reason, "detail": self.detail}


@dataclass(frozen=True, slots=True)
class ConflictResolution:
    """Rows without conflicts, files rejected for both labels and their number, and files left out as leaks."""

    rows: list[ScannedRow]
    rejects: list[Reject]
    label_conflicts: int
    leaks: list[Reject]


def resolve_conflicts(rows: Sequence[ScannedRow]) -> ConflictResolution:
    """Reject bytes with both labels, and keep bytes that are in several splits in one of them only.

    Test takes precedence over val, val over train. Labels are compared first, across all splits.
    """
    repeated = {key for key, count in Counter([row.key for row in rows]).items() if count > 1}
    if not repeated:
        return ConflictResolution(list(rows), [], 0, [])
    labels: dict[str, set[int]] = {key: set() for key in repeated}
    splits: dict[str, list[str]] = {key: [] for key in repeated}
    for row in rows:
        if row.key in repeated:
            labels[row.key].add(row.file.label)
            splits[row.key].append(row.file.split)
    kept, rejects, leaks = [], [], []
    for row in rows:
        if row.key not in repeated:
            kept.append(row)
        elif len(labels[row.key]) > 1:
            both = f"the same bytes are real and fake (key {row.key})"
            rejects.append(Reject.of(row.file, "label-conflict", both))
        elif row.file.split == (keeper := min(splits[row.key], key=_PRECEDENCE.index)):
            kept.append(row)
        else:
            why = f"the same bytes are in {keeper} (key {row.key})"
            leaks.append(Reject.of(row.file, "leaked", why))
    return ConflictResolution(kept, rejects, len(rejects), leaks)


def to_table(rows: Sequence[ScannedRow]) -> pa.Table:
    """Return the rows as a table with the columns of :data:`...cache.records.datasets.SCHEMA`."""
    columns = {
        "key": [row.key for row in rows],
        "source": [row.file.root for row in rows],
        "path": [row.file.path for row in rows],
        "label": [row.file.label for row in rows],
        "split": [row.file.split for row in rows],
        "generator": [row.file.generator for row in rows],
        "family": [row.file.family for row in rows],
        "group": [row.file.group for row in rows],
        "width": [row.width for row in rows],
        "height": [row.height for row in rows],
        "format": [row.format for row in rows],
        "bytes": [row.bytes for row in rows],
    }
    return pa.table(columns, schema=SCHEMA)
