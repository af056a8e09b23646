"""The shard formats, and the shards of a feature that are open for reading."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ...choices import CodecChoice, PackedStorage
from ...errors import IntegrityError
from ...storage import AnyPath
from .format import Rows, ShardFormat, ShardReader, data_files
from .marker import Marker, check_hint
from .packed import unpack
from .tar import TarFormat
from .zarr import ZarrFormat

FORMATS: dict[str, ShardFormat] = {form.name: form for form in (ZarrFormat(), TarFormat())}
MAX_OPEN = 64
"""Local shards of a feature that stay open; the least recently used are closed."""
REMOTE_OPEN = 8192
"""The same for an object store, where an open shard is only about 10 KB of metadata that took several requests."""


def new_format(name: str, codec: CodecChoice) -> ShardFormat:
    """Return the format that writes new shards.

    Parameters
    ----------
    name
        A name in ``FORMATS``.
    codec
        How zarr shards are compressed. A tar never is.
    """
    return ZarrFormat(codec) if name == ZarrFormat.name else FORMATS[name]


def open_data(path: AnyPath, marker: Marker, feature: str, folder: AnyPath) -> ShardReader:
    """Open a shard's data after checking that they exist and have the recorded size.

    Parameters
    ----------
    path
        The data, in the cache or in a local copy.
    marker
        The shard's marker.
    feature
        The feature's name, for messages.
    folder
        The feature's folder in the cache, for messages.

    Raises
    ------
    IntegrityError
        If the data are missing or are not what the marker says.
    """
    form = FORMATS.get(marker.format)
    what = f"{feature}, shard {marker.shard}"
    if form is None or not marker.data.endswith(form.suffix):
        raise IntegrityError(f"{what}: has the unknown format {marker.format!r}. {check_hint(folder)}")
    try:
        files = data_files(path)
    except IntegrityError as error:
        raise IntegrityError(f"{what}: {error} {check_hint(folder)}") from error
    size = sum(bytes_ for _, _, bytes_ in files)
    if size != marker.bytes:
        raise IntegrityError(
            f"{what}: {path} has {size:,} bytes, its marker says {marker.bytes:,}. {check_hint(folder)}"
        )
    reader = form.open(path, files, marker.of_data(), feature)
    return reader if marker.packed is None else UnpackingReader(reader, marker.shape, marker.packed)


class UnpackingReader:
    """An open shard of packed rows, read as float16.

    Parameters
    ----------
    packed
        Reads the packed rows.
    shape
        Shape of an unpacked row.
    storage
        The packing.
    """

    def __init__(self, packed: ShardReader, shape: tuple[int, ...], storage: PackedStorage) -> None:
        self._packed = packed
        self._shape = shape
        self._storage: PackedStorage = storage

    def read(self, start: int, stop: int, view: int | None, out: Rows | None = None) -> Rows:
        """Return rows ``start`` to ``stop``; see :meth:`.format.ShardReader.read`."""
        whole = out if out is not None and view is None else np.empty((stop - start, *self._shape), np.float16)
        unpack(self._packed.read(start, stop, None), self._storage, whole)
        if view is None:
            return whole
        if out is None:
            return np.ascontiguousarray(whole[:, view])
        out[...] = whole[:, view]
        return out


class OpenShard(NamedTuple):
    """What reading needs of a shard: everything but the keys in its marker.

    Attributes
    ----------
    rows
        Number of rows.
    shape
        Shape of one row.
    dtype
        Their dtype.
    reader
        Reads them.
    """

    rows: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    reader: ShardReader


class OpenShards:
    """An LRU cache of the open shards of one feature.

    It has no lock: a shard that one thread evicts stays open as long as another thread reads it.

    Parameters
    ----------
    limit
        The most shards, by default ``MAX_OPEN``.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._shards: OrderedDict[str, OpenShard] = OrderedDict()
        self._process = os.getpid()

    def get(self, shard_id: str, open_it: Callable[[str], OpenShard]) -> OpenShard:
        """Return an open shard, opened with ``open_it`` if need be. A forked process opens its own."""
        if self._process != os.getpid():  # readers are not valid after a fork
            self._shards, self._process = OrderedDict(), os.getpid()
        shard = self._shards.pop(shard_id, None) or open_it(shard_id)
        self._shards[shard_id] = shard
        while len(self._shards) > (self._limit or MAX_OPEN):
            self._shards.popitem(last=False)
        return shard
