"""Shards as uncompressed tar files with one ``KEY.FEATURE.npy`` member a row, which any webdataset reader streams.

The rows of a shard are of one size, so all members are: a ustar header, the .npy header, the row, zeros up to the next
block of 512 bytes. Every byte but the rows' follows from the keys and the row's shape, which the marker names. So a
reader never parses a tar: it goes to the place, and what stands there must be exactly what was written. Links, paths,
sparse files, extended headers, and members of other names or sizes are all just other bytes.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...storage import AnyPath
from .format import DataFiles, Rows
from .marker import Marker
from .open_file import WINDOW_BYTES, ShardFile, open_file

_BLOCK = 512
_END = bytes(2 * _BLOCK)
_USTAR = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
_ALIGN = 64
"""The .npy header is padded so that the data begin at a multiple of this."""


class TarFormat:
    """The tar format of the webdataset library. Members belong to nobody and were changed in 1970: same rows, same bytes."""

    name = "webdataset"
    suffix = ".tar"

    def write(
        self, path: Path, rows: Rows, keys: Sequence[str], feature: str, chunk_tail: tuple[int, ...]
    ) -> tuple[str, tuple[int, ...]]:
        """Write ``rows`` (N, *shape) to the new file ``path``; return the codec's name and where each row begins."""
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
        """Open the file ``path``; IntegrityError if ``marker`` names other places than a tar of such rows has."""
        file = open_file(path, next((size for name, _, size in files if not name), None))
        layout = TarLayout(feature, np.dtype(marker.dtype), marker.shape)
        if file.size != marker.rows * layout.stride + len(_END):
            raise file.unusable(f"{marker.rows} such rows make a file of another size")
        if marker.offsets != layout.offsets(marker.rows):
            raise file.unusable("the offsets in its marker are not those of its rows")
        return TarReader(file, marker, layout)


class TarLayout:
    """Where the rows of a tar lie, and the bytes before and after each.

    feature : its name; dtype, shape : those of one row.
    """

    def __init__(self, feature: str, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
        self._feature = feature
        self._npy = npy_header(dtype, shape)
        self._size = len(self._npy) + math.prod(shape) * dtype.itemsize
        self.padding = bytes(-self._size % _BLOCK)
        self.before = _BLOCK + len(self._npy)
        self.stride = _BLOCK + self._size + len(self.padding)

    def offsets(self, rows: int) -> tuple[int, ...]:
        """Return the place of each row's array data in the file."""
        return tuple(range(self.before, self.before + rows * self.stride, self.stride))

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """Return (place, size) of rows ``start`` to ``stop``, from the first one's header to the last one's data."""
        return start * self.stride, (stop - start) * self.stride - len(self.padding)

    def header(self, key: str) -> bytes:
        """Return what stands before the row of ``key``: the member's header and that of the .npy file."""
        return ustar_header(self.member(key), self._size) + self._npy

    def member(self, key: str) -> str:
        """Return the name of the member that holds the row of ``key``."""
        return f"{key}.{self._feature}.npy"


class TarReader:
    """An opened tar shard."""

    def __init__(self, file: ShardFile, marker: Marker, layout: TarLayout) -> None:
        self._file = file
        self._layout = layout
        self._keys = bytes.fromhex("".join(marker.keys))
        self._shape = marker.shape
        self._dtype = np.dtype(marker.dtype)

    def read(self, start: int, stop: int, view: int | None, out: Rows | None = None) -> Rows:
        """Return rows ``start`` to ``stop`` as (rows, *shape), or with one ``view`` as (rows, *shape[1:]), in ``out`` if given."""
        shape = self._shape if view is None else self._shape[1:]
        rows = np.empty((stop - start, *shape), self._dtype) if out is None else out
        size = math.prod(shape) * self._dtype.itemsize
        into = rows.reshape(-1).view(np.uint8).data
        file = self._file
        together = max(1, WINDOW_BYTES // self._layout.stride)
        for number, row in enumerate(range(start, stop)):
            if self._file.by_requests and number % together == 0:
                file = self._file.window([self._layout.span(row, min(stop, row + together))])
            place = self._check_header(file, row) + (view or 0) * size
            file.fill(into[number * size : (number + 1) * size], place)
        if sys.byteorder == "big":
            rows.byteswap(inplace=True)
        return rows

    def _check_header(self, file: ShardFile, row: int) -> int:
        """Return where a row's data begin; IntegrityError unless the member's header is that of this very row."""
        begin = row * self._layout.stride
        key = self._keys[16 * row : 16 * row + 16].hex()
        if file.read(begin, self._layout.before) != self._layout.header(key):
            raise file.unusable(f"row {row} is not the member {self._layout.member(key)} of its marker")
        return begin + self._layout.before


def ustar_header(name: str, size: int) -> bytes:
    """Return the 512 bytes before a plain file in a tar (POSIX.1-1988): mode 644, owner 0, time 0.

    Python's own writer fills fields that do not matter in another way from version to version, and the bytes of a shard
    must stay the same.
    """

    def header(checksum: bytes) -> bytes:
        return _USTAR.pack(
            name.encode(), b"0000644", b"0000000", b"0000000", b"%011o" % size, b"%011o" % 0, checksum, b"0", b"",
            b"ustar", b"00", b"", b"", b"", b"", b"",
        )  # fmt: skip

    return header(b"%06o\0 " % sum(header(b" " * 8)))


def npy_header(dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> bytes:
    """Return the header of a .npy file, version 1.0, of a little-endian array in C order.

    Written here because numpy pads it in another way from version to version.
    """
    descr = dtype.newbyteorder("<").str
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    length = len(text) + 1 + -(10 + len(text) + 1) % _ALIGN
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", length) + text.ljust(length - 1).encode() + b"\n"
