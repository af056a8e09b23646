"""Read a table as a source: a CSV or Parquet file with a row for each image.

It has the columns ``path`` and ``label`` and, if known, ``split``, ``generator``, ``family`` and ``group``; further
columns are ignored. A label is 0, 1, ``real`` or ``fake``. An empty cell or a missing column means: split ``train``,
generator ``real`` or ``fake``, the family of the generator, no group.

A relative path starts at the table's folder, local or in an object store. A path may also be absolute or a URL. Size
and time of objects come from one listing per folder, so that an object that is in the scan memory needs no request of
its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ...errors import UserError
from ...storage import AnyPath, RemotePath
from .file import (
    AS_RECOGNISED,
    LABELS,
    DiscoveredSource,
    ListedObject,
    ReadingOptions,
    SourceAccount,
    SourceFile,
    is_url,
    source_place,
)
from .layouts import family_of
from .read import REMOTE_READERS
from .tree import SPLITS, listing_name

TABLE = "table"
SUFFIXES = (".csv", ".parquet")

_COLUMNS = ("path", "label", "split", "generator", "family", "group")


def discover_table(source: AnyPath, reading: ReadingOptions = AS_RECOGNISED) -> DiscoveredSource:
    """List the images of a table, in its order. Raises UserError for an unreadable table or an invalid row."""
    try:
        names, table = _read_table(source)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{source}: cannot be read as a table ({str(error).splitlines()[0]}).") from error
    if not {"path", "label"} <= set(names) or len(names) != len(set(names)):
        raise UserError(f"{source}: needs one column `path` and one `label`. Its columns: {', '.join(names)}.")
    columns = [table.column(name).to_pylist() if name in names else [None] * table.num_rows for name in _COLUMNS]
    files = [
        _table_row(source, row, [_text(value) for value in values])
        for row, values in enumerate(zip(*columns, strict=True), 1)
    ]
    if not files:
        raise UserError(f"{source}: the table has no rows.")
    return DiscoveredSource(TABLE, _with_listings(files), SourceAccount(str(source), TABLE, len(files), len(files)))


def _read_table(source: AnyPath) -> tuple[list[str], pa.Table]:
    """Return the names of all columns, and a table with at least the known ones."""
    opened = pa.BufferReader(source.read_bytes()) if isinstance(source, RemotePath) else source
    if source.suffix.lower() == ".parquet":
        with pa.parquet.ParquetFile(opened) as file:
            names = file.schema_arrow.names
            return names, file.read(columns=[name for name in _COLUMNS if name in names])
    table = pa.csv.read_csv(
        opened,
        parse_options=pa.csv.ParseOptions(newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(_COLUMNS, pa.string())),
    )
    return table.column_names, table


def _text(value: object) -> str:
    """Return a cell as text; null and NaN become empty."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value)


def _table_row(source: AnyPath, row: int, cells: list[str]) -> SourceFile:
    """Return the file of a row; ``row`` counts from 1, without the header."""
    path = cells[0]
    kind, split, generator, family, group = (cell.strip() for cell in cells[1:])
    if not path:
        raise UserError(f"{source}, row {row}: the path is empty.")
    label = LABELS.get(kind.lower())
    if label is None:
        raise UserError(f"{source}, row {row}: the label {kind!r} is none of {', '.join(LABELS)}.")
    split = split.lower() or "train"
    if split not in SPLITS:
        raise UserError(f"{source}, row {row}: the split {split!r} is none of train, val, test.")
    generator = generator or ("real", "fake")[label]
    try:
        root, path = _located(path, source.parent)
    except UserError as error:
        raise UserError(f"{source}, row {row}: {error}") from error
    return SourceFile(root, path, label, SPLITS[split], generator, family or family_of(generator), group)


def _located(text: str, folder: AnyPath) -> tuple[str, str]:
    """Return root and relative path; the root is the table's folder if the file is below it, else ``/``."""
    path = source_place(text) if is_url(text) else PurePosixPath(text)
    if not isinstance(path, RemotePath) and isinstance(folder, RemotePath) and not path.is_absolute():
        path = folder / path.as_posix()
    if isinstance(path, RemotePath):
        return _in_store(path, folder)
    if not path.is_absolute():
        return str(folder), str(path)
    if not isinstance(folder, RemotePath) and path.is_relative_to(folder.absolute()):
        return str(folder), str(path.relative_to(folder.absolute()))
    return path.anchor, str(path.relative_to(path.anchor))


def _in_store(path: RemotePath, folder: AnyPath) -> tuple[str, str]:
    """Return root and path of an object; ``..`` goes up a folder, but not out of the bucket."""
    bucket, *names = path.parts
    kept: list[str] = []
    for name in names:
        if name != "..":
            kept.append(name)
        elif kept:
            kept.pop()
        else:
            raise UserError(f"the path {path} leads out of its bucket.")
    found = RemotePath("/".join([bucket, *kept]))
    root = folder if isinstance(folder, RemotePath) and found.is_relative_to(folder) else RemotePath(bucket)
    return str(root), found.relative_to(root).as_posix()


def _with_listings(files: list[SourceFile]) -> list[SourceFile]:
    """Add size and time from listings of their folders to the files in object stores."""
    listed = _listings({file.location.rpartition("/")[0] for file in files if file.is_remote})
    if not listed:
        return files
    return [replace(file, listed=listed.get(file.location)) if file.is_remote else file for file in files]


def _listings(folders: Iterable[str]) -> dict[str, ListedObject]:
    """Return URL -> size and time of the objects in these folders; folders that may not be listed are left out."""

    def objects(folder: str) -> list[tuple[str, ListedObject]]:
        try:
            entries = RemotePath(folder).children()
            return [(str(entry.path), listing_name(entry)) for entry in entries if not entry.is_folder]
        except PermissionError:
            return []

    with ThreadPoolExecutor(REMOTE_READERS) as pool:
        return {name: listed for found in pool.map(objects, sorted(folders)) for name, listed in found}
