"""Folders whose tables of metadata give the labels: ImageFolder of the Hub, and ArtiFact.

========== ================================================= =======================================================
tree       tables                                            what they say
========== ================================================= =======================================================
ImageFolder ``[SPLIT/]metadata.csv`` or ``metadata.jsonl``    a row for each image beside it, with its label
ArtiFact   ``SOURCE/metadata.csv`` with ``target``           0 is real; any other number is a family of generators,
                                                             and the folder's name is the generator
========== ================================================= =======================================================

Each table is read as one that is given as a source (:mod:`..tables.table`). A table without a column for labels is left alone:
the folders say what is what.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ....storage import AnyPath
from ....storage.regular import open_regular
from ..account import Leftovers
from ..file import DiscoveredSource, ReadingOptions, SourceAccount, SourceFile, printable
from ..tables.table import discover_table
from ..tables.table_columns import meaning_of
from ..tables.table_read import read_text_table
from ..tables.text import encoding_of
from ..tree import join
from ..words import split_of_word
from .census import Census
from .families import family_of

METADATA = "metadata"
ARTIFACT = {"image_path": "path", "target": "label"}
"""Columns of ArtiFact's tables -> what they say."""
_NAMES = ("metadata.csv", "metadata.jsonl")
_HEAD = 1 << 16
"""Bytes of a table that are read to find the names of its columns."""
_NOT_LISTED = "no row of the folder's metadata names them"


@dataclass(frozen=True)
class MetadataTable:
    """A table of metadata with labels.

    Attributes
    ----------
    folder
        Its folder, relative to the root.
    name
        Its file name.
    columns
        Names of its columns, in lower case.
    """

    folder: str
    name: str
    columns: frozenset[str]

    @property
    def is_artifact(self) -> bool:
        """Whether the table numbers families of generators, as ArtiFact's do."""
        return ARTIFACT.keys() <= self.columns and "label" not in self.columns


def labelled_tables(census: Census) -> list[MetadataTable]:
    """Return the tables of metadata of a source that name images and their labels, by folder."""
    found = []
    for folder in sorted(census.others):
        there = {name.lower(): name for name in census.others[folder]}
        name = next((there[name] for name in _NAMES if name in there), None)
        if name is None:
            continue
        columns = frozenset(column.lower() for column in column_names(census.tree.root / join(folder, name)))
        if {"path", "label"} <= {meaning_of(name) for name in columns}:
            found.append(MetadataTable(folder, name, columns))
    return found


def discover_metadata(census: Census, tables: Sequence[MetadataTable], reading: ReadingOptions) -> DiscoveredSource:
    """List the images that tables of metadata name. Raises UserError as :func:`..tables.table.discover_table` does."""
    tree, root = census.tree, str(census.tree.root)
    files: list[SourceFile] = []
    notes: list[str] = []
    for table in tables:
        found = discover_table(tree.root / join(table.folder, table.name), _reading(census, table, reading))
        notes += (f"{printable(table.folder) or 'the root'}: {note}" for note in found.account.notes)
        files += (_placed(file, census, table) for file in found.files)
    named = {file.path for file in files if file.root == root}
    leftovers = Leftovers(census, root, {}, reason=_NOT_LISTED)
    present = 0
    for folder, names in census.images.items():
        if leftovers.is_first(folder, None):
            others = [name for name in names if join(folder, name) not in named]
            leftovers.add(folder, others)
            present += len(names) - len(others)
    account = leftovers.account(METADATA, present, notes)
    # A row counts as a file, whether or not the file is there: the scan rejects what is missing.
    return DiscoveredSource(METADATA, files, _with_rows(account, len(files) - present))


def _with_rows(account: SourceAccount, more: int) -> SourceAccount:
    return replace(account, files=account.files + more, images=account.images + more)


def _reading(census: Census, table: MetadataTable, reading: ReadingOptions) -> ReadingOptions:
    if not table.is_artifact:
        return reading
    targets = _values(census.tree.root / join(table.folder, table.name), "target")
    labels = {target.strip(): int(target.strip() not in ("0", "0.0")) for target in targets}
    ours = {name: theirs for theirs, name in ARTIFACT.items()}
    return replace(reading, labels={**labels, **reading.labels}, columns={**ours, **reading.columns})


def _placed(file: SourceFile, census: Census, table: MetadataTable) -> SourceFile:
    """Return a file of a table with the source's root, the split of its folder and, in ArtiFact, its generator."""
    root = str(census.tree.root)
    above = str(census.tree.root / table.folder) if table.folder else root
    path = join(table.folder, file.path) if file.root == above else file.path
    split = file.split
    if "split" not in {meaning_of(name) for name in table.columns}:
        named = (split_of_word(part) for part in table.folder.split("/"))
        split = next((name for name in named if name is not None), file.split)
    generator, family = file.generator, file.family
    if table.is_artifact and file.label == 1:
        generator = table.folder.rpartition("/")[2]
        family = family_of(generator)
    return replace(
        file,
        root=root if file.root == above else file.root,
        path=path,
        split=split,
        generator=generator,
        family=family,
        listed=census.tree.listed(path) if file.root == above else file.listed,
    )


def column_names(path: AnyPath) -> list[str]:
    """Return the names of a table's columns by its first line; none if they cannot be read."""
    with open_regular(path) as file:
        head = file.read(_HEAD)
    encoding, mark = encoding_of(head)
    line = head[mark:].decode(encoding, "replace").lstrip().partition("\n")[0].strip()
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            return []
        return list(row) if isinstance(row, dict) else []
    delimiter = max(",;\t", key=line.count)
    return [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]


def _values(path: AnyPath, column: str) -> set[str]:
    """Return the distinct values of a column of a table."""
    columns = {name.lower(): cells for name, cells in read_text_table(path).items()}
    return {cell for cell in columns[column] if cell.strip()}
