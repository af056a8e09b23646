"""The interface of a shard format, and the checksum that all formats share.

A format writes the rows of one shard to one new object (a file or a folder) and reads contiguous rows back. Naming,
flushing, markers and checksums are the store's task, alike for all formats.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from ...errors import IntegrityError
from ...storage import AnyPath, unreachable_on_error
from ...storage.regular import IrregularFileError
from ...storage.trees import tree_files
from .marker import Marker

Rows = NDArray[Any]
"""Rows of a feature, (N, *shape) uint8, float16 or float32."""
DataFiles = list[tuple[str, AnyPath, int]]
"""The files of a data object: (relative name, path, bytes) each."""
_BLOCK = 1 << 20


class ShardReader(Protocol):
    """An open shard. It is thread-safe, and is closed with the last reference to it."""

    def read(self, start: int, stop: int, view: int | None, out: Rows | None = None) -> Rows:
        """Return contiguous rows, or one view of each.

        Parameters
        ----------
        start, stop
            The range of rows.
        view
            None for whole rows, or the index of one view.
        out
            A contiguous array of the result's shape and the shard's dtype, to fill and return.

        Returns
        -------
        ndarray
            (rows, *shape), or with ``view`` (rows, *shape[1:]), of the shard's dtype.

        Raises
        ------
        IntegrityError
            If the data are damaged.
        """


class ShardFormat(Protocol):
    """One way to store the rows of a shard. Markers record its ``name``; its data's names end in ``suffix``."""

    name: str
    suffix: str

    def write(
        self, path: Path, rows: Rows, keys: Sequence[str], feature: str, chunk_tail: tuple[int, ...]
    ) -> tuple[str, tuple[int, ...]]:
        """Write the rows of a shard. The same arguments give the same bytes.

        Parameters
        ----------
        path
            The new object.
        rows
            (N, *shape) uint8, float16 or float32.
        keys
            One for each row.
        feature
            The feature's name.
        chunk_tail
            The part of a row that is compressed and read together, where the format compresses.

        Returns
        -------
        codec : str
            Name of the codec.
        offsets : tuple of int
            Byte offset of each row for the marker; empty if the format needs none.
        """

    def open(self, path: AnyPath, files: DataFiles, marker: Marker, feature: str) -> ShardReader:
        """Open an object whose size has been checked.

        Parameters
        ----------
        path
            The object.
        files
            The result of :func:`data_files` for it.
        marker
            The shard's marker.
        feature
            The feature's name.

        Raises
        ------
        IntegrityError
            If the object is not what the marker says.
        """


def data_files(path: AnyPath) -> DataFiles:
    """List the files of a data object.

    Returns
    -------
    list of tuple
        (relative name, path, bytes), sorted by name. The name of a single file is empty.

    Raises
    ------
    IntegrityError
        If the object is absent, or holds anything but regular files and folders.
    UnreachableError
        If it cannot be read at the moment.
    """
    try:
        return tree_files(path)
    except FileNotFoundError as error:
        raise IntegrityError(f"{error.filename}: the shard's data is missing ({error.strerror}).") from error
    except IrregularFileError as error:
        what = "is neither a file nor a folder, so it cannot be part of a shard"
        raise IntegrityError(f"{error.filename}: {what}.") from error


def checksum(path: AnyPath) -> tuple[int, str]:
    """Compute the size and checksum of a data object.

    Returns
    -------
    total : int
        Bytes of all files.
    sha256 : str
        SHA-256, as 64 hex digits, over each file's name, size and content, in the order of the names.

    Raises
    ------
    IntegrityError
        If the object is absent, or is deleted meanwhile.
    UnreachableError
        If it cannot be read at the moment.
    """
    digest = hashlib.sha256()
    total = 0
    for name, file_path, size in data_files(path):
        digest.update(f"{name}\0{size}\0".encode())
        try:
            with unreachable_on_error(file_path), file_path.open("rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
        except FileNotFoundError as error:
            raise IntegrityError(f"{file_path}: the shard's data is missing ({error.strerror}).") from error
        total += size
    return total, digest.hexdigest()
