"""Arrays of records that need not fit into memory: appended and read in blocks, sorted in runs that are then merged.

The records are in a temporary file without a name, in the folder that ``TMPDIR`` names, or else in the system's. It is
gone when the array is, even if the process is killed. A small array is never written to disk.

Records are sorted by their bytes, so the fields of a record to be sorted are byte strings and big-endian unsigned
integers, the first field counting most.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Iterable, Iterator
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import TemporaryFolderError

Records = NDArray[Any]
"""A one-dimensional array, usually of a structured dtype."""

SPOOL_BYTES = 2**20
"""Bytes of an array that are kept in memory before it is written to disk."""
RUN_BYTES = 2**25
"""Bytes that are sorted in memory at a time."""
BLOCK_BYTES = 2**22
"""Bytes that are read at a time."""


class DiskArray:
    """An array that grows at its end and is read in pieces. Several threads may read it at a time.

    Parameters
    ----------
    dtype
        Of the records.
    """

    def __init__(self, dtype: DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        self._file = tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES)  # noqa: SIM115, it lives as long as the array
        self._length = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of records."""
        return self._length

    def append(self, records: Records) -> None:
        """Add records at the end.

        Raises
        ------
        TemporaryFolderError
            If the temporary folder has no room for them.
        """
        data = np.ascontiguousarray(records, self.dtype)
        with self._lock:
            with writing_temporary(self._file):
                self._file.seek(0, 2)
                self._file.write(data.view(np.uint8).data)
                self._file.flush()  # a full disk shows here, not in a later read
            self._length += len(data)

    def read(self, start: int, stop: int) -> Records:
        """Return the records from ``start`` up to ``stop``; read-only."""
        size = self.dtype.itemsize
        start, stop = max(start, 0), min(stop, self._length)
        with self._lock:
            self._file.seek(start * size)
            data = self._file.read(max(stop - start, 0) * size)
        return np.frombuffer(data, self.dtype)

    def take(self, rows: NDArray[np.integer[Any]]) -> Records:
        """Return the records at ``rows``, (N,) in any order. Neighbours are read together, a block at most."""
        found = np.empty(len(rows), self.dtype)
        order = np.argsort(rows, kind="stable")
        ascending, step = rows[order], _block_rows(self.dtype)
        far = (np.diff(ascending) > max(step // 64, 1)) | (np.diff(ascending // step) > 0)
        for part in np.split(order, np.flatnonzero(far) + 1) if len(order) else ():
            first = int(rows[part[0]])
            found[part] = self.read(first, int(rows[part[-1]]) + 1)[rows[part] - first]
        return found

    def blocks(self, rows: int | None = None) -> Iterator[Records]:
        """Yield all records in order, ``rows`` at a time, by default a few megabytes."""
        step = rows or _block_rows(self.dtype)
        for start in range(0, self._length, step):
            yield self.read(start, start + step)


@contextlib.contextmanager
def writing_temporary(file: IO[bytes]) -> Iterator[None]:
    """Turn an OSError in the block into a TemporaryFolderError, and close the file, which is of no more use."""
    try:
        yield
    except OSError as error:
        with contextlib.suppress(OSError):  # tries again what is buffered, as the program would at its end
            file.close()
        raise TemporaryFolderError(
            f"{tempfile.gettempdir()}: temporary data cannot be written there ({error.strerror or error}). Free some "
            "space there, or set TMPDIR to another folder, and run the command again."
        ) from error


def sort_records(blocks: Iterable[Records], dtype: DTypeLike) -> DiskArray:
    """Sort records by their bytes.

    Parameters
    ----------
    blocks
        The records, in any number of arrays.
    dtype
        Of the records, see the module.

    Returns
    -------
    DiskArray
        Ascending.
    """
    runs = DiskArray(dtype)
    starts = [0]
    for run in _runs(blocks, max(RUN_BYTES // runs.dtype.itemsize, 1)):
        runs.append(np.sort(_as_bytes(np.ascontiguousarray(run, runs.dtype))).view(runs.dtype))
        starts.append(len(runs))
    if len(starts) <= 2:
        return runs
    merged = DiskArray(dtype)
    for block in _merge(runs, starts):
        merged.append(block)
    return merged


def whole_groups(blocks: Iterable[Records], field: str) -> Iterator[Records]:
    """Divide sorted records again, so that those with the same value of their first field are in one block.

    Parameters
    ----------
    blocks
        Records in order, sorted by ``field``.
    field
        Name of their first field.
    """
    held: list[Records] = []
    for block in blocks:
        values = block[field]
        if held and held[0][field][0] != values[-1]:
            start = int(np.searchsorted(values, values[-1:])[0])
            yield _joined([*held, block[:start]])
            held = [block[start:]]
        elif held or values[0] == values[-1]:
            held.append(block)
        else:
            start = int(np.searchsorted(values, values[-1:])[0])
            yield block[:start]
            held = [block[start:]]
    if held:
        yield _joined(held)


def group_starts(values: Records) -> NDArray[np.intp]:
    """Return the index of the first record of each group of equal neighbours."""
    return np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])) if len(values) else np.empty(0, np.intp)


def numbered(blocks: Iterable[Records]) -> Iterator[tuple[NDArray[np.int64], Records]]:
    """Yield each block after the numbers of its records, counted from 0 over all blocks."""
    start = 0
    for block in blocks:
        yield np.arange(start, start + len(block)), block
        start += len(block)


def _block_rows(dtype: np.dtype[Any]) -> int:
    return max(BLOCK_BYTES // dtype.itemsize, 1)


def _joined(parts: list[Records]) -> Records:
    """Concatenate records; without its dtype, numpy would turn big-endian fields round."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts, dtype=parts[0].dtype)


def _as_bytes(records: Records) -> Records:
    """Return contiguous records as byte strings, which numpy compares as a whole."""
    return records.view(f"S{records.dtype.itemsize}")


def _runs(blocks: Iterable[Records], rows: int) -> Iterator[Records]:
    """Yield the records again, exactly ``rows`` at a time; at the end fewer."""
    held: list[Records] = []
    count = 0
    for block in blocks:
        while count + len(block) >= rows:
            yield _joined([*held, block[: rows - count]])
            block = block[rows - count :]
            held, count = [], 0
        if len(block):
            held.append(block)
            count += len(block)
    if held:
        yield _joined(held)


def _merge(runs: DiskArray, starts: list[int]) -> Iterator[Records]:
    """Merge sorted runs that begin at ``starts``, the last of which is their end.

    A part of each run is in memory. Whatever is not above the smallest last record of these parts is complete, since
    all that is still on disk is above it: it is sorted and yielded, and parts that are used up are read on.
    """
    step = max(RUN_BYTES // runs.dtype.itemsize // (len(starts) - 1), 1)
    position = starts[:-1]
    heads = [_as_bytes(runs.read(0, 0)) for _ in position]
    while True:
        for number, end in enumerate(starts[1:]):
            if not len(heads[number]) and position[number] < end:
                stop = min(position[number] + step, end)
                heads[number] = _as_bytes(runs.read(position[number], stop))
                position[number] = stop
        unread = [head[-1:] for head, at, end in zip(heads, position, starts[1:], strict=True) if at < end]
        if not unread:
            break
        limit = np.sort(np.concatenate(unread))[:1]
        stops = [int(np.searchsorted(head, limit, side="right")[0]) for head in heads]
        complete = np.concatenate([head[:stop] for head, stop in zip(heads, stops, strict=True)])
        yield np.sort(complete, kind="stable").view(runs.dtype)
        heads = [head[stop:] for head, stop in zip(heads, stops, strict=True)]
    rest = np.concatenate(heads)
    if len(rest):
        yield np.sort(rest, kind="stable").view(runs.dtype)
