"""The shards that a feature keeps open, so that reading many rows of one does not open it many times."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .format import ShardReader

MAX_OPEN = 64
"""Shards of a feature that stay open; those that were not read for the longest time are closed."""
REMOTE_OPEN = 8192
"""The same where nothing stays open but what is known of a shard, some 10 KB: opening one takes several requests."""


class OpenShard(NamedTuple):
    """What reading needs to know of a shard, without the keys in its marker."""

    rows: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    reader: ShardReader


class OpenShards:
    """Up to ``most`` open shards of one feature, by default ``MAX_OPEN``.

    There is no lock: what one thread sets aside stays open for whoever still reads it.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._shards: OrderedDict[str, OpenShard] = OrderedDict()
        self._process = os.getpid()

    def get(self, shard_id: str, open_it: Callable[[str], OpenShard]) -> OpenShard:
        """Return a shard that is open, or open it."""
        if self._process != os.getpid():  # readers do not outlive a fork
            self._shards, self._process = OrderedDict(), os.getpid()
        shard = self._shards.pop(shard_id, None) or open_it(shard_id)
        self._shards[shard_id] = shard
        while len(self._shards) > (self._most or MAX_OPEN):
            self._shards.popitem(last=False)
        return shard
