"""Arrow tables that need not fit into memory: written piece by piece, then mapped from a temporary file without a name."""

from __future__ import annotations

import mmap
import tempfile

import pyarrow as pa

from .disk_array import writing_temporary


class DiskTable:
    """A table that grows at its end, in an Arrow stream on disk; see :mod:`.disk_array` for where.

    Parameters
    ----------
    schema
        Of the table. Dictionaries may differ from piece to piece.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115, it lives as long as the table
        self._writer = pa.ipc.new_stream(self._file, schema)

    def append(self, piece: pa.Table) -> None:
        """Add rows at the end. Raises TemporaryFolderError if the temporary folder has no room for them."""
        if not len(piece):
            return
        with writing_temporary(self._file):
            self._writer.write_table(piece.combine_chunks())

    def finished(self) -> pa.Table:
        """Return the table. Its columns are mapped: the system takes their memory back when it is needed."""
        with writing_temporary(self._file):
            self._writer.close()
            self._file.flush()
        mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        self._file.close()
        return pa.ipc.open_stream(pa.py_buffer(mapped)).read_all()
