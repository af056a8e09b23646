"""Where each key's row lies: sorted arrays of binary keys, derived from the markers alone."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..shards.keys import BINARY, KeyArray, binary_keys
from ..shards.marker import Marker, is_id

Numbers = NDArray[np.int32]

MAX_ROWS = 2**31 - 1
"""Rows of one feature that an index can number."""
_BLOCK = 1 << 20
_ABSENT = np.int32(-1)


@dataclass(frozen=True)
class ShardRows:
    """What an index takes from one marker.

    keys : (rows,) binary, in row order. bytes : size of the stored data. rejected : key -> reason. merged : ids of the
    shards that this one replaces.
    """

    shard: str
    keys: KeyArray
    bytes: int
    rejected: Mapping[str, str]
    merged: tuple[str, ...]

    @classmethod
    def of(cls, marker: Marker) -> Self:
        """Take them from the marker, which may be forgotten then: its strings are six times as large."""
        return cls(marker.shard, binary_keys(marker.keys), marker.bytes, marker.rejected, marker.merged)


@dataclass(frozen=True)
class IndexSegment:
    """The rows of some shards, sorted by key; those of all shards are numbered through, shard after shard.

    shards : ids, sorted. starts : (shards + 1,) int64, number of each shard's first row, and of all rows.
    bytes : (shards,) int64. keys : (rows,) sorted; one that is in several shards is there as often.
    places : (rows,) int32, the number of the row that holds the key; of equal keys, the smaller number first.
    rejected, merged : as in :class:`ShardRows`, of the shards that have any.
    """

    shards: Sequence[str]
    starts: NDArray[np.int64]
    bytes: NDArray[np.int64]
    keys: KeyArray
    places: Numbers
    rejected: Mapping[str, Mapping[str, str]]
    merged: Mapping[str, tuple[str, ...]]

    @classmethod
    def build(cls, shards: Iterable[ShardRows]) -> Self:
        """Sort the rows of these shards; ValueError if there are more than ``MAX_ROWS``."""
        ordered = sorted(shards, key=lambda one: one.shard)
        starts = np.cumsum([0, *(len(one.keys) for one in ordered)], dtype=np.int64)
        if starts[-1] > MAX_ROWS:
            raise ValueError(f"{starts[-1]:,} rows are more than an index can number")
        keys = np.concatenate([np.empty(0, BINARY), *(one.keys for one in ordered)])
        places = np.argsort(keys, kind="stable").astype(np.int32)
        return cls(
            shards=[one.shard for one in ordered],
            starts=starts,
            bytes=np.array([one.bytes for one in ordered], np.int64),
            keys=keys[places],
            places=places,
            rejected={one.shard: one.rejected for one in ordered if one.rejected},
            merged={one.shard: one.merged for one in ordered if one.merged},
        )

    def shard_rows(self) -> Iterator[ShardRows]:
        """Yield what the part was built from."""
        in_order = np.empty(len(self.keys), BINARY)
        in_order[self.places] = self.keys
        for number, shard in enumerate(self.shards):
            keys = in_order[self.starts[number] : self.starts[number + 1]]
            rejected, merged = self.rejected.get(shard, {}), self.merged.get(shard, ())
            yield ShardRows(shard, keys, int(self.bytes[number]), rejected, merged)

    def rows_of(self, number: int) -> int:
        """Return the rows of the shard with this number."""
        return int(self.starts[number + 1] - self.starts[number])

    def find(self, wanted: KeyArray, position: Numbers) -> tuple[Numbers, Numbers]:
        """Look up keys in those shards that have a position.

        wanted : (N,) binary keys; sorted ones are found ten times faster. position : (shards,), -1 to pass over a shard.
        Returns (position, row in the shard) for each, -1 where absent; of several shards, the first in order.
        """
        found = np.full(len(wanted), _ABSENT)
        rows = np.full(len(wanted), _ABSENT)
        waiting = np.arange(len(wanted))
        place = np.searchsorted(self.keys, wanted)
        while True:
            inside = place < len(self.keys)
            waiting, place = waiting[inside], place[inside]
            same = self.keys[place] == wanted[waiting]
            waiting, place = waiting[same], place[same]
            if not len(waiting):
                return found, rows
            number = self.places[place]
            shard = np.searchsorted(self.starts, number, side="right") - 1
            found[waiting] = position[shard]
            rows[waiting] = np.where(position[shard] >= 0, number - self.starts[shard], _ABSENT)
            passed = position[shard] < 0  # the same key may lie in a later shard
            waiting, place = waiting[passed], place[passed] + 1


EMPTY = IndexSegment.build([])


class Index:
    """The rows of all shards of one feature, as they were when the index was made.

    saved : the part that was read from the compacted index on disk; fresh : that of markers it does not know.
    present : ids of the shards that have a marker, by default all. A shard that another one present has merged, or
    whose marker is gone, is passed over.
    No shard is in both parts. shards : ids of those that count, sorted; ``locate`` answers with positions in this list.
    A key that lies in several shards (two builders raced) is found in the one with the smallest id.
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
        number_of = {shard: number for number, shard in enumerate(self.shards)}
        self._parts = [
            (part, np.array([number_of.get(shard, -1) for shard in part.shards], np.int32))
            for part in (saved, fresh)
            if part.shards
        ]
        self.rejected = self._rejected()

    @classmethod
    def of(cls, markers: Iterable[Marker]) -> Index:
        """Return the index of these shards."""
        return cls(IndexSegment.build(ShardRows.of(marker) for marker in markers))

    @classmethod
    def empty(cls) -> Index:
        """Return the index of a feature without shards."""
        return cls()

    def extended(self, markers: Iterable[Marker], present: Collection[str] | None = None) -> Index:
        """Return a new index that also holds the rows of these shards, and none of shards that are not ``present``."""
        new = {marker.shard: ShardRows.of(marker) for marker in markers}
        present = {*self.known, *new} if present is None else present
        if not new:
            return Index(self.fresh, self.saved, present)
        came_back = not new.keys().isdisjoint(self.saved.shards)  # its marker was gone for a while and may be another
        before, saved = (self.whole(), EMPTY) if came_back else (self.fresh, self.saved)
        old = (one for one in before.shard_rows() if one.shard in self.known and one.shard not in new)
        return Index(IndexSegment.build([*old, *new.values()]), saved, present)

    def whole(self) -> IndexSegment:
        """Return all that is known in one part, shards that others merged included."""
        rows = (one for part in (self.saved, self.fresh) for one in part.shard_rows())
        return IndexSegment.build(one for one in rows if one.shard in self.known)

    def locate(self, keys: Sequence[str] | NDArray[Any]) -> tuple[Numbers, Numbers]:
        """Return (position in ``shards``, row in that shard) of each key, two int32 arrays; (-1, -1) where absent.

        keys : N strings of 32 hex digits, an array of them, or binary keys (see :mod:`..shards.keys`, ValueError there).
        """
        wanted = binary_keys(keys)
        order = np.argsort(wanted, kind="stable")
        found = np.full(len(wanted), _ABSENT)
        row = np.full(len(wanted), _ABSENT)
        for start in range(0, len(order), _BLOCK):
            block = order[start : start + _BLOCK]
            for part, position in self._parts:
                one, its_row = part.find(wanted[block], position)
                better = (one >= 0) & ((found[block] < 0) | (one < found[block]))
                found[block[better]] = one[better]
                row[block[better]] = its_row[better]
        return found, row

    def agrees_with(self, marker: Marker) -> bool:
        """Say whether every row that the index places in a shard is the one that the shard's marker names.

        A shard that the index does not hold cannot disagree.
        """
        keys = binary_keys(marker.keys)
        for part, _ in self._parts:
            number = bisect_left(part.shards, marker.shard)
            if part.shards[number : number + 1] == [marker.shard]:
                only = np.full(len(part.shards), _ABSENT)
                only[number] = 0
                rows = part.find(keys, only)[1]
                return part.rows_of(number) == len(keys) and np.array_equal(rows, np.arange(len(keys)))
        return True

    def stored_bytes(self, shards: Iterable[str]) -> int:
        """Return the summed size of the data of these shards, as their markers say it. KeyError for an unknown one."""
        size = {
            shard: one for part, _ in self._parts for shard, one in zip(part.shards, part.bytes.tolist(), strict=True)
        }
        return sum(size[shard] for shard in shards)

    @property
    def keys(self) -> KeyArray:
        """The distinct keys that have a row, binary, sorted (made anew each time)."""
        held = []
        for part, position in self._parts:
            shard = np.searchsorted(part.starts, part.places, side="right") - 1
            held.append(part.keys[position[shard] >= 0])
        return np.unique(np.concatenate([np.empty(0, BINARY), *held]))

    def __contains__(self, key: str) -> bool:
        """Say whether the key has a row."""
        return is_id(key) and bool(self.locate([key])[0][0] >= 0)

    def __len__(self) -> int:
        """Return the number of distinct keys that have a row."""
        return len(self.keys)

    def _rejected(self) -> dict[str, str]:
        """Return the reason for each key that was planned and has a row in no shard; the first shard's reason."""
        reasons = {**self.saved.rejected, **self.fresh.rejected}
        found: dict[str, str] = {}
        for shard in sorted(reasons.keys() & set(self.shards)):
            for key, reason in reasons[shard].items():
                found.setdefault(key, reason)
        absent = self.locate(list(found))[0] < 0
        return {key: reason for (key, reason), lacks in zip(found.items(), absent.tolist(), strict=True) if lacks}
