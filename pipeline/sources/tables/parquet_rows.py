"""Read images that are cells of a Parquet file, row by row and in bounded memory.

A page of a column holds up to a thousand images, and nothing in a Parquet file says where one begins. So rows are
decoded one after another by a *cursor*, which goes on where it stopped, and cells that it passes on the way to a row
are kept for those who ask for them next. A scan asks in the order of the rows, and a build nearly so
(:func:`..read.reading_order`): then each row group is decoded once.

A cursor decodes one row at a time, because a few kilobytes can hold a large value a million times. It holds one page
and the dictionary of a column; :func:`.parquet.discover_parquets` refuses files that declare more than a file of their
size may.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from threading import Lock
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ....images.file import MAX_BYTES, ImageRejected
from ....storage import AnyPath
from ....storage.parquet import open_rows
from ....storage.regular import AlteredFileError, check_version, regular_status
from ..file import ParquetMember

PASSED_BYTES = 256 * 2**20
"""Bytes of passed cells that are kept."""
MAX_CURSORS = 16
"""Cursors that are kept open."""
_CHANGED = "its Parquet file changed after it was listed: build again"


class _Group(NamedTuple):
    """A column of a row group of one version of a file."""

    path: str
    bytes: int
    mtime_ns: int
    column: str
    group: int


class _Cursor:
    """Decodes the cells of one column of one row group in their order."""

    def __init__(self, file: pq.ParquetFile, group: _Group) -> None:
        self.position = 0
        self._file = file
        self._batches: Iterator[pa.RecordBatch] = file.iter_batches(
            batch_size=1, row_groups=[group.group], columns=[group.column], use_threads=False
        )

    def next_cell(self) -> bytes | None:
        """Return the next cell; None if it is empty. Raises StopIteration behind the last row."""
        cell: Any = next(self._batches).column(0)[0]
        self.position += 1
        while isinstance(cell, pa.StructScalar):
            (name,) = cell.keys()
            cell = cell[name]
        data = cell.as_py()
        return data if data is None or isinstance(data, bytes) else bytes(data, "utf-8")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _Rows:
    """The open cursors, and the cells that they passed, for all threads of a process."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._locks: OrderedDict[_Group, Lock] = OrderedDict()
        self._cursors: OrderedDict[tuple[_Group, int], _Cursor] = OrderedDict()
        self._passed: OrderedDict[tuple[_Group, int], bytes | None] = OrderedDict()
        self._passed_bytes = 0
        self._footers: OrderedDict[tuple[str, int, int], pq.FileMetaData] = OrderedDict()
        self._opened = 0

    def read(self, path: AnyPath, group: _Group, row: int) -> bytes | None:
        """Return a cell. Raises StopIteration if there is no such row; otherwise what pyarrow raises."""
        with self._lock:
            if (group, row) in self._passed:
                return self._take(group, row)
            lock = self._locks.setdefault(group, Lock())
            self._locks.move_to_end(group)
        with lock:
            with self._lock:
                if (group, row) in self._passed:
                    return self._take(group, row)
                name, cursor = self._nearest(group, row)
            try:
                if cursor is None:
                    cursor = _Cursor(self._open(path, group), group)
                while cursor.position < row:
                    self._keep(group, cursor.position, cursor.next_cell())
                cell = cursor.next_cell()
            except BaseException:
                if cursor is not None:
                    cursor.close()
                raise
            self._put_back(name, cursor)
            return cell

    def _nearest(self, group: _Group, row: int) -> tuple[tuple[_Group, int], _Cursor | None]:
        """Take out the cursor that is nearest before a row, if there is one; a name for the cursor."""
        before = [
            (name, cursor) for name, cursor in self._cursors.items() if name[0] == group and cursor.position <= row
        ]
        if before:
            name, cursor = max(before, key=lambda item: item[1].position)
            del self._cursors[name]
            return name, cursor
        self._opened += 1
        return (group, self._opened), None

    def _put_back(self, name: tuple[_Group, int], cursor: _Cursor) -> None:
        with self._lock:
            self._cursors[name] = cursor
            dropped = [self._cursors.popitem(last=False)[1] for _ in range(max(len(self._cursors) - MAX_CURSORS, 0))]
            while len(self._locks) > 4 * MAX_CURSORS and not next(iter(self._locks.values())).locked():
                self._locks.popitem(last=False)
        for old in dropped:
            old.close()

    def _keep(self, group: _Group, row: int, cell: bytes | None) -> None:
        with self._lock:
            self._passed[group, row] = cell
            self._passed_bytes += len(cell or b"")
            while self._passed_bytes > PASSED_BYTES:
                self._passed_bytes -= len(self._passed.popitem(last=False)[1] or b"")

    def _take(self, group: _Group, row: int) -> bytes | None:
        cell = self._passed.pop((group, row))
        self._passed_bytes -= len(cell or b"")
        return cell

    def _open(self, path: AnyPath, group: _Group) -> pq.ParquetFile:
        """Open a file, with its footer from before if there is one."""
        status = regular_status(path)
        if (status.st_size, status.st_mtime_ns) != (group.bytes, group.mtime_ns):
            raise ImageRejected("changed-while-reading", _CHANGED)
        version = group[:3]
        with self._lock:
            footer = self._footers.get(version)
        file = open_rows(path, footer)
        with self._lock:
            self._footers[version] = file.metadata
            while len(self._footers) > MAX_CURSORS:
                self._footers.popitem(last=False)
        return file


_rows = _Rows()


def read_row(path: AnyPath, member: ParquetMember) -> bytes:
    """Return the bytes of an image in a Parquet file.

    Parameters
    ----------
    path
        The Parquet file.
    member
        The image's place in it.

    Raises
    ------
    ImageRejected
        ``missing`` if the cell is empty, ``too-large``, ``damaged`` if the file cannot be decoded, or
        ``changed-while-reading``.
    OSError
        If the file cannot be read.
    """
    group = _Group(str(path), member.archive_bytes, member.archive_mtime_ns, member.column, member.group)
    try:
        data = _rows.read(path, group, member.row)
    except (StopIteration, pa.ArrowException, OSError, ValueError, KeyError, IndexError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # pyarrow's own for damage have no number
            raise
        said = str(error).splitlines()[0] if str(error) else "there is no such row"
        raise ImageRejected("damaged", f"its Parquet file cannot be decoded here ({said})") from None
    try:
        check_version(path, member.listed_archive)
    except AlteredFileError:
        raise ImageRejected("changed-while-reading", _CHANGED) from None
    if data is None:
        raise ImageRejected("missing", "the cell of its Parquet file is empty")
    if len(data) > MAX_BYTES:
        raise ImageRejected("too-large", f"a file of {len(data):,} bytes, more than {MAX_BYTES:,}")
    return data
