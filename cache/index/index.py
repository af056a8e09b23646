"""From key to shard and row: sorted arrays of binary keys, derived from the markers alone."""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..shards.keys import BINARY, KeyArray, binary_keys
from ..shards.marker import Marker, is_id

_Int32 = NDArray[np.int32]

MAX_ROWS = 2**31 - 1
"""Most rows of one feature that an index can number."""
_BLOCK = 1 << 20
_MANY = 1 << 16
"""Keys of a look-up that touches most pages of an index or a range of it, so they are not left in memory."""
_ABSENT = np.int32(-1)


@dataclass(frozen=True)
class ShardRows:
    """What an index takes from one marker.

    Attributes
    ----------
    shard
        The shard's id.
    keys
        (rows,) binary keys, in row order.
    bytes
        Size of the stored data.
    rejected
        Reason for each rejected key.
    merged
        Ids of the shards that this one replaces.
    """

    shard: str
    keys: KeyArray
    bytes: int
    rejected: Mapping[str, str]
    merged: tuple[str, ...]

    @classmethod
    def of(cls, marker: Marker) -> Self:
        """Take the fields from a marker, which can then be freed: its strings need six times the memory."""
        return cls(marker.shard, binary_keys(marker.keys), marker.bytes, marker.rejected, marker.merged)


@dataclass(frozen=True)
class IndexSegment:
    """The rows of some shards, sorted by key. Rows are numbered across the shards, in the order of ``shards``.

    Attributes
    ----------
    shards
        Ids, sorted.
    starts
        (shards + 1,) int64, the number of each shard's first row, then the number of all rows.
    bytes
        (shards,) int64, size of each shard's data.
    keys
        (rows,) binary, sorted. A key in several shards occurs several times.
    row_numbers
        (rows,) int32, the number of the row of each key; of equal keys the smaller number comes first.
    rejected, merged
        As in :class:`ShardRows`, for the shards that have any.
    """

    shards: Sequence[str]
    starts: NDArray[np.int64]
    bytes: NDArray[np.int64]
    keys: KeyArray
    row_numbers: _Int32
    rejected: Mapping[str, Mapping[str, str]]
    merged: Mapping[str, tuple[str, ...]]

    @classmethod
    def build(cls, shards: Iterable[ShardRows]) -> Self:
        """Sort the rows of these shards; ValueError if there are more than ``MAX_ROWS``."""
        ordered = sorted(shards, key=lambda rows: rows.shard)
        starts = np.cumsum([0, *(len(shard.keys) for shard in ordered)], dtype=np.int64)
        if starts[-1] > MAX_ROWS:
            raise ValueError(f"{starts[-1]:,} rows are more than an index can number")
        keys = np.concatenate([np.empty(0, BINARY), *(shard.keys for shard in ordered)])
        row_numbers = np.argsort(keys, kind="stable").astype(np.int32)
        return cls(
            shards=[shard.shard for shard in ordered],
            starts=starts,
            bytes=np.array([shard.bytes for shard in ordered], np.int64),
            keys=keys[row_numbers],
            row_numbers=row_numbers,
            rejected={shard.shard: shard.rejected for shard in ordered if shard.rejected},
            merged={shard.shard: shard.merged for shard in ordered if shard.merged},
        )

    def shard_rows(self) -> Iterator[ShardRows]:
        """Yield the shards that the segment was built from."""
        in_order = np.empty(len(self.keys), BINARY)
        in_order[self.row_numbers] = self.keys
        for number, shard in enumerate(self.shards):
            keys = in_order[self.starts[number] : self.starts[number + 1]]
            rejected, merged = self.rejected.get(shard, {}), self.merged.get(shard, ())
            yield ShardRows(shard, keys, int(self.bytes[number]), rejected, merged)

    def rows_of(self, shard: int) -> int:
        """Return the number of rows of the shard at this index."""
        return int(self.starts[shard + 1] - self.starts[shard])

    def forget_pages(self) -> None:
        """Give back the memory of what was read from a mapped file; the next look-up reads it again."""
        for array in (self.keys, self.row_numbers):
            base: object = array
            while isinstance(base, np.ndarray):
                base = base.base
            if isinstance(base, mmap.mmap):
                base.madvise(mmap.MADV_DONTNEED)

    def find(self, wanted: KeyArray, position: _Int32) -> tuple[_Int32, _Int32]:
        """Look up keys.

        Parameters
        ----------
        wanted
            (N,) binary keys. Sorted ones are found ten times faster.
        position
            (shards,) int32, the position of each shard in the caller's list; -1 for a shard to skip.

        Returns
        -------
        position : ndarray
            (N,) int32, position of the shard that holds each key; -1 if absent. Of several shards, the first one that
            is not skipped.
        row : ndarray
            (N,) int32, the row in that shard; -1 if absent.
        """
        found = np.full(len(wanted), _ABSENT)
        rows = np.full(len(wanted), _ABSENT)
        pending = np.arange(len(wanted))
        at = np.searchsorted(self.keys, wanted)
        while True:
            inside = at < len(self.keys)
            pending, at = pending[inside], at[inside]
            same = self.keys[at] == wanted[pending]
            pending, at = pending[same], at[same]
            if not len(pending):
                return found, rows
            number = self.row_numbers[at]
            shard = np.searchsorted(self.starts, number, side="right") - 1
            found[pending] = position[shard]
            rows[pending] = np.where(position[shard] >= 0, number - self.starts[shard], _ABSENT)
            skipped = position[shard] < 0  # a later shard may hold the same key
            pending, at = pending[skipped], at[skipped] + 1


EMPTY = IndexSegment.build([])


class Index:
    """The rows of all shards of one feature, as they were when the index was built.

    Shards that another present shard has merged, or whose marker is gone, are skipped. A key in several shards (two
    builders raced) is found in the one with the smallest id. No shard is in both segments.

    Parameters
    ----------
    fresh
        The rows of markers that the compacted index lacks.
    saved
        The compacted index on disk.
    present
        Ids of the shards that have a marker; all by default.

    Attributes
    ----------
    known : frozenset of str
        The present shards whose rows are in a segment.
    shards : list of str
        Ids of the shards that count, sorted; ``locate`` returns indices into this list.
    rejected : dict of str to str
        Reason for each planned key that has no row in any shard.
    """

    def __init__(
        self, fresh: IndexSegment = EMPTY, saved: IndexSegment = EMPTY, present: Collection[str] | None = None
    ) -> None:
        self.saved = saved
        self.fresh = fresh
        named = {*saved.shards, *fresh.shards}
        self.known = frozenset(named if present is None else named.intersection(present))
        merged = {**saved.merged, **fresh.merged}
        replaced = {old for new in self.known & merged.keys() for old in merged[new]}
        self.shards = sorted(self.known - replaced)
        position_of = {shard: number for number, shard in enumerate(self.shards)}
        self._segments = [
            (segment, np.array([position_of.get(shard, -1) for shard in segment.shards], np.int32))
            for segment in (saved, fresh)
            if segment.shards
        ]
        self.rejected = self._rejected()

    @classmethod
    def of(cls, markers: Iterable[Marker]) -> Index:
        """Return the index of the shards with these markers."""
        return cls(IndexSegment.build(ShardRows.of(marker) for marker in markers))

    @classmethod
    def empty(cls) -> Index:
        """Return the index of a feature without shards."""
        return cls()

    def extended(self, markers: Iterable[Marker], present: Collection[str] | None = None) -> Index:
        """Return a new index with further shards.

        Parameters
        ----------
        markers
            Of the shards to add.
        present
            Ids of the shards that have a marker; others are dropped. By default all stay.
        """
        new = {marker.shard: ShardRows.of(marker) for marker in markers}
        present = {*self.known, *new} if present is None else present
        if not new:
            return Index(self.fresh, self.saved, present)
        came_back = not new.keys().isdisjoint(self.saved.shards)  # its marker was gone for a while and may have changed
        before, saved = (self.whole(), EMPTY) if came_back else (self.fresh, self.saved)
        old = (rows for rows in before.shard_rows() if rows.shard in self.known and rows.shard not in new)
        return Index(IndexSegment.build([*old, *new.values()]), saved, present)

    def whole(self) -> IndexSegment:
        """Return all known rows as one segment, including shards that others have merged."""
        shards = (rows for segment in (self.saved, self.fresh) for rows in segment.shard_rows())
        return IndexSegment.build(rows for rows in shards if rows.shard in self.known)

    def locate(self, keys: Sequence[str] | NDArray[Any]) -> tuple[_Int32, _Int32]:
        """Look up keys.

        Parameters
        ----------
        keys
            N strings of 32 hex digits, an array of them, or binary keys; see :func:`..shards.keys.binary_keys`.

        Returns
        -------
        shard : ndarray
            (N,) int32, index of each key's shard in ``shards``; -1 if absent.
        row : ndarray
            (N,) int32, its row in that shard; -1 if absent.

        Raises
        ------
        ValueError
            If a key is malformed.
        """
        wanted = binary_keys(keys)
        order = np.argsort(wanted, kind="stable")
        found = np.full(len(wanted), _ABSENT)
        row = np.full(len(wanted), _ABSENT)
        for start in range(0, len(order), _BLOCK):
            block = order[start : start + _BLOCK]
            for segment, position in self._segments:
                shard_here, row_here = segment.find(wanted[block], position)
                better = (shard_here >= 0) & ((found[block] < 0) | (shard_here < found[block]))
                found[block[better]] = shard_here[better]
                row[block[better]] = row_here[better]
                if len(order) >= _MANY:
                    segment.forget_pages()
        return found, row

    def agrees_with(self, marker: Marker) -> bool:
        """Return whether the index and a marker name the same rows of a shard.

        A shard that is not in the index cannot disagree.
        """
        keys = binary_keys(marker.keys)
        for segment, _ in self._segments:
            number = bisect_left(segment.shards, marker.shard)
            if segment.shards[number : number + 1] == [marker.shard]:
                only = np.full(len(segment.shards), _ABSENT)
                only[number] = 0
                rows = segment.find(keys, only)[1]
                return segment.rows_of(number) == len(keys) and np.array_equal(rows, np.arange(len(keys)))
        return True

    def stored_bytes(self, shards: Iterable[str]) -> int:
        """Return the total bytes of the data of these shards, as their markers say; KeyError for an unknown one."""
        size: dict[str, int] = {}
        for segment, _ in self._segments:
            size.update(zip(segment.shards, segment.bytes.tolist(), strict=True))
        return sum(size[shard] for shard in shards)

    @property
    def keys(self) -> KeyArray:
        """The distinct keys that have a row, binary, sorted; computed on each access."""
        held = []
        for segment, position in self._segments:
            shard = np.searchsorted(segment.starts, segment.row_numbers, side="right") - 1
            held.append(segment.keys[position[shard] >= 0])
        return np.unique(np.concatenate([np.empty(0, BINARY), *held]))

    def __contains__(self, key: str) -> bool:
        """Return whether the key has a row."""
        return is_id(key) and bool(self.locate([key])[0][0] >= 0)

    def __len__(self) -> int:
        """Return the number of distinct keys that have a row."""
        return len(self.keys)

    def _rejected(self) -> dict[str, str]:
        """Return the reason for each planned key that has no row in any shard; of several, that of the first shard."""
        reasons = {**self.saved.rejected, **self.fresh.rejected}
        found: dict[str, str] = {}
        for shard in sorted(reasons.keys() & set(self.shards)):
            for key, reason in reasons[shard].items():
                found.setdefault(key, reason)
        absent = self.locate(list(found))[0] < 0
        return {key: reason for (key, reason), lacks in zip(found.items(), absent.tolist(), strict=True) if lacks}
