"""Datasets: named tables with one row per occurrence of a sample, kept as immutable revisions.

``datasets/NAME/REVISION.parquet`` is the table, ``REVISION.rejects.jsonl`` lists the rejected files,
``REVISION.audit.json`` is an audit of the file headers (see :mod:`.audit`), ``REVISION.sources.json`` says where every
file of the sources went (see :mod:`.sources`), and the ``HEAD-000001.json`` with the
highest number names the newest revision. Each head is created exclusively (compare and swap): a builder that finds its
number taken reads the new head and tries the next number.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ...errors import IntegrityError, UserError
from ...storage import AnyPath, list_folders, list_matching, list_names, path_exists, unreachable_error
from ...storage.atomic import create_file, create_written, flush_name, make_folder, read_file, stream_lines
from ...storage.disk_array import Records, group_starts, sort_records, whole_groups
from ...storage.parquet import fetch_source, read_batches, read_bounded, read_schema
from ...storage.regular import IrregularFileError
from ..shards.keys import BINARY, hex_keys, keys_of_column
from .audit import MOST_BYTES, HeaderAudit, parse_audit
from .sources import SourceRecords, parse_sources

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("label", pa.int8(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("generator", pa.string(), nullable=False),
        pa.field("family", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("format", pa.string(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
    ]
)
REPEATED = ["source", "split", "generator", "family", "group", "format"]
"""Columns stored with a dictionary; in the others few values repeat."""
OF_REVISION = (".parquet", ".rejects.jsonl", ".audit.json", ".sources.json")
"""Suffixes of a revision's files. Not every revision has an audit, or accounts of its sources."""
DATASET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,99}")
"""Names of datasets."""
_REVISION = re.compile(r"[0-9a-f]{16}")
_TABLE = re.compile(r"[0-9a-f]{16}\.parquet")
REVISION_NAME = re.compile(r"[0-9a-f]{16}\.(parquet|rejects\.jsonl|audit\.json|sources\.json)")
HEAD_NAME = re.compile(r"HEAD-([0-9]{6,})\.json")
TablePieces = Callable[[], Iterable[pa.Table]]
"""Yields a table in pieces whenever it is called."""
GROUP_ROWS = 2**20
"""Rows of a row group."""
_LONGEST_REJECT = 2**24
"""Bytes of a line: a path and a reason."""
REVISION_DIGITS = 16
_BLOCK = 1 << 18
_ATTEMPTS = 3


class DatasetStore:
    """The datasets of a cache.

    Names consist of letters, digits, dots, dashes and underscores; those of perturbed datasets also have an @.

    Parameters
    ----------
    folder
        The cache's ``datasets`` folder.
    """

    def __init__(self, folder: AnyPath) -> None:
        self.folder = folder

    def write(self, name: str, table: pa.Table, rejects: Iterable[Mapping[str, object]] = ()) -> str:
        """Store a table and its rejects as :meth:`add` does, make it the head, and return its revision."""
        revision = self.add(name, table, rejects)
        self.move_head(name, revision)
        return revision

    def add(self, name: str, table: pa.Table | TablePieces, rejects: Iterable[Mapping[str, object]] = ()) -> str:
        """Store a table without moving the head. An existing revision keeps the files it was first written with.

        Parameters
        ----------
        name
            The dataset.
        table
            With the columns of ``SCHEMA``; or what yields its pieces, which is called more than once.
        rejects
            A JSON object for each rejected file; gone through once, or not at all.

        Returns
        -------
        str
            The revision.

        Raises
        ------
        ValueError
            If the table has other columns, types or impossible values.
        UserError
            If the name is not allowed, or the files cannot be written.
        """
        pieces = partial(_valid, (lambda: [table]) if isinstance(table, pa.Table) else table)
        folder = self._folder(name)
        make_folder(folder)
        revision = revision_of(pieces())
        target = folder / f"{revision}.parquet"
        if not path_exists(target):  # the head, in the same folder, flushes what another process left unflushed
            lines = (json.dumps(dict(reject), sort_keys=True).encode() + b"\n" for reject in rejects)
            create_written(folder / f"{revision}.rejects.jsonl", lambda file: file.writelines(lines))
            create_written(target, lambda file: _write_table(file, pieces()))
        return revision

    def move_head(self, name: str, revision: str) -> None:
        """Make a stored revision the newest one."""
        while True:
            number, current = self._head(name)
            if current == revision:
                flush_name(self._folder(name) / _head_name(number))
                return
            target = self._folder(name) / _head_name(number + 1)
            if create_file(target, json.dumps({"revision": revision}).encode() + b"\n"):
                return

    def head(self, name: str) -> str:
        """Return the newest revision; UserError if there is no such dataset."""
        number, revision = self._head(name)
        if number == 0:
            known = ", ".join(self.names()) or "none"
            raise UserError(f"{self.folder.parent}: has no dataset {name!r} (existing: {known}). Build it first.")
        return revision

    def history(self, name: str) -> list[str]:
        """Return the revisions that have been the head, each once, newest first."""
        numbers = sorted(self._head_numbers(name), reverse=True)
        return list(dict.fromkeys(named_revision(self._folder(name) / _head_name(number)) for number in numbers))

    def read(self, name: str, revision: str | None = None, *, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the table of a revision.

        Parameters
        ----------
        name
            The dataset.
        revision
            By default the head.
        columns
            The columns to read; all by default.

        Returns
        -------
        pyarrow.Table
            With the types of ``SCHEMA``.

        Raises
        ------
        UserError
            If the dataset or revision does not exist.
        IntegrityError
            If the file has other columns, types or impossible values, or decodes to more bytes than its size allows
            (see :mod:`...storage.parquet`).
        UnreachableError
            If it cannot be read at the moment.
        """
        revision = self.head(name) if revision is None else revision
        for _ in range(_ATTEMPTS):
            path = self._path(name, revision, ".parquet")
            with contextlib.suppress(FileNotFoundError):  # gc has just moved it to the trash, or back
                return _read_table(path, columns)
        raise IntegrityError(f"{path}: cannot be used (it moved each time it was read). Run the command again.")

    def pieces(
        self, name: str, revision: str | None = None, *, columns: Sequence[str] | None = None
    ) -> Iterator[pa.Table]:
        """Yield the table of a revision in pieces, at least one; arguments and errors as for :meth:`read`."""
        revision = self.head(name) if revision is None else revision
        for _ in range(_ATTEMPTS):
            path = self._path(name, revision, ".parquet")
            pieces = _read_pieces(path, columns)
            try:
                first = next(pieces)
            except FileNotFoundError:  # gc has just moved it to the trash, or back
                continue
            yield first
            yield from pieces
            return
        raise IntegrityError(f"{path}: cannot be used (it moved each time it was read). Run the command again.")

    def rejects(self, name: str, revision: str | None = None) -> Iterator[dict[str, object]]:
        """Return the rejected files of a revision (default: the head), as recorded when it was first written.

        The file is read as one goes through it, so an IntegrityError comes where its damage is met.
        """
        return _read_rejects(self._path(name, revision, ".rejects.jsonl"))

    def add_audit(self, name: str, revision: str, audit: HeaderAudit) -> None:
        """Store the audit of a revision; an existing one is kept."""
        create_file(self._folder(name) / f"{revision}.audit.json", audit.within(MOST_BYTES).as_json())

    def audit(self, name: str, revision: str | None = None) -> HeaderAudit | None:
        """Return the audit of a revision (default: the head), or None; IntegrityError if it is damaged."""
        table = self._path(name, revision, ".parquet")
        path = table.with_name(f"{table.stem}.audit.json")
        return parse_audit(read_file(path, MOST_BYTES), str(path)) if path_exists(path) else None

    def add_sources(self, name: str, revision: str, sources: SourceRecords) -> None:
        """Store the accounts of a revision's sources; existing ones are kept."""
        create_file(self._folder(name) / f"{revision}.sources.json", sources.within(MOST_BYTES).as_json())

    def sources(self, name: str, revision: str | None = None) -> SourceRecords | None:
        """Return the accounts of a revision's sources (default: the head), or None if it has none."""
        table = self._path(name, revision, ".parquet")
        path = table.with_name(f"{table.stem}.sources.json")
        return parse_sources(read_file(path, MOST_BYTES), str(path)) if path_exists(path) else None

    def names(self) -> list[str]:
        """Return the datasets that have a head, sorted."""
        names = [folder.name for folder in list_folders(self.folder) if DATASET.fullmatch(folder.name)]
        return [name for name in names if self._head_numbers(name)]

    def revisions(self, name: str) -> list[str]:
        """Return all revisions of a dataset, sorted by hash."""
        return [path.name.removesuffix(".parquet") for path in list_matching(self._folder(name), _TABLE)]

    def scan_file(self, name: str) -> AnyPath:
        """Return the path of the record of scanned files. Its folder may not exist yet."""
        return self._folder(name) / "scan.parquet"

    def _folder(self, name: str) -> AnyPath:
        if not DATASET.fullmatch(name):
            raise UserError(
                f"{name!r}: is not a valid dataset name. Use letters, digits, dots, dashes and underscores."
            )
        return self.folder / name

    def _path(self, name: str, revision: str | None, suffix: str) -> AnyPath:
        revision = self.head(name) if revision is None else revision
        path = self._folder(name) / f"{revision}{suffix}"
        removed = self._folder(name) / "removed" / path.name
        if not path_exists(path) and path_exists(removed):  # gc moved it to the trash after the caller found it
            path = removed
        if not _REVISION.fullmatch(revision) or not path_exists(path):
            raise UserError(f"{self.folder.parent}: dataset {name} has no revision {revision} (file {path.name}).")
        return path

    def _head_numbers(self, name: str) -> list[int]:
        matches = (HEAD_NAME.fullmatch(found) for found in list_names(self._folder(name)))
        return [int(match[1]) for match in matches if match]

    def _head(self, name: str) -> tuple[int, str]:
        number = max(self._head_numbers(name), default=0)
        if number == 0:
            return 0, ""
        return number, named_revision(self._folder(name) / _head_name(number))


def _read_rejects(path: AnyPath) -> Iterator[dict[str, object]]:
    for line in stream_lines(path, _LONGEST_REJECT):
        try:
            reject = json.loads(line.decode())
        except (ValueError, RecursionError):
            reject = None
        if not isinstance(reject, dict):
            raise IntegrityError(f"{path}: is not a list of rejects, so the file is damaged.")
        yield reject


def _valid(pieces: TablePieces) -> Iterator[pa.Table]:
    """Yield the pieces of a table with the types of ``SCHEMA``; ValueError for impossible values."""
    for piece in pieces():
        table = piece.select(SCHEMA.names).cast(SCHEMA)
        _check_values(table)
        yield table


def _write_table(file: IO[bytes], pieces: Iterable[pa.Table]) -> None:
    """Write a table as ``pyarrow.parquet.write_table`` does, holding the rows of one row group in memory."""
    held = SCHEMA.empty_table()
    written = 0
    with pq.ParquetWriter(
        file, SCHEMA, compression="zstd", use_dictionary=REPEATED, write_page_checksum=True
    ) as writer:
        for piece in pieces:
            held = pa.concat_tables([held, piece])
            while len(held) >= GROUP_ROWS:
                writer.write_table(held.slice(0, GROUP_ROWS).combine_chunks(), row_group_size=GROUP_ROWS)
                held = held.slice(GROUP_ROWS)
                written += GROUP_ROWS
        if len(held) or not written:
            writer.write_table(held.combine_chunks(), row_group_size=GROUP_ROWS)


def _read_table(path: AnyPath, columns: Sequence[str] | None) -> pa.Table:
    """Read and check a revision's table; FileNotFoundError if it is gone, IntegrityError if it is damaged."""
    with _damage_of(path):
        source = _checked_source(path)
        return _checked_piece(read_bounded(source, columns))


def _read_pieces(path: AnyPath, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    """Yield the same in pieces, at least one."""
    with _damage_of(path):
        source = _checked_source(path)
        empty = True
        for piece in read_batches(source, columns):
            empty = False
            yield _checked_piece(piece)
        if empty:
            yield _checked_piece(read_bounded(source, columns))


def _checked_source(path: AnyPath) -> Path | pa.Buffer:
    source = fetch_source(path)
    found = read_schema(source)
    if found.names != SCHEMA.names or found.types != SCHEMA.types:
        raise ValueError(f"its columns are not those of a dataset: {_schema_difference(found)}")
    return source


def _checked_piece(table: pa.Table) -> pa.Table:
    table = table.cast(pa.schema([SCHEMA.field(column) for column in table.column_names]))
    _check_values(table)
    return table


@contextlib.contextmanager
def _damage_of(path: AnyPath) -> Iterator[None]:
    """Turn the errors of reading a table into IntegrityError, or UnreachableError if it may be sound."""
    try:
        yield
    except FileNotFoundError:
        raise
    except IrregularFileError as error:
        raise IntegrityError(f"{path}: is not a regular file.") from error
    except (OSError, ValueError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:  # pyarrow's own errors have no errno
            raise unreachable_error(path, error) from error
        raise IntegrityError(f"{path}: cannot be used ({error}).") from error


def _head_name(number: int) -> str:
    return f"HEAD-{number:06d}.json"


def named_revision(path: AnyPath) -> str:
    """Return the revision that a head file names; IntegrityError if it names none."""
    try:
        revision = json.loads(read_file(path, 1 << 16))["revision"]
        if not isinstance(revision, str) or not _REVISION.fullmatch(revision):
            raise ValueError("no revision")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise IntegrityError(f"{path}: does not name a revision, so the file is damaged.") from error
    return revision


def _schema_difference(found: pa.Schema) -> str:
    expected = {(field.name, str(field.type)) for field in SCHEMA}
    wrong = sorted(expected ^ {(field.name, str(field.type)) for field in found})
    return ", ".join(f"{name} {kind}" for name, kind in wrong) or "another order"


def _check_values(table: pa.Table) -> None:
    """Raise ValueError for the first column with a null, a malformed key, or a label other than 0 and 1."""
    for name in table.column_names:
        if table.column(name).null_count:
            raise ValueError(f"column {name} has empty cells")
    if "key" in table.column_names and not _all(pc.match_substring_regex(table.column("key"), r"\A[0-9a-f]{32}\z")):
        raise ValueError("column key holds something that is not 32 hex digits")
    if "label" in table.column_names and not _all(pc.is_in(table.column("label"), pa.array([0, 1], pa.int8()))):
        raise ValueError("column label holds something other than 0 and 1")


def _all(values: pa.ChunkedArray) -> bool:
    return bool(pc.all(values, min_count=0).as_py())


_ROW = np.dtype([("key", BINARY), ("kind", ">u4")])


def revision_of(table: pa.Table | Iterable[pa.Table]) -> str:
    """Return the revision of a table: a hash of its rows.

    Paths, sizes and the order of the rows do not enter, so moving or touching a file changes nothing. The rows are
    sorted on disk, see :mod:`...storage.disk_array`.

    Parameters
    ----------
    table
        With at least the columns ``key``, ``label``, ``split``, ``generator`` and ``group``; or its pieces.

    Returns
    -------
    str
        The first 16 hex digits of the SHA-256 over the sorted (key, label, split, generator, group), each a JSON array
        on its own line.

    Raises
    ------
    ValueError
        If a key is not 32 hex digits.
    """
    kinds = RowKinds(("label", "split", "generator", "group"))
    rows = sort_records(_keys_and_kinds([table] if isinstance(table, pa.Table) else table, kinds), _ROW)
    found = list(kinds.found)
    endings = [json.dumps(kind, separators=(",", ":"))[1:] for kind in found]
    rank = np.empty(len(found), np.int64)
    rank[sorted(range(len(found)), key=found.__getitem__)] = np.arange(len(found))
    digest = hashlib.sha256()
    for block in whole_groups(rows.blocks(), "key"):
        keys, kind = block["key"], block["kind"]
        if len(group_starts(keys)) < len(keys):  # several rows of a key are in the order of their kinds
            order = np.lexsort((rank[kind], keys))
            keys, kind = keys[order], kind[order]
        for start in range(0, len(keys), _BLOCK):
            part = slice(start, start + _BLOCK)
            pairs = zip(hex_keys(keys[part]), kind[part].tolist(), strict=True)
            digest.update("".join([f'["{key}",{endings[number]}\n' for key, number in pairs]).encode())
    return digest.hexdigest()[:REVISION_DIGITS]


class RowKinds:
    """Numbers the distinct values that rows have in some columns, in the order in which they are met.

    Parameters
    ----------
    columns
        Names of the columns.

    Attributes
    ----------
    found : dict
        Values -> number.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        self.found: dict[tuple[Any, ...], int] = {}

    def numbers(self, piece: pa.Table) -> NDArray[np.int64]:
        """Return the number of each row's values, (rows,)."""
        code = np.zeros(piece.num_rows, np.int64)
        values: list[list[Any]] = []
        for name in self.columns:
            column = piece.column(name).combine_chunks()
            encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
            values.append(encoded.dictionary.to_pylist())
            code = code * max(len(values[-1]), 1) + encoded.indices.to_numpy()
        distinct, kind = np.unique(code, return_inverse=True)
        places = np.unravel_index(distinct, [max(len(column), 1) for column in values])
        numbers = np.empty(len(distinct), np.int64)
        for number, place in enumerate(zip(*places, strict=True)):
            key = tuple(column[at] for column, at in zip(values, place, strict=True))
            numbers[number] = self.found.setdefault(key, len(self.found))
        return numbers[kind]


def _keys_and_kinds(pieces: Iterable[pa.Table], kinds: RowKinds) -> Iterator[Records]:
    for piece in pieces:
        records = np.empty(piece.num_rows, _ROW)
        records["key"], records["kind"] = keys_of_column(piece.column("key")), kinds.numbers(piece)
        yield records
