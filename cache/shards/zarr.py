"""Shards as zarr v3 arrays of shape (rows, *row shape).

One array is one zarr shard: a folder with ``zarr.json`` and one data file in which small inner chunks are compressed
one by one and found through an index, so dask, xarray and zarr itself read it, and a block of rows is one contiguous
read.

Zarr writes; the reader here is its own. It believes neither the metadata, the index nor a chunk's header before they
are held against the marker, for a cache may come from a stranger and blosc takes all three at their word. It also takes
a third of zarr's time for a block of rows, and far less for single ones.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from numcodecs import blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from ...errors import IntegrityError
from ...storage import AnyPath
from .format import DataFiles, Rows
from .marker import Marker, check_hint
from .open_file import WINDOW_BYTES, ShardFile, open_file

CHUNK_BYTES = 256 * 2**10
"""Aimed size of an inner chunk before compression."""
_METADATA = "zarr.json"
_LEVEL = 3  # 5 stores 1 to 5 % less and writes two to three times slower
Shuffle = Literal["noshuffle", "bitshuffle"]
_SHUFFLES: dict[Shuffle, int] = {"noshuffle": blosc.NOSHUFFLE, "bitshuffle": blosc.BITSHUFFLE}
_MAX_METADATA = 1 << 20
_MAX_CHUNK = 64 * 2**20
_MAX_CHUNKS = 1 << 22
_CHECKSUM = 4
_BLOSC_HEADER = struct.Struct("<2xBxIII")
"""Flags, bytes decoded, bytes of a block, bytes encoded."""
_ZSTD = 4

blosc.use_threads = False  # the same bytes every time, and no threads that a fork would lose


class ZarrFormat:
    """The zarr v3 format with the sharding codec and lossless blosc-zstd.

    Whether transposing the bits helps differs from feature to feature and with the size of the pictures (a tenth less for
    pictures, a tenth more for reconstructions), so each shard tries both on a few of its chunks.
    """

    name = "zarr"
    suffix = ".zarr"

    def write(
        self, path: Path, rows: Rows, keys: Sequence[str], feature: str, chunk_tail: tuple[int, ...]
    ) -> tuple[str, tuple[int, ...]]:
        """Write ``rows`` (N, *shape) to the new folder ``path`` and return the codec's name; there are no offsets."""
        together = chunk_rows(rows, chunk_tail)
        shuffle = _better_shuffle(rows, together)
        array = zarr.create_array(
            str(path),
            shape=rows.shape,
            dtype=rows.dtype,
            chunks=(together, *chunk_tail),
            shards=(_whole(len(rows), together), *rows.shape[1:]),
            filters=None,
            compressors=[BloscCodec(cname="zstd", clevel=_LEVEL, shuffle=shuffle, typesize=rows.dtype.itemsize)],
            fill_value=0,
            zarr_format=3,
            config={"write_empty_chunks": True},
        )
        if len(rows):
            array[...] = rows
        return f"blosc-zstd-{_LEVEL}-{shuffle}", ()

    def open(self, path: AnyPath, files: DataFiles, marker: Marker, feature: str) -> ZarrReader:
        """Open the folder ``path``; IntegrityError if its files, metadata or index are not those of ``marker``."""
        data = "/".join(["c", "0", *("0" for _ in marker.shape)])
        there = {name: (place, size) for name, place, size in files}
        if _METADATA not in there:
            raise IntegrityError(f"{path}: has no {_METADATA}. {check_hint(path)}")
        inner, outer = _chunk_shapes(*there[_METADATA], marker)
        if sorted(there) != ([data, _METADATA] if marker.rows else [_METADATA]):
            raise IntegrityError(f"{path}: its files are not those of a shard. {check_hint(path)}")
        if not marker.rows:
            return ZarrReader(None, np.empty(0, np.uint64), inner, marker)
        file = open_file(*there[data])
        grid = tuple(whole // part for part, whole in zip(inner, outer, strict=True))
        return ZarrReader(file, _read_index(file, grid), inner, marker)


class ZarrReader:
    """An opened zarr shard; one without rows has no file."""

    def __init__(
        self, file: ShardFile | None, index: NDArray[np.uint64], inner: tuple[int, ...], marker: Marker
    ) -> None:
        self._file = file
        self._index = index
        self._inner = inner
        self._shape = marker.shape
        self._dtype = np.dtype(marker.dtype)

    def read(self, start: int, stop: int, view: int | None, out: Rows | None = None) -> Rows:
        """Return rows ``start`` to ``stop`` as (rows, *shape), or with one ``view`` as (rows, *shape[1:]), in ``out`` if given."""
        spans = [(start, stop), *((0, size) for size in self._shape)]
        if view is not None:
            spans[1] = (view, view + 1)
        shape = [last - first for first, last in spans]
        rows = np.empty(shape, self._dtype) if out is None else out.reshape(shape)
        touched = [
            range(first // part, -(-last // part)) for (first, last), part in zip(spans, self._inner, strict=True)
        ]
        for file, place in self._each(product(*touched)):
            source, target = [], []
            for number, part, (first, last) in zip(place, self._inner, spans, strict=True):
                begin = number * part
                low, high = max(first, begin), min(last, begin + part)
                source.append(slice(low - begin, high - begin))
                target.append(slice(low - first, high - first))
            into = rows[tuple(target)]
            if into.shape == self._inner and into.flags.c_contiguous and sys.byteorder == "little":
                self._chunk(file, place, into)
            else:
                into[...] = self._chunk(file, place)[tuple(source)]
        return rows if view is None else rows[:, 0]

    def _each(self, places: Iterable[tuple[int, ...]]) -> Iterator[tuple[ShardFile, tuple[int, ...]]]:
        """Yield the chunks with the file to read each from: the shard's own, or a window that was fetched for many."""
        file = self._file
        if file is None:
            return
        if not file.by_requests:
            for place in places:
                yield file, place
            return
        group: list[tuple[int, ...]] = []
        held = 0
        for place in places:
            length = int(self._index[place][1])
            if group and held + length > WINDOW_BYTES:
                yield from self._fetched(file, group)
                group, held = [], 0
            group.append(place)
            held += length
        yield from self._fetched(file, group)

    def _fetched(
        self, file: ShardFile, places: Sequence[tuple[int, ...]]
    ) -> Iterator[tuple[ShardFile, tuple[int, ...]]]:
        window = file.window([(int(self._index[place][0]), int(self._index[place][1])) for place in places])
        for place in places:
            yield window, place

    def _chunk(self, file: ShardFile, place: tuple[int, ...], into: Rows | None = None) -> Rows:
        """Read and decode one inner chunk, into an array of its shape if one is given.

        What its header promises is checked first, for blosc believes it.
        """
        offset, length = (int(number) for number in self._index[place])
        data = file.read(offset, length)
        flags, decoded, _, encoded = _BLOSC_HEADER.unpack_from(data)
        if (flags >> 5, decoded, encoded) != (_ZSTD, math.prod(self._inner) * self._dtype.itemsize, length):
            raise file.unusable(f"the chunk at {offset:,} is not of the kind and size that it should have")
        try:
            raw = blosc.decompress(data, None if into is None else into.reshape(-1).view(np.uint8).data)
        except (RuntimeError, ValueError) as error:
            raise file.unusable(f"the chunk at {offset:,} cannot be decoded: {error}") from error
        little = np.frombuffer(raw, self._dtype.newbyteorder("<"))
        return little.reshape(self._inner)


def _better_shuffle(rows: Rows, together: int) -> Shuffle:
    """Return how the first, middle and last chunk of rows become smallest."""
    last = max(0, len(rows) - together)
    chunks = [rows[start : start + together] for start in (0, last // 2, last)]

    def size(shuffle: Shuffle) -> int:
        codec = blosc.Blosc("zstd", _LEVEL, _SHUFFLES[shuffle])
        return sum(len(codec.encode(np.ascontiguousarray(chunk))) for chunk in chunks if len(chunk))

    return min(_SHUFFLES, key=size)


def chunk_rows(rows: Rows, chunk_tail: tuple[int, ...]) -> int:
    """Return how many rows (N, *shape) go into one inner chunk."""
    return max(1, min(len(rows), CHUNK_BYTES // (math.prod(chunk_tail) * rows.dtype.itemsize)))


def _whole(rows: int, chunk_rows: int) -> int:
    """Return the rows of the zarr shard: whole chunks, at least one."""
    return max(1, -(-rows // chunk_rows)) * chunk_rows


def _chunk_shapes(path: AnyPath, size: int, marker: Marker) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of the inner chunks and of the outer one.

    Reads ``zarr.json``, of ``size`` bytes; whatever :class:`ZarrFormat` would not have written for ``marker`` is an
    IntegrityError.
    """
    if size > _MAX_METADATA:
        raise IntegrityError(
            f"{path}: is larger than {_MAX_METADATA:,} bytes, which no metadata are. {check_hint(path)}"
        )
    text = open_file(path, size).read(0, size)
    try:
        meta = json.loads(text)
        if (meta["zarr_format"], meta["node_type"]) != (3, "array"):
            raise ValueError("it is no zarr v3 array")
        if (meta["shape"], meta["data_type"]) != ([marker.rows, *marker.shape], marker.dtype):
            raise ValueError("shape or type are not those of the marker")
        if meta["chunk_key_encoding"] != {"name": "default", "configuration": {"separator": "/"}}:
            raise ValueError("its files are named in another way")
        if meta["fill_value"] != 0:
            raise ValueError("absent rows are not zero")
        (sharding,) = meta["codecs"]
        settings = sharding["configuration"]
        codecs = [sharding, *settings["codecs"], *settings["index_codecs"]]
        names = [codec["name"] for codec in codecs]
        if names != ["sharding_indexed", "bytes", "blosc", "bytes", "crc32c"] or meta.get("storage_transformers"):
            raise ValueError(f"the codecs {names} are not those of a shard")
        if settings.get("index_location", "end") != "end" or not all(map(_is_little, (codecs[1], codecs[3]))):
            raise ValueError("its bytes are in another order")
        inner = settings["chunk_shape"]
        outer = meta["chunk_grid"]["configuration"]["chunk_shape"]
        _check_chunks(inner, outer, marker)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"{path}: cannot be used ({error}). {check_hint(path)}") from error
    return tuple(inner), tuple(outer)


def _is_little(codec: dict[str, Any]) -> bool:
    """Say whether a bytes codec is little-endian; it need not say so where an item is a byte."""
    order: object = codec.get("configuration", {}).get("endian", "little")
    return order == "little"


def _check_chunks(inner: list[int], outer: list[int], marker: Marker) -> None:
    """Raise ValueError unless whole inner chunks of a sensible size make up one outer chunk that just holds the array."""
    if len(inner) != len(outer) or not all(type(n) is int and n >= 1 for n in (*inner, *outer)):
        raise ValueError("the chunk shapes are malformed")
    if inner[0] > max(1, marker.rows) or outer != [_whole(marker.rows, inner[0]), *marker.shape]:
        raise ValueError("the chunks do not fit the shape")
    if any(whole % part for part, whole in zip(inner, outer, strict=True)):
        raise ValueError("the chunks do not divide the shape")
    if math.prod(inner) * np.dtype(marker.dtype).itemsize > max(_MAX_CHUNK, marker.row_bytes):
        raise ValueError("the chunks are too large")
    if math.prod(outer) // math.prod(inner) > _MAX_CHUNKS:
        raise ValueError("the chunks are too many")


def _read_index(file: ShardFile, grid: tuple[int, ...]) -> NDArray[np.uint64]:
    """Return (place, length) of each inner chunk, (*grid, 2); IntegrityError unless the chunks fill the file.

    Chunks that lie side by side from the file's first byte to the index can neither reach outside nor overlap, and a
    flipped bit of the index shows.
    """
    end = file.size - 16 * math.prod(grid) - _CHECKSUM
    if end < 0:
        raise file.unusable("it is too small for its index")
    index = np.frombuffer(file.read(end, 16 * math.prod(grid)), "<u8").reshape(-1, 2).astype(np.uint64)
    place, length = index[np.argsort(index[:, 0])].T
    if (length > end).any() or (length < _BLOSC_HEADER.size).any():
        raise file.unusable("its index names chunks of impossible sizes")
    if place[0] != 0 or (place[1:] != (place + length)[:-1]).any() or place[-1] + length[-1] != end:
        raise file.unusable("the chunks of its index do not lie side by side")
    return index.reshape(*grid, 2)
