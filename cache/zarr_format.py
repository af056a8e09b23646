"""Shards as zarr v3 arrays of shape (rows, *row shape).

One array is one zarr shard: a folder with ``zarr.json`` and one data file in which small inner chunks are compressed
one by one and found through an index, so dask, xarray and zarr itself read it, and a block of rows is one contiguous
read. Metadata is checked against the marker before zarr sees it: a cache may come from a stranger.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from ..errors import IntegrityError
from .atomic import read_file
from .formats import Rows, data_files
from .marker import Marker, how_to_check

CHUNK_BYTES = 256 * 2**10
"""Aimed size of an inner chunk before compression."""
_LEVEL = 3  # 5 stores 1 to 5 % less and writes two to three times slower
_MAX_METADATA = 1 << 20


class ZarrFormat:
    """The zarr v3 format with the sharding codec and lossless blosc-zstd.

    Measured: uint8 pictures are a tenth smaller with their bits transposed; for float16 features a shuffle gains nothing.
    """

    name = "zarr"
    suffix = ".zarr"

    def write(self, path: Path, rows: Rows, chunk_tail: tuple[int, ...]) -> str:
        """Write ``rows`` (N, *shape) to the new folder ``path`` and return the codec's name.

        Blosc runs single-threaded here, so the same rows give the same bytes.
        """
        chunk_bytes = math.prod(chunk_tail) * rows.dtype.itemsize
        chunk_rows = max(1, min(len(rows), CHUNK_BYTES // chunk_bytes))
        shuffle: Literal["bitshuffle", "noshuffle"] = "bitshuffle" if rows.dtype == np.uint8 else "noshuffle"
        array = zarr.create_array(
            str(path),
            shape=rows.shape,
            dtype=rows.dtype,
            chunks=(chunk_rows, *chunk_tail),
            shards=(_whole(len(rows), chunk_rows), *rows.shape[1:]),
            filters=None,
            compressors=[BloscCodec(cname="zstd", clevel=_LEVEL, shuffle=shuffle, typesize=rows.dtype.itemsize)],
            fill_value=0,
            zarr_format=3,
            config={"write_empty_chunks": True},
        )
        if len(rows):
            array[...] = rows
        return f"blosc-zstd-{_LEVEL}-{shuffle}"

    def open(self, path: Path, marker: Marker) -> ZarrReader:
        """Open the folder ``path``; IntegrityError if its files or its metadata are not those of ``marker``."""
        _check_metadata(path / "zarr.json", marker)
        data = "/".join(["c", "0", *("0" for _ in marker.shape)])
        expected = [data, "zarr.json"] if marker.rows else ["zarr.json"]
        if [name for name, _, _ in data_files(path)] != expected:
            raise IntegrityError(f"{path}: its files are not those of a shard. {how_to_check(path)}")
        try:
            array = zarr.open_array(str(path), mode="r", zarr_format=3)
        except (OSError, RuntimeError, TypeError, ValueError, KeyError) as error:
            raise IntegrityError(f"{path}: zarr cannot open it ({error}). {how_to_check(path)}") from error
        return ZarrReader(path, array, path / data if marker.rows else None)


class ZarrReader:
    """An opened zarr shard. Safe to use in the process that opened it."""

    def __init__(self, path: Path, array: zarr.Array[Any], data: Path | None) -> None:
        self._path = path
        self._array = array
        self._data = data

    def read(self, start: int, stop: int, view: int | None) -> Rows:
        """Return rows ``start`` to ``stop`` as (rows, *shape), or with one ``view`` as (rows, *shape[1:])."""
        selection = slice(start, stop) if view is None else (slice(start, stop), view)
        try:
            rows = np.asarray(self._array[selection])
        except (OSError, RuntimeError, ValueError) as error:
            message = f"{self._path}: rows {start} to {stop} cannot be decoded ({error}). {how_to_check(self._path)}"
            raise IntegrityError(message) from error
        if self._data is not None and not self._data.exists():  # zarr reads a missing file as zeros
            raise IntegrityError(f"{self._path}: was removed while it was read. {how_to_check(self._path)}")
        return rows


def _whole(rows: int, chunk_rows: int) -> int:
    """Return the rows of the zarr shard: whole chunks, at least one."""
    return max(1, -(-rows // chunk_rows)) * chunk_rows


def _check_metadata(path: Path, marker: Marker) -> None:
    """Compare ``zarr.json`` with the marker; whatever this module would not have written is an IntegrityError."""
    try:
        meta = json.loads(read_file(path, _MAX_METADATA))
        if (meta["zarr_format"], meta["node_type"]) != (3, "array"):
            raise ValueError("it is no zarr v3 array")
        if (meta["shape"], meta["data_type"]) != ([marker.rows, *marker.shape], marker.dtype):
            raise ValueError("shape or type are not those of the marker")
        if meta["chunk_key_encoding"] != {"name": "default", "configuration": {"separator": "/"}}:
            raise ValueError("its files are named in another way")
        (sharding,) = meta["codecs"]
        settings = sharding["configuration"]
        names = [sharding["name"], *(codec["name"] for codec in settings["codecs"] + settings["index_codecs"])]
        if names != ["sharding_indexed", "bytes", "blosc", "bytes", "crc32c"] or meta.get("storage_transformers"):
            raise ValueError(f"the codecs {names} are not those of a shard")
        inner = settings["chunk_shape"]
        _check_chunks(inner, meta["chunk_grid"]["configuration"]["chunk_shape"], marker)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise IntegrityError(f"{path}: cannot be used ({error}). {how_to_check(path)}") from error


def _check_chunks(inner: list[int], outer: list[int], marker: Marker) -> None:
    """Raise ValueError unless whole inner chunks make up one outer chunk that just holds the array."""
    if len(inner) != len(outer) or not all(type(n) is int and n >= 1 for n in (*inner, *outer)):
        raise ValueError("the chunk shapes are malformed")
    if inner[0] > max(1, marker.rows) or outer != [_whole(marker.rows, inner[0]), *marker.shape]:
        raise ValueError("the chunks do not fit the shape")
    if any(whole % part for part, whole in zip(inner, outer, strict=True)):
        raise ValueError("the chunks do not divide the shape")
