"""Shards as zarr v3 arrays of shape (rows, *row shape).

Each array is one zarr shard: a folder with ``zarr.json`` and one data file in which small inner chunks are compressed
separately and located through an index. zarr itself and dask read it, and a block of rows is one contiguous
read.

zarr writes; the reader is our own. A cache may be untrusted and blosc trusts its input, so metadata, index and chunk
headers are checked against the marker before they are used. The reader also takes a third of zarr's time for a block
of rows, and far less for single rows.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import zarr
from numcodecs import blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from ...choices import CodecChoice
from ...errors import IntegrityError
from ...storage import AnyPath
from .format import DataFiles, Rows
from .marker import Marker, check_hint
from .open_file import WINDOW_BYTES, ShardFile, open_file

CHUNK_BYTES = 256 * 2**10
"""Target size of an inner chunk before compression, in bytes."""
_METADATA = "zarr.json"
BYTE_NS = 3.0
"""What a stored byte is worth, in ns of decoding: a medium that reads 330 MB a second."""
_Shuffle = Literal["noshuffle", "bitshuffle"]
_SHUFFLES: dict[_Shuffle, int] = {"noshuffle": blosc.NOSHUFFLE, "bitshuffle": blosc.BITSHUFFLE}
_MAX_METADATA = 1 << 20
_MAX_CHUNK = 64 * 2**20
_MAX_CHUNKS = 1 << 22
_CHECKSUM = 4
_BLOSC_HEADER = struct.Struct("<2xBxIII")
"""Flags, decoded bytes, bytes of a block, encoded bytes."""
_LZ4_NUMBER, _ZSTD_NUMBER = 1, 4
"""What the flags of a chunk call lz4 and zstd."""
_COPIED = 2
"""The flag of a chunk that holds its bytes as they are."""

blosc.use_threads = False  # deterministic bytes, and no threads that a fork would lose


class Codec(NamedTuple):
    """One way to compress a chunk with blosc, without loss.

    Attributes
    ----------
    cname
        blosc's name of the compressor.
    level
        Its level; 0 stores the bytes as they are.
    shuffle
        ``bitshuffle`` transposes the bits of a block first, ``noshuffle`` does not.
    decode_ns
        Time to decode a byte of rows, in ns on one core, measured and rounded. A constant and no measurement of the
        machine, so that the same rows give the same bytes everywhere.
    """

    cname: Literal["lz4hc", "zstd"]
    level: int
    shuffle: _Shuffle
    decode_ns: float

    @property
    def name(self) -> str:
        """Its name in the marker."""
        return f"blosc-{self.cname}-{self.level}-{self.shuffle}" if self.level else "none"

    def encode(self, chunk: Rows) -> bytes:
        """Compress a contiguous chunk."""
        encoded: bytes = blosc.Blosc(self.cname, self.level, _SHUFFLES[self.shuffle]).encode(chunk)
        return encoded


_NONE = (Codec("zstd", 0, "noshuffle", 0.1),)
# Level 5 of lz4 saves 2 % of an image and writes a quarter slower; that of zstd 1 to 5 %, two to three times slower.
_LZ4 = tuple(Codec("lz4hc", 3, shuffle, 0.5) for shuffle in _SHUFFLES)
_ZSTD = tuple(Codec("zstd", 3, shuffle, 1.2) for shuffle in _SHUFFLES)
CODECS: dict[CodecChoice, tuple[Codec, ...]] = {
    "auto": (*_NONE, *_LZ4, *_ZSTD),
    "none": _NONE,
    "lz4": _LZ4,
    "zstd": _ZSTD,
}
"""The codecs that each choice admits."""


class ZarrFormat:
    """The zarr v3 format with the sharding codec and lossless blosc compression.

    What compression is worth depends on the feature: eps is noise, of which zstd saves a tenth at fifteen times the
    time of reading, while a teacher's map shrinks to a fraction. Whether bit shuffling helps depends on it, too. So
    each shard tries the codecs on a few of its chunks and takes the one with the lowest :func:`reading_cost`.

    Parameters
    ----------
    codec
        The codecs to choose from, a key of ``CODECS``.
    """

    name = "zarr"
    suffix = ".zarr"

    def __init__(self, codec: CodecChoice = "auto") -> None:
        self._codecs = CODECS[codec]

    def write(
        self, path: Path, rows: Rows, keys: Sequence[str], feature: str, chunk_tail: tuple[int, ...]
    ) -> tuple[str, tuple[int, ...]]:
        """Write the rows to the new folder ``path``, without offsets; see :meth:`.format.ShardFormat.write`."""
        rows_per_chunk = chunk_rows(rows, chunk_tail)
        codec = _best_codec(rows, rows_per_chunk, self._codecs)
        array = zarr.create_array(
            str(path),
            shape=rows.shape,
            dtype=rows.dtype,
            chunks=(rows_per_chunk, *chunk_tail),
            shards=(_padded_rows(len(rows), rows_per_chunk), *rows.shape[1:]),
            filters=None,
            compressors=[
                BloscCodec(cname=codec.cname, clevel=codec.level, shuffle=codec.shuffle, typesize=rows.dtype.itemsize)
            ],
            fill_value=0,
            zarr_format=3,
            config={"write_empty_chunks": True},
        )
        if len(rows):
            array[...] = rows
        return codec.name, ()

    def open(self, path: AnyPath, files: DataFiles, marker: Marker, feature: str) -> ZarrReader:
        """Open the folder; IntegrityError if its files, metadata or index are not those of ``marker``."""
        data = "/".join(["c", "0", *("0" for _ in marker.shape)])
        found = {name: (path, size) for name, path, size in files}
        if _METADATA not in found:
            raise IntegrityError(f"{path}: has no {_METADATA}. {check_hint(path)}")
        inner, outer = _chunk_shapes(*found[_METADATA], marker)
        if sorted(found) != ([data, _METADATA] if marker.rows else [_METADATA]):
            raise IntegrityError(f"{path}: its files are not those of a shard. {check_hint(path)}")
        if not marker.rows:
            return ZarrReader(None, np.empty(0, np.uint64), inner, marker)
        file = open_file(*found[data])
        grid = tuple(whole // part for part, whole in zip(inner, outer, strict=True))
        return ZarrReader(file, _read_index(file, grid), inner, marker)


class ZarrReader:
    """An open zarr shard.

    Parameters
    ----------
    file
        The data file; None for a shard without rows.
    index
        (*grid, 2) uint64, (offset, length) in bytes of each inner chunk.
    inner
        Shape of an inner chunk.
    marker
        The shard's marker.
    """

    def __init__(
        self, file: ShardFile | None, index: NDArray[np.uint64], inner: tuple[int, ...], marker: Marker
    ) -> None:
        self._file = file
        self._index = index
        self._inner = inner
        self._shape = marker.shape
        self._dtype = np.dtype(marker.dtype)
        self._number = _LZ4_NUMBER if marker.codec.startswith("blosc-lz4") else _ZSTD_NUMBER

    def read(self, start: int, stop: int, view: int | None, out: Rows | None = None) -> Rows:
        """Return rows ``start`` to ``stop``; see :meth:`.format.ShardReader.read`."""
        spans = [(start, stop), *((0, size) for size in self._shape)]
        if view is not None:
            spans[1] = (view, view + 1)
        shape = [last - first for first, last in spans]
        rows = np.empty(shape, self._dtype) if out is None else out.reshape(shape)
        chunk_ranges = [
            range(first // part, -(-last // part)) for (first, last), part in zip(spans, self._inner, strict=True)
        ]
        for file, position in self._with_files(product(*chunk_ranges)):
            source, target = [], []
            for number, part, (first, last) in zip(position, self._inner, spans, strict=True):
                begin = number * part
                low, high = max(first, begin), min(last, begin + part)
                source.append(slice(low - begin, high - begin))
                target.append(slice(low - first, high - first))
            block = rows[tuple(target)]
            if block.shape == self._inner and block.flags.c_contiguous and sys.byteorder == "little":
                self._chunk(file, position, block)
            else:
                block[...] = self._chunk(file, position)[tuple(source)]
        return rows if view is None else rows[:, 0]

    def _with_files(self, positions: Iterable[tuple[int, ...]]) -> Iterator[tuple[ShardFile, tuple[int, ...]]]:
        """Yield each chunk's position with the file to read it from: the shard's own, or a fetched window."""
        file = self._file
        if file is None:
            return
        if not file.by_requests:
            for position in positions:
                yield file, position
            return
        group: list[tuple[int, ...]] = []
        held = 0
        for position in positions:
            length = int(self._index[position][1])
            if group and held + length > WINDOW_BYTES:
                yield from self._from_window(file, group)
                group, held = [], 0
            group.append(position)
            held += length
        yield from self._from_window(file, group)

    def _from_window(
        self, file: ShardFile, positions: Sequence[tuple[int, ...]]
    ) -> Iterator[tuple[ShardFile, tuple[int, ...]]]:
        window = file.window([(int(self._index[position][0]), int(self._index[position][1])) for position in positions])
        for position in positions:
            yield window, position

    def _chunk(self, file: ShardFile, position: tuple[int, ...], out: Rows | None = None) -> Rows:
        """Read and decode one inner chunk. Its header is checked first, since blosc trusts it."""
        offset, length = (int(number) for number in self._index[position])
        size = math.prod(self._inner) * self._dtype.itemsize
        stored = length == _BLOSC_HEADER.size + size
        data = file.read(offset, _BLOSC_HEADER.size if stored else length)
        flags, decoded, _, encoded = _BLOSC_HEADER.unpack_from(data)
        if (flags >> 5, decoded, encoded, bool(flags & _COPIED)) != (self._number, size, length, stored):
            raise file.unusable(f"the chunk at {offset:,} has an unexpected codec or size")
        if stored:  # the bytes as they are, read to where they belong
            rows = np.empty(self._inner, self._dtype.newbyteorder("<")) if out is None else out
            file.fill(rows.reshape(-1).view(np.uint8).data, offset + _BLOSC_HEADER.size)
            return rows
        try:
            raw = blosc.decompress(data, None if out is None else out.reshape(-1).view(np.uint8).data)
        except (RuntimeError, ValueError) as error:
            raise file.unusable(f"the chunk at {offset:,} cannot be decoded: {error}") from error
        little = np.frombuffer(raw, self._dtype.newbyteorder("<"))
        return little.reshape(self._inner)


def reading_cost(codec: Codec, chunk: Rows) -> float:
    """Return what reading a chunk in this codec costs, in ns: its stored bytes at ``BYTE_NS`` each, and decoding.

    Parameters
    ----------
    codec
        The codec to judge.
    chunk
        Some contiguous rows.
    """
    stored = len(codec.encode(chunk)) if codec.level else chunk.nbytes
    return BYTE_NS * stored + codec.decode_ns * chunk.nbytes


def choice_of(name: str) -> CodecChoice:
    """Return the choice that admits just the codecs like the one of this name, to write rows again as they were.

    Parameters
    ----------
    name
        The codec in a marker.
    """
    for choice, codecs in CODECS.items():
        if choice != "auto" and name in [codec.name for codec in codecs]:
            return choice
    return "auto"


def _best_codec(rows: Rows, rows_per_chunk: int, codecs: Sequence[Codec]) -> Codec:
    """Return the codec that costs least for the first, middle and last chunk of rows."""
    last = max(0, len(rows) - rows_per_chunk)
    starts = (0, last // 2, last) if len(rows) else ()
    chunks = [np.ascontiguousarray(rows[start : start + rows_per_chunk]) for start in starts]
    return min(codecs, key=lambda codec: sum(reading_cost(codec, chunk) for chunk in chunks))


def chunk_rows(rows: Rows, chunk_tail: tuple[int, ...]) -> int:
    """Return the number of rows in one inner chunk.

    Parameters
    ----------
    rows
        (N, *shape), the rows of the shard.
    chunk_tail
        The part of a row that is compressed together.
    """
    return max(1, min(len(rows), CHUNK_BYTES // (math.prod(chunk_tail) * rows.dtype.itemsize)))


def _padded_rows(rows: int, chunk_rows: int) -> int:
    """Return the rows of the zarr shard: rounded up to whole chunks, at least one chunk."""
    return max(1, -(-rows // chunk_rows)) * chunk_rows


def _chunk_shapes(path: AnyPath, size: int, marker: Marker) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of inner and outer chunks; IntegrityError unless ZarrFormat could have written the metadata."""
    if size > _MAX_METADATA:
        raise IntegrityError(
            f"{path}: is larger than {_MAX_METADATA:,} bytes, too large for metadata. {check_hint(path)}"
        )
    text = open_file(path, size).read(0, size)
    try:
        meta = json.loads(text)
        if (meta["zarr_format"], meta["node_type"]) != (3, "array"):
            raise ValueError("it is not a zarr v3 array")
        if (meta["shape"], meta["data_type"]) != ([marker.rows, *marker.shape], marker.dtype):
            raise ValueError("its shape or dtype is not that of the marker")
        if meta["chunk_key_encoding"] != {"name": "default", "configuration": {"separator": "/"}}:
            raise ValueError("its chunk files have other names")
        if meta["fill_value"] != 0:
            raise ValueError("its fill value is not 0")
        (sharding,) = meta["codecs"]
        settings = sharding["configuration"]
        codecs = [sharding, *settings["codecs"], *settings["index_codecs"]]
        names = [codec["name"] for codec in codecs]
        if names != ["sharding_indexed", "bytes", "blosc", "bytes", "crc32c"] or meta.get("storage_transformers"):
            raise ValueError(f"the codecs {names} are not those of a shard")
        if settings.get("index_location", "end") != "end" or not all(map(_is_little, (codecs[1], codecs[3]))):
            raise ValueError("its byte order or index location is unsupported")
        inner = settings["chunk_shape"]
        outer = meta["chunk_grid"]["configuration"]["chunk_shape"]
        _check_chunks(inner, outer, marker)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"{path}: cannot be used ({error}). {check_hint(path)}") from error
    return tuple(inner), tuple(outer)


def _is_little(codec: dict[str, Any]) -> bool:
    """Return whether a bytes codec is little-endian; it need not say so if an item is one byte."""
    order: object = codec.get("configuration", {}).get("endian", "little")
    return order == "little"


def _check_chunks(inner: list[int], outer: list[int], marker: Marker) -> None:
    """Raise ValueError unless inner chunks of a plausible size tile one outer chunk that just holds the array."""
    if len(inner) != len(outer) or not all(type(n) is int and n >= 1 for n in (*inner, *outer)):
        raise ValueError("the chunk shapes are malformed")
    if inner[0] > max(1, marker.rows) or outer != [_padded_rows(marker.rows, inner[0]), *marker.shape]:
        raise ValueError("the chunks do not fit the shape")
    if any(whole % part for part, whole in zip(inner, outer, strict=True)):
        raise ValueError("the chunks do not divide the shape")
    if math.prod(inner) * np.dtype(marker.dtype).itemsize > max(_MAX_CHUNK, marker.row_bytes):
        raise ValueError("the chunks are too large")
    if math.prod(outer) // math.prod(inner) > _MAX_CHUNKS:
        raise ValueError("the chunks are too many")


def _read_index(file: ShardFile, grid: tuple[int, ...]) -> NDArray[np.uint64]:
    """Return (offset, length) per inner chunk, (*grid, 2) uint64; IntegrityError unless the chunks fill the file.

    Chunks that are contiguous from the first byte of the file to the index can neither overlap nor reach outside it,
    and a flipped bit of the index is detected.
    """
    end = file.size - 16 * math.prod(grid) - _CHECKSUM
    if end < 0:
        raise file.unusable("it is too small for its index")
    index = np.frombuffer(file.read(end, 16 * math.prod(grid)), "<u8").reshape(-1, 2).astype(np.uint64)
    offset, length = index[np.argsort(index[:, 0])].T
    if (length > end).any() or (length < _BLOSC_HEADER.size).any():
        raise file.unusable("its index has chunks of impossible sizes")
    if offset[0] != 0 or (offset[1:] != (offset + length)[:-1]).any() or offset[-1] + length[-1] != end:
        raise file.unusable("the chunks of its index are not contiguous")
    return index.reshape(*grid, 2)
