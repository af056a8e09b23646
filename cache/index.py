"""Where each key's row lies: a sorted array of fixed-width keys, derived from the markers alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from .marker import ID_DIGITS, Marker

KEY_DTYPE = np.dtype(f"S{ID_DIGITS}")
KeyArray = NDArray[np.bytes_]
Numbers = NDArray[np.int32]


class Index:
    """The rows of all shards of one feature, as they were when the index was made.

    shards : shard ids, sorted; ``locate`` answers with positions in this list.
    rejected : reason for each key that was planned and has a row in no shard.
    A key that lies in several shards (two builders raced) is found in the one with the smallest id.
    """

    def __init__(self, shard_keys: dict[str, KeyArray], shard_rejected: dict[str, dict[str, str]]) -> None:
        self._shard_keys = dict(sorted(shard_keys.items()))
        self._shard_rejected = shard_rejected
        self.shards = list(self._shard_keys)
        lengths = [len(keys) for keys in self._shard_keys.values()]
        everything = np.concatenate([np.empty(0, KEY_DTYPE), *self._shard_keys.values()])
        order = np.argsort(everything, kind="stable")
        everything = everything[order]
        first = np.ones(len(everything), dtype=bool)
        first[1:] = everything[1:] != everything[:-1]
        order = order[first]
        self.keys: KeyArray = everything[first]
        self._shard_no = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)[order]
        self._row = np.concatenate([np.empty(0, np.int32), *(np.arange(n, dtype=np.int32) for n in lengths)])[order]
        self.rejected: dict[str, str] = {}
        for shard in sorted(shard_rejected):
            for key, reason in shard_rejected[shard].items():
                if key not in self.rejected and key not in self:
                    self.rejected[key] = reason

    @classmethod
    def empty(cls) -> Self:
        """Return the index of a feature without shards."""
        return cls({}, {})

    def extended(self, markers: Iterable[Marker]) -> Index:
        """Return a new index that also holds the rows of these shards."""
        markers = list(markers)
        keys = {marker.shard: np.array(marker.keys, dtype=KEY_DTYPE) for marker in markers}
        rejected = {marker.shard: marker.rejected for marker in markers if marker.rejected}
        return Index({**self._shard_keys, **keys}, {**self._shard_rejected, **rejected})

    @property
    def known(self) -> set[str]:
        """The ids of the shards that the index was made from."""
        return set(self.shards)

    def locate(self, keys: Sequence[str] | KeyArray) -> tuple[Numbers, Numbers]:
        """Return (position in ``shards``, row in that shard) of each key, two int32 arrays; (-1, -1) where absent.

        keys : N strings, or an array of N fixed-width byte strings (S32).
        """
        wanted = as_key_array(keys)
        if not len(self.keys):
            absent = np.full(len(wanted), -1, dtype=np.int32)
            return absent, absent.copy()
        place = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        found = self.keys[place] == wanted
        missing = np.int32(-1)
        return np.where(found, self._shard_no[place], missing), np.where(found, self._row[place], missing)

    def __contains__(self, key: str) -> bool:
        """Say whether the key has a row."""
        return bool(self.locate([key])[0][0] >= 0)

    def __len__(self) -> int:
        """Return the number of distinct keys that have a row."""
        return len(self.keys)


def as_key_array(keys: Sequence[str] | KeyArray) -> KeyArray:
    """Return keys as an array of S32, and refuse longer strings rather than cut them (ValueError)."""
    array = np.asarray(keys, dtype=np.bytes_) if len(keys) else np.empty(0, KEY_DTYPE)
    if array.ndim != 1 or array.dtype.itemsize > ID_DIGITS:
        raise ValueError(f"keys must be one row of strings of {ID_DIGITS} digits")
    return array.astype(KEY_DTYPE, copy=False)
