"""Datasets: named tables with one row per occurrence of a sample, kept as immutable revisions.

``datasets/NAME/REVISION.parquet`` is the table, ``REVISION.rejects.jsonl`` the files that could not be used,
``REVISION.audit.json`` an audit of the files' headers (see :mod:`.audit`), and the highest ``HEAD-000001.json``
names the newest revision. Each head is created exclusively (compare and swap): a builder
that finds its number taken reads the new head and tries the next one.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...errors import IntegrityError, UserError
from ...storage import AnyPath, list_folders, list_matching, list_names, path_exists, unreachable_error
from ...storage.atomic import create_file, make_folder, read_file
from ...storage.parquet import fetch_source, read_bounded, read_schema
from .audit import MOST_BYTES, HeaderAudit, parse_audit
from .revision import revision_of

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
"""Columns stored with a dictionary; in the others hardly a value comes twice."""
OF_REVISION = (".parquet", ".rejects.jsonl", ".audit.json")
"""Suffixes of the files of a revision; the last is not there of every one."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,99}")
_REVISION = re.compile(r"[0-9a-f]{16}")
_TABLE = re.compile(r"[0-9a-f]{16}\.parquet")
REVISION_NAME = re.compile(r"[0-9a-f]{16}\.(parquet|rejects\.jsonl|audit\.json)")
HEAD_NAME = re.compile(r"HEAD-(\d{6,})\.json")
_MAX_REJECTS = 2**30
_LOOKS = 3


class DatasetStore:
    """The datasets of a cache. Names are letters, digits, dots, dashes and underscores; derived ones also have an @."""

    def __init__(self, folder: AnyPath) -> None:
        self.folder = folder

    def write(self, name: str, table: pa.Table, rejects: Sequence[Mapping[str, object]] = ()) -> str:
        """Store a table and its rejects as in :meth:`add`, make it the head, and return its revision."""
        revision = self.add(name, table, rejects)
        self.move_head(name, revision)
        return revision

    def add(self, name: str, table: pa.Table, rejects: Sequence[Mapping[str, object]] = ()) -> str:
        """Store a table (columns as in ``SCHEMA``) and its rejects, and return its revision; the head stays where it is.

        A revision that exists keeps the table it was first written with. ValueError if the table is not as it should.
        """
        table = table.select(SCHEMA.names).cast(SCHEMA)
        _check_values(table)
        folder = self._folder(name)
        make_folder(folder)
        revision = revision_of(table)
        target = folder / f"{revision}.parquet"
        if not path_exists(target):
            lines = "".join(json.dumps(dict(reject), sort_keys=True) + "\n" for reject in rejects)
            create_file(folder / f"{revision}.rejects.jsonl", lines.encode())
            buffer = pa.BufferOutputStream()
            pq.write_table(table, buffer, compression="zstd", use_dictionary=REPEATED, write_page_checksum=True)
            create_file(target, memoryview(buffer.getvalue()))
        return revision

    def move_head(self, name: str, revision: str) -> None:
        """Make a stored revision the newest one."""
        while True:
            number, current = self._head(name)
            if current == revision:
                return
            target = self._folder(name) / _head_name(number + 1)
            if create_file(target, json.dumps({"revision": revision}).encode() + b"\n"):
                return

    def head(self, name: str) -> str:
        """Return the newest revision; UserError if there is no such dataset."""
        number, revision = self._head(name)
        if number == 0:
            known = ", ".join(self.names()) or "none"
            raise UserError(f"{self.folder.parent}: has no dataset {name!r} (there are: {known}). Build it first.")
        return revision

    def history(self, name: str) -> list[str]:
        """Return the revisions that have been the head, each once, the newest first."""
        numbers = sorted(self._head_numbers(name), reverse=True)
        return list(dict.fromkeys(named_revision(self._folder(name) / _head_name(number)) for number in numbers))

    def read(self, name: str, revision: str | None = None, *, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the table of a revision (default: the head) with ``SCHEMA``, or only these of its columns.

        UserError if it does not exist; IntegrityError if the file has other columns, types, or impossible values, or
        stands for more bytes than a file of its size should (see :mod:`...storage.parquet`).
        """
        revision = self.head(name) if revision is None else revision
        for _ in range(_LOOKS):
            path = self._path(name, revision, ".parquet")
            with contextlib.suppress(FileNotFoundError):  # gc has just set it aside, or put it back
                return _read_table(path, columns)
        raise IntegrityError(f"{path}: cannot be used (it is never where it was seen).")

    def rejects(self, name: str, revision: str | None = None) -> list[dict[str, object]]:
        """Return what could not be used when a revision (default: the head) was first written."""
        path = self._path(name, revision, ".rejects.jsonl")
        try:
            rows = [json.loads(line) for line in read_file(path, _MAX_REJECTS).decode().splitlines()]
        except (ValueError, RecursionError) as error:
            raise IntegrityError(f"{path}: is not a list of rejects, so the file is damaged.") from error
        if not all(isinstance(row, dict) for row in rows):
            raise IntegrityError(f"{path}: is not a list of rejects, so the file is damaged.")
        return rows

    def add_audit(self, name: str, revision: str, audit: HeaderAudit) -> None:
        """Store the audit of a revision; one that exists stays."""
        create_file(self._folder(name) / f"{revision}.audit.json", audit.as_json())

    def audit(self, name: str, revision: str | None = None) -> HeaderAudit | None:
        """Return the audit of a revision (default: the head), or None if it has none. IntegrityError for a damaged one."""
        table = self._path(name, revision, ".parquet")
        path = table.with_name(f"{table.stem}.audit.json")
        return parse_audit(read_file(path, MOST_BYTES), str(path)) if path_exists(path) else None

    def names(self) -> list[str]:
        """Return the datasets that have a head, sorted."""
        names = [folder.name for folder in list_folders(self.folder) if _NAME.fullmatch(folder.name)]
        return [name for name in names if self._head_numbers(name)]

    def revisions(self, name: str) -> list[str]:
        """Return all revisions of a dataset, sorted by hash."""
        return [path.name.removesuffix(".parquet") for path in list_matching(self._folder(name), _TABLE)]

    def scan_file(self, name: str) -> AnyPath:
        """Return where a builder may remember path, size and time of scanned files. The folder may not exist yet."""
        return self._folder(name) / "scan.parquet"

    def _folder(self, name: str) -> AnyPath:
        if not _NAME.fullmatch(name):
            raise UserError(f"{name!r}: cannot name a dataset. Use letters, digits, dots, dashes and underscores.")
        return self.folder / name

    def _path(self, name: str, revision: str | None, suffix: str) -> AnyPath:
        revision = self.head(name) if revision is None else revision
        path = self._folder(name) / f"{revision}{suffix}"
        removed = self._folder(name) / "removed" / path.name
        if not path_exists(path) and path_exists(removed):  # somebody found it before gc removed it
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


def _read_table(path: AnyPath, columns: Sequence[str] | None) -> pa.Table:
    """Read and check a revision's file; FileNotFoundError if it is gone, IntegrityError for all else that is wrong."""
    try:
        source = fetch_source(path)
        found = read_schema(source)
        if found.names != SCHEMA.names or found.types != SCHEMA.types:
            raise ValueError(f"its columns are not those of a dataset: {_differing(found)}")
        table = read_bounded(source, columns)
        table = table.cast(pa.schema([SCHEMA.field(column) for column in table.column_names]))
        _check_values(table)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:  # pyarrow's own complaints have no number
            raise unreachable_error(path, error) from error
        raise IntegrityError(f"{path}: cannot be used ({error}).") from error
    return table


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


def _differing(found: pa.Schema) -> str:
    expected = {(field.name, str(field.type)) for field in SCHEMA}
    wrong = sorted(expected ^ {(field.name, str(field.type)) for field in found})
    return ", ".join(f"{name} {kind}" for name, kind in wrong) or "another order"


def _check_values(table: pa.Table) -> None:
    """Raise ValueError for the first column with a null, a malformed key, or a label that is neither 0 nor 1."""
    for name in table.column_names:
        if table.column(name).null_count:
            raise ValueError(f"column {name} has empty cells")
    if "key" in table.column_names and not _all(pc.match_substring_regex(table.column("key"), r"\A[0-9a-f]{32}\z")):
        raise ValueError("column key holds something that is not 32 hex digits")
    if "label" in table.column_names and not _all(pc.is_in(table.column("label"), pa.array([0, 1], pa.int8()))):
        raise ValueError("column label holds something other than 0 and 1")


def _all(values: pa.ChunkedArray) -> bool:
    return bool(pc.all(values, min_count=0).as_py())
