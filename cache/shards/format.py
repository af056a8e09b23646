"""What a shard format must do, and the checksum that all formats share.

A format writes the rows of one shard to one new object (a folder or a file) and reads contiguous rows back. Naming,
flushing, markers and checksums are not its business: the store does them alike for every format.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from ...errors import IntegrityError
from ...storage import AnyPath, RemotePath, list_names, unreachable_on_error
from .marker import Marker

Rows = NDArray[Any]
DataFiles = list[tuple[str, AnyPath, int]]
"""The files of a data object: (name in it, where it lies, bytes) each."""
_BLOCK = 1 << 20


class ShardReader(Protocol):
    """An opened shard. It may be used by several threads, and is closed with the last reference to it."""

    def read(self, start: int, stop: int, view: int | None, out: Rows | None = None) -> Rows:
        """Return rows ``start`` to ``stop`` as (rows, *shape), or with one ``view`` as (rows, *shape[1:]).

        out : an array of that shape and of the shard's type, contiguous, to fill and return.
        """


class ShardFormat(Protocol):
    """One way to store the rows of a shard."""

    name: str
    suffix: str

    def write(
        self, path: Path, rows: Rows, keys: Sequence[str], feature: str, chunk_tail: tuple[int, ...]
    ) -> tuple[str, tuple[int, ...]]:
        """Write ``rows`` (N, *shape) to the new object ``path``.

        keys : one for each row. feature : the feature's name. chunk_tail : the part of one row that is compressed and
        read together, where the format compresses.
        Returns the codec's name and the marker's offsets (empty if the format needs none). The same arguments give the
        same bytes.
        """

    def open(self, path: AnyPath, files: DataFiles, marker: Marker, feature: str) -> ShardReader:
        """Open an object whose size has been checked; raise IntegrityError if it is not what ``marker`` says.

        files : what :func:`data_files` says of ``path``.
        """


def data_files(path: AnyPath) -> DataFiles:
    """List (relative name, path, size) of a data object's files, sorted by name; a single file is called ''.

    Raises IntegrityError if the object is absent or holds anything but plain files and folders, UnreachableError if
    it cannot be read now.
    """
    if isinstance(path, RemotePath):
        return _objects(path)
    found: DataFiles = []
    waiting = [path]
    while waiting:
        item = waiting.pop()
        try:
            with unreachable_on_error(item):
                status = item.lstat()
        except FileNotFoundError as error:
            raise IntegrityError(f"{item}: the shard's data is missing ({error.strerror}).") from error
        if stat.S_ISDIR(status.st_mode):
            waiting.extend(item / name for name in list_names(item))
        elif stat.S_ISREG(status.st_mode):
            name = "" if item == path else item.relative_to(path).as_posix()
            found.append((name, item, status.st_size))
        else:
            raise IntegrityError(f"{item}: is neither a file nor a folder, and a shard holds nothing else.")
    return sorted(found)


def _objects(path: RemotePath) -> DataFiles:
    with unreachable_on_error(path):
        below = path.below()
    if not below:
        raise IntegrityError(f"{path}: the shard's data is missing.")
    return sorted((_name_in(path, entry.path), entry.path, entry.size) for entry in below)


def _name_in(path: RemotePath, item: RemotePath) -> str:
    return "" if item == path else item.relative_to(path).as_posix()


def checksum(path: AnyPath) -> tuple[int, str]:
    """Return the total bytes of a data object and the SHA-256 over its sorted (name, length, bytes).

    IntegrityError if it is absent, UnreachableError if it is there and cannot be read now.
    """
    digest = hashlib.sha256()
    total = 0
    for name, file_path, size in data_files(path):
        digest.update(f"{name}\0{size}\0".encode())
        with unreachable_on_error(file_path), file_path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        total += size
    return total, digest.hexdigest()
