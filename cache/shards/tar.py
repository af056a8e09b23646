"""Shards as uncompressed tar files with one ``KEY.FEATURE.npy`` member per row, which any webdataset reader streams.

All rows of a shard have one size, so all members do: a ustar header, the .npy header, the row, and zeros up to the next
block of 512 bytes. Every byte except the rows' follows from the keys and the row's shape, which the marker gives. So
the reader never parses a tar: it seeks to the row's offset, and the headers there must be exactly those that were
written. Links, paths, sparse files, extended headers, and members of other names or sizes are all just a mismatch.
"""

from __future__ import annotations

import io
import math
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np

from ...storage import AnyPath
from .format import DataFiles, Rows
from .marker import Marker
from .open_file import WINDOW_BYTES, ShardFile, open_file

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BLOCK = 512
_END = bytes(2 * _BLOCK)
_USTAR = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
_ALIGN = 64
"""The .npy header is padded so that the data begin at a multiple of this many bytes."""


class TarFormat:
    """The webdataset tar format. Members have owner 0 and time 0, so the same rows give the same bytes."""

    name = "webdataset"
    suffix = ".tar"

    def write(
        self, path: Path, rows: Rows, keys: Sequence[str], feature: str, chunk_tail: tuple[int, ...]
    ) -> tuple[str, tuple[int, ...]]:
        """Write the rows to the new file ``path``; see :meth:`.format.ShardFormat.write`."""
        rows = rows.astype(rows.dtype.newbyteorder("<"), copy=False)
        layout = TarLayout(feature, rows.dtype, rows.shape[1:])
        with path.open("xb") as file:
            for key, row in zip(keys, rows, strict=True):
                file.write(layout.header(key))
                file.write(row.tobytes())
                file.write(layout.padding)
            file.write(_END)
        return "npy", layout.offsets(len(rows))

    def open(self, path: AnyPath, files: DataFiles, marker: Marker, feature: str) -> TarReader:
        """Open the file; IntegrityError if its size, or the marker's offsets, are not those of such a tar."""
        file = open_file(path, next((size for name, _, size in files if not name), None))
        layout = TarLayout(feature, np.dtype(marker.dtype), marker.shape)
        if file.size != marker.rows * layout.stride + len(_END):
            raise file.unusable(f"its size is not that of {marker.rows} rows")
        if marker.offsets != layout.offsets(marker.rows):
            raise file.unusable("the offsets in its marker are not those of its rows")
        return TarReader(file, marker, layout)


def open_stream(path: AnyPath, marker: Marker, feature: str) -> BinaryIO:
    """Open a tar shard as a stream of its bytes, for other programs' tar readers.

    What is handed on is checked first, member by member, as a row is by :class:`TarReader`: so the stream holds plain
    files of the size and names that the marker implies, and nothing else.

    Raises
    ------
    IntegrityError
        If the shard is absent or its size is not that of such a tar; while reading, if a member is not its row.
    """
    reader = TarFormat().open(path, [], marker, feature)
    return cast(BinaryIO, io.BufferedReader(_MemberStream(reader.members()), 1 << 20))


class TarLayout:
    """The offsets of a tar's rows, and the bytes before and after each.

    Parameters
    ----------
    feature
        The feature's name.
    dtype, shape
        Those of one row.
    """

    def __init__(self, feature: str, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
        self._feature = feature
        self._npy = npy_header(dtype, shape)
        self._size = len(self._npy) + math.prod(shape) * dtype.itemsize
        self.padding = bytes(-self._size % _BLOCK)
        self.before = _BLOCK + len(self._npy)
        self.stride = _BLOCK + self._size + len(self.padding)

    def offsets(self, rows: int) -> tuple[int, ...]:
        """Return the byte offset of each row's array data."""
        return tuple(range(self.before, self.before + rows * self.stride, self.stride))

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """Return (offset, size) of rows ``start`` to ``stop``, from the first header to the end of the last row."""
        return start * self.stride, (stop - start) * self.stride - len(self.padding)

    def header(self, key: str) -> bytes:
        """Return the bytes before the row of ``key``: the tar header and the .npy header."""
        return ustar_header(self.member(key), self._size) + self._npy

    def member(self, key: str) -> str:
        """Return the name of the member that holds the row of ``key``."""
        return f"{key}.{self._feature}.npy"


class TarReader:
    """An open tar shard."""

    def __init__(self, file: ShardFile, marker: Marker, layout: TarLayout) -> None:
        self._file = file
        self._layout = layout
        self._keys = bytes.fromhex("".join(marker.keys))
        self._shape = marker.shape
        self._dtype = np.dtype(marker.dtype)

    def read(self, start: int, stop: int, view: int | None, out: Rows | None = None) -> Rows:
        """Return rows ``start`` to ``stop``; see :meth:`.format.ShardReader.read`."""
        shape = self._shape if view is None else self._shape[1:]
        rows = np.empty((stop - start, *shape), self._dtype) if out is None else out
        size = math.prod(shape) * self._dtype.itemsize
        target = rows.reshape(-1).view(np.uint8).data
        file = self._file
        rows_per_window = max(1, WINDOW_BYTES // self._layout.stride)
        for number, row in enumerate(range(start, stop)):
            if self._file.by_requests and number % rows_per_window == 0:
                file = self._file.window([self._layout.span(row, min(stop, row + rows_per_window))])
            offset = self._check_header(file, row) + (view or 0) * size
            file.fill(target[number * size : (number + 1) * size], offset)
        if sys.byteorder == "big":
            rows.byteswap(inplace=True)
        return rows

    def members(self) -> Iterator[bytearray]:
        """Yield the bytes of each member, checked, and then the end of the tar."""
        stride, rows = self._layout.stride, len(self._keys) // 16
        rows_per_window = max(1, WINDOW_BYTES // stride)
        file = self._file
        for row in range(rows):
            if self._file.by_requests and row % rows_per_window == 0:
                file = self._file.window([(row * stride, min(rows - row, rows_per_window) * stride)])
            self._check_header(file, row)
            yield file.read(row * stride, stride)
        yield bytearray(_END)

    def _check_header(self, file: ShardFile, row: int) -> int:
        """Return the byte offset of a row's data; IntegrityError unless the member's header is that of this row."""
        begin = row * self._layout.stride
        key = self._keys[16 * row : 16 * row + 16].hex()
        if file.read(begin, self._layout.before) != self._layout.header(key):
            raise file.unusable(f"row {row} is not the member {self._layout.member(key)} of its marker")
        return begin + self._layout.before


class _MemberStream(io.RawIOBase):
    """A stream over pieces of bytes."""

    def __init__(self, pieces: Iterator[bytearray]) -> None:
        self._pieces = pieces
        self._piece = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        while not self._piece:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._piece = memoryview(piece)
        count = min(len(view), len(self._piece))
        view[:count] = self._piece[:count]
        self._piece = self._piece[count:]
        return count


def ustar_header(name: str, size: int) -> bytes:
    """Return the 512-byte header of a regular file in a tar (POSIX.1-1988): mode 644, owner 0, time 0.

    Python's tarfile fills irrelevant fields differently from version to version, and the bytes of a shard must not
    change.

    Parameters
    ----------
    name
        The member's name, at most 100 bytes.
    size
        Its bytes.
    """

    def header(checksum: bytes) -> bytes:
        return _USTAR.pack(
            name.encode(), b"0000644", b"0000000", b"0000000", b"%011o" % size, b"%011o" % 0, checksum, b"0", b"",
            b"ustar", b"00", b"", b"", b"", b"", b"",
        )  # fmt: skip

    return header(b"%06o\0 " % sum(header(b" " * 8)))


def npy_header(dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> bytes:
    """Return the header of a .npy file, version 1.0, for a little-endian array in C order.

    It is written here because numpy's padding differs from version to version.
    """
    descr = dtype.newbyteorder("<").str
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    length = len(text) + 1 + -(10 + len(text) + 1) % _ALIGN
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", length) + text.ljust(length - 1).encode() + b"\n"
