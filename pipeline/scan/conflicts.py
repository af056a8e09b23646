"""Conflicts between the rows of a scan: the same bytes with both labels, or in several splits.

Files with the same bytes and both labels are rejected. Bytes that occur in several splits are kept in test only (else
in val only). Bytes that occur twice with one label in one split are two occurrences and stay two rows. All counts are
of files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from ...cache.shards.keys import BINARY
from ...images.file import Reason
from ...storage.disk_array import Records, group_starts, numbered, sort_records, whole_groups
from ..sources.file import SourceFile, printable
from .rows import RowTable, ScannedRow

_SPLITS = ("test", "val", "train")
"""An image that is in several splits stays in the first of these."""
_PRECEDENCE = {split: number for number, split in enumerate(_SPLITS)}


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

    rows: RowTable
    rejects: list[Reject]
    label_conflicts: int
    leaks: list[Reject]


_OCCURRENCE = np.dtype([("key", BINARY), ("row", ">u8"), ("kind", ">u4")])
_OUTCOME = np.dtype([("row", "<i8"), ("keeper", "<i4")])
"""A row that is not kept, and the place in ``_SPLITS`` of the split that keeps its bytes; -1 if both labels do."""


def resolve_conflicts(rows: Iterable[ScannedRow]) -> ConflictResolution:
    """Reject bytes with both labels, and keep bytes that are in several splits in one of them only.

    Test takes precedence over val, val over train. Labels are compared first, across all splits.
    """
    table = RowTable.of(rows)
    dropped = np.concatenate([np.empty(0, _OUTCOME), *_dropped(table)])
    if not len(dropped):
        return ConflictResolution(table, [], 0, [])
    dropped.sort(order="row")
    rejects: list[Reject] = []
    leaks: list[Reject] = []
    kept = RowTable(table.files, table.looks)
    start = 0
    for block in table.blocks():
        first, last = np.searchsorted(dropped["row"], [start, start + len(block)])
        here = dropped[first:last]
        inside = here["row"] - start
        for row, keeper in zip(table.made(block[inside]), here["keeper"].tolist(), strict=True):
            if keeper < 0:
                both = f"the same bytes are real and fake (key {row.key})"
                rejects.append(Reject.of(row.file, "label-conflict", both))
            else:
                why = f"the same bytes are in {_SPLITS[keeper]} (key {row.key})"
                leaks.append(Reject.of(row.file, "leaked", why))
        kept.append(np.delete(block, inside))
        start += len(block)
    return ConflictResolution(kept, rejects, len(rejects), leaks)


def _dropped(table: RowTable) -> Iterator[Records]:
    """Yield the rows that are not kept, of the dtype ``_OUTCOME``, in the order of their keys."""
    occurrences = sort_records(_occurrences(table), _OCCURRENCE)
    label = np.array([kind.label for kind in table.kinds], np.int64)
    place = np.array([_PRECEDENCE.get(kind.split, -1) for kind in table.kinds], np.int64)
    for block in whole_groups(occurrences.blocks(), "key"):
        starts = group_starts(block["key"])
        sizes = np.diff(starts, append=len(block))
        repeated = block[np.repeat(sizes > 1, sizes)]
        if not len(repeated):
            continue
        sizes = sizes[sizes > 1]
        starts = np.cumsum(sizes) - sizes
        labels, places = label[repeated["kind"]], place[repeated["kind"]]
        assert places.min() >= 0, "a row without a split"
        keeper = np.minimum.reduceat(places, starts)
        keeper[np.minimum.reduceat(labels, starts) != np.maximum.reduceat(labels, starts)] = -1
        keeper = np.repeat(keeper, sizes)
        lost = keeper != places
        outcome = np.empty(np.count_nonzero(lost), _OUTCOME)
        outcome["row"], outcome["keeper"] = repeated["row"][lost], keeper[lost]
        yield outcome


def _occurrences(table: RowTable) -> Iterator[Records]:
    for numbers, block in numbered(table.blocks()):
        found = np.empty(len(block), _OCCURRENCE)
        found["key"], found["kind"], found["row"] = block["key"], block["kind"], numbers
        yield found
