"""Read tables as a source: a row for each image, with its path or with the image itself.

A table is a CSV or TSV file, JSON, JSON lines, a text file of ``PATH LABEL`` lines, or Parquet; the shards of a data set
are one table. It needs a path (or the image) and a label; split, generator, family and group are read if they are there.
:mod:`.table_columns` finds the columns, :mod:`.table_labels` says what the labels mean.

A missing or empty cell means: the split that the table's name says, or else ``train``; generator ``real`` or ``fake``;
the family of the generator; no group.

A relative path starts at the table's folder, local or in an object store. A path may also be absolute or a URL. Size
and time of objects come from one listing per folder, so that an object that is in the scan memory needs no request of
its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath

from ....errors import UserError
from ....storage import AnyPath, absolute, by_requests, is_url, list_objects, located, map_ordered, to_path
from ..file import (
    AS_RECOGNISED,
    DiscoveredSource,
    ListedObject,
    ParquetMember,
    ReadingOptions,
    SourceAccount,
    SourceFile,
    Uncovered,
    printable,
    source_place,
)
from ..folders.families import family_of
from ..folders.split_names import split_of_table
from ..read import REMOTE_READERS
from ..tree import listing_name
from ..words import label_of_word, normalised, split_of_word
from . import parquet
from .table_columns import Cells, Rows, ambiguous, meaning_of, names_splits, one_column, path_column
from .table_labels import is_unlabelled, names_classes, number_of, read_labels
from .table_read import TEXT_SUFFIXES, read_text_table

TABLE = "table"
PARQUET = "parquet"
SUFFIXES = (*TEXT_SUFFIXES, parquet.SUFFIX)

_NO_GENERATOR = ("nan", "none", "null", "n/a", "-")
"""Cells that name no generator."""
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_PROBED = 10
"""Rows whose files are looked for to find out where paths start."""


@dataclass(frozen=True)
class _TablePart:
    """One table: its path relative to the root, its columns, the images in it, and its rows."""

    path: str
    columns: dict[str, list[str]]
    rows: int
    unused: tuple[str, ...]
    classes: frozenset[str] = frozenset()
    members: Sequence[ParquetMember] | None = None
    names: Sequence[str] = ()


def discover_table(source: AnyPath, reading: ReadingOptions = AS_RECOGNISED) -> DiscoveredSource:
    """List the images of a table, in its order.

    Parameters
    ----------
    source
        A file with one of :data:`SUFFIXES`.
    reading
        What the user says of words, columns and paths.

    Raises
    ------
    UserError
        For a table that cannot be read, or that does not say what its rows mean.
    """
    return _discover(source.parent, [_read_part(source.parent, source.name, reading)], reading, str(source))


def discover_shards(
    root: AnyPath, shards: Sequence[str], reading: ReadingOptions = AS_RECOGNISED
) -> tuple[DiscoveredSource, list[str]] | None:
    """List the images in Parquet files, which are one table.

    Parameters
    ----------
    root
        The source's folder.
    shards
        Posix paths relative to it.
    reading
        What the user says of words and columns.

    Returns
    -------
    tuple of (DiscoveredSource, list of str), or None
        The source, and the files that are read: those without images are passed over, and a note names them. None if
        no file has images.

    Raises
    ------
    UserError
        As :func:`discover_table` does.
    """
    read = partial(_read_part, root, reading=reading)
    parts = list(map_ordered(read, sorted(shards), root, max_workers=REMOTE_READERS // 8))
    useful = [part for part in parts if part.members is not None]
    if not useful:
        return None
    left_out = [part.path for part in parts if part.members is None]
    note = (f"Without images and not read: {', '.join(left_out[:4])}{', ...' if len(left_out) > 4 else ''}.",)
    found = _discover(root, useful, reading, str(root))
    account = replace(found.account, notes=found.account.notes + note) if left_out else found.account
    return found._replace(account=account), [part.path for part in useful]


def _read_part(root: AnyPath, path: str, reading: ReadingOptions) -> _TablePart:
    source = root / path
    try:
        if path.lower().endswith(parquet.SUFFIX):
            table = parquet.read_parquet_table(source, path, reading)
            return _TablePart(path, table.columns, table.rows, table.unused, table.classes, table.members, table.names)
        columns = read_text_table(source)
    except OSError as error:
        raise UserError(f"{source}: cannot be read as a table ({error.strerror or error}).") from error
    named = reading.columns.values()
    wanted = {
        name: column
        for name, column in columns.items()
        if meaning_of(name) or name in named or names_classes(column) or names_splits(column)
    }
    unused = tuple(name for name in columns if name not in wanted)
    return _TablePart(path, wanted, len(next(iter(columns.values()), [])), unused)


def _discover(root: AnyPath, parts: Sequence[_TablePart], reading: ReadingOptions, shown: str) -> DiscoveredSource:
    """List the images of tables that are one."""
    where = Rows.of_tables(shown, [(str(root / part.path), part.rows) for part in parts])
    cells = _joined(parts)
    if not cells.rows:
        raise UserError(f"{shown}: the table has no rows.")
    inside = parts[0].members is not None
    notes: list[str] = []
    paths, name = None, None
    if not inside:
        paths, name, said = _paths(where, root, parts, cells, reading)
        notes += said
    generators, generator_column = _generators(where, cells, reading)
    labels = read_labels(where, cells, generators, None if inside else cells.columns[name or ""], reading)
    notes += labels.notes
    if generators is None and labels.names_generators and labels.column is not None:
        generators, generator_column = list(cells.columns[labels.column]), labels.column
    splits, split_column, said = _splits(where, parts, cells, None if inside else cells.columns[name or ""], reading)
    notes += said
    family = _cells(where, cells, "family", reading)
    group = _cells(where, cells, "group", reading)
    origins = _origins(generators, labels.labels, generator_column)
    taken = {name, generator_column, labels.column, split_column}
    notes += _unused([*(column for column in cells.columns if _is_unused(column, taken)), *cells.unused])
    if generator_column is not None and normalised(generator_column) != "generator":
        notes.append(f"Generators are from `{generator_column}`.")

    files: list[SourceFile] = []
    bad: dict[tuple[str, str], list[tuple[int, str]]] = {}
    row = 0
    for part in parts:
        for number in range(part.rows):
            label, split = labels.labels[row], splits[row]
            if paths is not None:
                place: tuple[str, str] | str = paths[row]
            else:
                assert part.members is not None
                place = str(root), parquet.image_name(part.path, part.members[number], number, part.names[number])
            if label is None:
                cell = cells.columns[labels.column][row] if labels.column else ""
                bad.setdefault((part.path, _label_reason(cell)), []).append((number, _example(place)))
            elif split is None:
                cell = cells.columns[split_column or ""][row]
                reason = f"the split {cell!r} is none of train, val, test"
                bad.setdefault((part.path, reason), []).append((number, _example(place)))
            elif isinstance(place, str):
                bad.setdefault((part.path, place), []).append((number, ""))
            else:
                origin = "" if origins is None else origins[row]
                generator = _generator(generators[row] if generators else "", label, bool(origin))
                files.append(
                    SourceFile(
                        *place,
                        label,
                        split,
                        generator,
                        family[row] or family_of(generator),
                        group[row] or origin,
                        None if part.members is None else part.members[number],
                    )
                )
            row += 1
    uncovered = tuple(_uncovered(part, reason, rows) for (part, reason), rows in bad.items())
    if not files:
        first = f"{root / uncovered[0].folder}, {uncovered[0].reason}"
        raise UserError(f"{shown}: no row can be used. {first}.")
    layout = PARQUET if inside else TABLE
    account = SourceAccount(shown, layout, cells.rows, len(files), uncovered=uncovered, notes=tuple(notes))
    return DiscoveredSource(layout, files if inside else _with_listings(files), account)


def _joined(parts: Sequence[_TablePart]) -> Cells:
    """Return the columns of all tables, one below the other; a column that a table lacks is empty there."""
    names = list(dict.fromkeys(name for part in parts for name in part.columns))
    columns = {name: [cell for part in parts for cell in part.columns.get(name, [""] * part.rows)] for name in names}
    for name in names:
        if meaning_of(name) != "path":
            columns[name] = [cell.strip() for cell in columns[name]]
    unused = tuple(dict.fromkeys(name for part in parts for name in part.unused if name not in columns))
    classes = frozenset(name for part in parts for name in part.classes)
    return Cells(columns, sum(part.rows for part in parts), classes, unused)


def _paths(
    where: Rows, root: AnyPath, parts: Sequence[_TablePart], cells: Cells, reading: ReadingOptions
) -> tuple[list[tuple[str, str] | str], str, list[str]]:
    """Return root and path of each row (or why it has none), the column, and notes."""
    folder = (root / parts[0].path).parent
    mapped = _Mapped(reading)
    column, note = path_column(where, cells, reading, lambda path: _exists(mapped(path), folder))
    if column is None:
        shown = ", ".join([*cells.columns, *cells.unused])
        raise UserError(
            f"{where}: has no column of paths. Its columns: {shown}. Name it with --columns path=NAME; if the first row is "
            "no header, write one above it."
        )
    texts = cells.columns[column]
    notes = [note] if note else []
    if any("\\" in text for text in texts) and not _exists(next(text for text in texts if "\\" in text), folder):
        mapped.backslashes = True
    for row, text in enumerate(texts):
        if _WINDOWS.match(mapped(text)):
            raise UserError(
                f"{where.row(row)}: {printable(text)} is a path on Windows. Say where its files are here with "
                "--path-prefix, such as --path-prefix 'C:\\data=/data'."
            )
    if mapped.backslashes:
        notes.append("The paths are written with backslashes, as on Windows, and are read with slashes.")
    notes += mapped.notes(texts)
    folder, said = _start(folder, [mapped(text) for text in texts[:_PROBED] if text])
    notes += said
    places: list[tuple[str, str] | str] = []
    for row, text in enumerate(texts):
        try:
            places.append(_located(mapped(text), folder) if text.strip() else "the path is empty")
        except UserError as error:
            raise UserError(f"{where.row(row)}: {error}") from error
    return places, column, notes


class _Mapped:
    """Maps the paths of a table to paths here: moved folders, and backslashes if the table has them for slashes."""

    def __init__(self, reading: ReadingOptions) -> None:
        self.backslashes = False
        self._prefixes = reading.path_prefixes

    def __call__(self, path: str) -> str:
        """Return the path here."""
        prefix = self._prefix(path)
        if prefix is not None:
            old, new = prefix
            return new + path[len(old) :].replace("\\", "/")
        return path.replace("\\", "/") if self.backslashes and not _WINDOWS.match(path) else path

    def notes(self, paths: Sequence[str]) -> list[str]:
        """Return how many paths each prefix moves."""
        counts = dict.fromkeys(self._prefixes, 0)
        for path in paths:
            if (prefix := self._prefix(path)) is not None:
                counts[prefix] += 1
        return [f"{count:,} paths begin with {new} in place of {old}." for (old, new), count in counts.items()]

    def _prefix(self, path: str) -> tuple[str, str] | None:
        if not self._prefixes:
            return None
        slashed = path.replace("\\", "/")
        return next((pair for pair in self._prefixes if slashed.startswith(pair[0].replace("\\", "/"))), None)


def _exists(path: str, folder: AnyPath) -> bool:
    try:
        root, relative = _located(path, folder)
    except UserError:
        return False
    place = source_place(root) / relative
    try:
        return place.exists()
    except OSError:
        return False


def _start(folder: AnyPath, paths: Sequence[str]) -> tuple[AnyPath, list[str]]:
    """Return the folder at which relative paths start: the table's, or the one above if only that has the files."""
    if by_requests(folder) or not paths or any(is_url(path) or path.startswith("/") for path in paths):
        return folder, []
    above = absolute(folder).parent
    if any(_exists(path, folder) for path in paths) or not all(_exists(path, above) for path in paths):
        return folder, []
    return above, [f"The paths start at {above}, the folder above the table's."]


def _generators(where: Rows, cells: Cells, reading: ReadingOptions) -> tuple[list[str] | None, str | None]:
    """Return the generator of each row and the column; a number becomes COLUMN-NUMBER."""
    column = one_column(where, cells, "generator", reading)
    if column is None:
        return None, None
    texts = ["" if text.casefold() in _NO_GENERATOR else text for text in cells.columns[column]]
    if all(number_of(text) is not None for text in texts if text):
        texts = [f"{column}-{number_of(text)}" if text else "" for text in texts]
    return texts, column


def _origins(generators: Sequence[str] | None, labels: Sequence[int | None], column: str | None) -> list[str] | None:
    """Return where real images come from, by a column that names models or sources.

    That is a name that no generated image has. A column that is called ``generator`` is taken as it is.
    """
    if generators is None or column is None or normalised(column) == "generator":
        return None
    models = {name for name, label in zip(generators, labels, strict=True) if label == 1}
    return [
        name if label == 0 and name not in models and label_of_word(name) is None else ""
        for name, label in zip(generators, labels, strict=True)
    ]


def _generator(name: str, label: int, is_origin: bool) -> str:
    if not name or is_origin or label_of_word(name) == label:
        return ("real", "fake")[label]
    return name


def _splits(
    where: Rows, parts: Sequence[_TablePart], cells: Cells, paths: Sequence[str] | None, reading: ReadingOptions
) -> tuple[list[str | None], str | None, list[str]]:
    """Return the split of each row (None if its cell is no split), the column, and notes.

    Without a column: the table's name, else the innermost folder of the row's path that is called like a split.
    """
    column, found = one_column(where, cells, "split", reading), ""
    if column is None and "split" not in reading.columns:
        column, found = _unnamed_splits(where, cells)
    by_name = {part.path: split_of_table(_with_folder(where, part)) for part in parts}
    default = "train" if reading.split is None else reading.split
    named = [by_name[part.path] for part in parts for _ in range(part.rows)]
    by_path = _splits_of_folders(paths, cells.rows)
    defaults = [name or folder or default for name, folder in zip(named, by_path, strict=True)]
    texts = [] if column is None else cells.columns[column]
    known = {text: split_of_word(text) for text in set(texts)}
    if column is not None and any(known.values()):
        notes = [found] if found else []
        if reading.split is None and (empty := texts.count("")):
            rows = "1 row names" if empty == 1 else f"{empty:,} rows name"
            given = " and ".join(sorted({one for one, text in zip(defaults, texts, strict=True) if not text}))
            notes.append(f"{rows} no split in `{column}`: taken for {given}. Give --split if that is wrong.")
        return [known[text] if text else one for text, one in zip(texts, defaults, strict=True)], column, notes
    if column is not None and any(texts) and (normalised(column) == "split" or "split" in reading.columns):
        row = next(row for row, text in enumerate(texts) if text)
        raise UserError(
            f"{where.row(row)}: the split {texts[row]!r} is none of train, val, test. Leave the column out with --columns "
            "split=, and all rows have the split of the table's name, or else train."
        )
    said = {split for split in by_name.values() if split}
    if used := {folder for name, folder in zip(named, by_path, strict=True) if folder and not name}:
        notes = [f"Splits are by the folders of the paths: {', '.join(sorted(used))}."] if used != {"train"} else []
        return list(defaults), None, notes
    if said - {"train"} or len(said) > 1:
        return list(defaults), None, [f"Splits are by the names of the files: {', '.join(sorted(said))}."]
    return list(defaults), None, []


def _splits_of_folders(paths: Sequence[str] | None, rows: int) -> list[str | None]:
    """Return the split that the innermost folder of each path called like one names."""
    if paths is None:
        return [None] * rows
    folders = [re.split(r"[/\\]", path.strip())[:-1] for path in paths]
    return [next((split for name in reversed(parts) if (split := split_of_word(name))), None) for parts in folders]


def _unnamed_splits(where: Rows, cells: Cells) -> tuple[str | None, str]:
    """Return the column with any name that holds words for splits and nothing else, and a note on it."""
    found = [name for name, column in cells.columns.items() if meaning_of(name) is None and names_splits(column)]
    if not found:
        return None, ""
    if any(cells.columns[name] != cells.columns[found[0]] for name in found):
        raise ambiguous(where, "split", found)
    return found[0], f"Splits are from `{found[0]}`, which holds the words for them. If not, give --columns split=."


def _with_folder(where: Rows, part: _TablePart) -> str:
    """Return a table's path with the folder that it is in: that may be called like a split."""
    folder = PurePosixPath(where.row(0).rpartition(", row ")[0]).parent.name
    return part.path if "/" in part.path else f"{folder}/{part.path}"


def _cells(where: Rows, cells: Cells, ours: str, reading: ReadingOptions) -> list[str]:
    column = one_column(where, cells, ours, reading)
    return [""] * cells.rows if column is None else cells.columns[column]


def _is_unused(column: str, taken: set[str | None]) -> bool:
    return column not in taken and meaning_of(column) not in ("path", "label", "family", "group")


def _unused(columns: Sequence[str]) -> list[str]:
    if not columns:
        return []
    shown = ", ".join(f"`{column}`" for column in columns[:8]) + (", ..." if len(columns) > 8 else "")
    return [f"Columns that are not used: {shown}."]


def _label_reason(cell: str) -> str:
    if is_unlabelled(cell):
        return f"the label {cell!r} means that there is none" if number_of(cell) == -1 else "the label is empty"
    return f"the label {cell!r} is neither a word for real or generated nor 0 or 1"


def _example(place: tuple[str, str] | str) -> str:
    return place if isinstance(place, str) else place[1]


def _uncovered(part: str, reason: str, rows: Sequence[tuple[int, str]]) -> Uncovered:
    first, example = rows[0]
    more = f" (and {len(rows) - 1:,} more)" if len(rows) > 1 else ""
    return Uncovered(part, f"row {first + 1}{more}: {reason}", len(rows), example)


def _located(text: str, folder: AnyPath) -> tuple[str, str]:
    """Return root and relative path of what a table names."""
    return located(source_place(text) if is_url(text) else text, folder)


def _with_listings(files: list[SourceFile]) -> list[SourceFile]:
    """Add size and time from listings of their folders to the files in object stores."""
    listed = _listings({file.location.rpartition("/")[0] for file in files if file.by_requests})
    if not listed:
        return files
    return [replace(file, listed=listed.get(file.location)) if file.by_requests else file for file in files]


def _listings(folders: Iterable[str]) -> dict[str, ListedObject]:
    """Return URL -> size and time of the objects in these folders; folders that may not be listed are left out."""

    def objects(folder: str) -> list[tuple[str, ListedObject]]:
        try:
            entries = list_objects(to_path(folder), deep=False) or []
            return [(str(entry.path), listing_name(entry)) for entry in entries if not entry.is_folder]
        except PermissionError:
            return []

    with ThreadPoolExecutor(REMOTE_READERS) as pool:
        return {name: listed for found in pool.map(objects, sorted(folders)) for name, listed in found}
