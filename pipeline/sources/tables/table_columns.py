"""Which columns of a table say what of an image: by their names, by ``--columns``, and by what is in them.

Capitals, and whether words are joined by ``_``, ``-``, spaces or nothing (``isFake``), do not matter. Where two columns have a name for one
meaning and nothing settles which it is, that is an error, not a guess.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from ....errors import UserError
from ..file import ReadingOptions
from ..words import split_of_word

FAKE_IS_1 = (
    *("is_fake", "fake", "is_ai", "is_ai_generated", "ai_generated", "is_generated", "generated", "is_synthetic"),
    *("synthetic", "is_deepfake", "deepfake", "ai"),
)
"""Columns in which 1 means generated."""
REAL_IS_1 = ("is_real", "real", "is_human", "is_authentic", "authentic", "is_natural")
"""Columns in which 1 means real."""
TARGET = "target"
"""The column in which 0 means real and every other number a generator, as in ArtiFact."""

ALIASES: Mapping[str, tuple[str, ...]] = {
    "path": (
        *("path", "image_path", "img_path", "file_name", "filename", "file_path", "filepath", "file", "image_file"),
        *("image", "img", "image_name", "img_name", "picture", "relative_path", "rel_path"),
    ),
    "label": (
        *("label", "labels", TARGET, "class", "label_a", "label_str", "label_name", "label_text", "class_name"),
        *("class_label", "ground_truth", "real_or_fake", *FAKE_IS_1, *REAL_IS_1),
    ),
    "split": ("split", "subset", "partition"),
    "generator": ("generator", "generator_name", "model", "model_name", "gen_model", "label_b", "source"),
    "family": ("family",),
    "group": ("group", "source_group"),
}
"""Our name of a column -> names that tables give it."""

_MOST_WORDS = 50
"""Most distinct words of a column without a known name that may say the split."""
_SETTLED_BY_ROWS = 10
"""Rows whose files are looked for where two columns may hold the paths."""


@dataclass(frozen=True)
class Cells:
    """The columns of a table that may matter, as text without surrounding spaces; empty where a row says nothing.

    Attributes
    ----------
    columns
        The table's name of a column -> its cells.
    rows
        Number of rows.
    classes
        Columns whose cells were numbers of classes and are the classes' names now.
    unused
        Columns that have no meaning here.
    """

    columns: Mapping[str, list[str]]
    rows: int
    classes: Collection[str] = field(default_factory=frozenset)
    unused: Sequence[str] = ()


@dataclass(frozen=True)
class Rows:
    """Names a table and its rows for people.

    Attributes
    ----------
    name
        The table, or the folder of several.
    row
        Returns the name of a row, given its number from 0 over all tables.
    """

    name: str
    row: Callable[[int], str]

    @classmethod
    def of_tables(cls, name: str, tables: Sequence[tuple[str, int]]) -> Rows:
        """Return the names of the rows of tables, given name and number of rows of each; rows count from 1."""

        def row_name(row: int) -> str:
            for table, rows in tables:
                if row < rows:
                    return f"{table}, row {row + 1}"
                row -= rows
            return name

        return cls(name, row_name)

    def __str__(self) -> str:
        return self.name


@lru_cache(maxsize=4096)
def column_key(name: str) -> str:
    """Return what is compared of the name of a column: its letters in lower case, however its words are joined."""
    return re.sub(r"[-_\s]+", "", name.casefold())


@lru_cache(maxsize=4096)
def meaning_of(name: str) -> str | None:
    """Return our name for a column of a table; None if its name says nothing of an image."""
    return next((ours for ours, names in ALIASES.items() if column_key(name) in _normal(names)), None)


def candidates(where: Rows, names: Sequence[str], ours: str, reading: ReadingOptions) -> list[str]:
    """Return the columns that may have a meaning, the most likely first; only one if the user names it.

    Raises
    ------
    UserError
        If the user names a column that does not exist.
    """
    if ours in reading.columns:
        named = reading.columns[ours]
        if not named:
            return []
        found = [name for name in names if name == named] or [
            name for name in names if column_key(name) == column_key(named)
        ]
        if len(found) != 1:
            raise UserError(f"{where}: --columns {ours}={named}: has no such column. Its columns: {', '.join(names)}.")
        return found
    taken = {column_key(theirs) for theirs in reading.columns.values()}
    order = _normal(ALIASES[ours])
    fitting = [name for name in names if column_key(name) in order and column_key(name) not in taken]
    return sorted(fitting, key=lambda name: order.index(column_key(name)))


def one_column(where: Rows, cells: Cells, ours: str, reading: ReadingOptions) -> str | None:
    """Return the column of a meaning other than path or label; None if there is none.

    Our own name comes first. Other names that say the same in each row are one.
    """
    found = candidates(where, list(cells.columns), ours, reading)
    if ours == "generator" and len(found) > 1 and column_key(found[-1]) == "source":
        found.pop()  # it also names where real images come from
    if len(found) > 1 and column_key(found[0]) != ours and len({tuple(cells.columns[name]) for name in found}) > 1:
        raise ambiguous(where, ours, found)
    return found[0] if found else None


def path_column(
    where: Rows, cells: Cells, reading: ReadingOptions, exists: Callable[[str], bool]
) -> tuple[str | None, str]:
    """Return the column of the images' paths, and a note if it was chosen among several.

    Our own name comes first. Of other names, the one that alone leads to files is taken.

    Parameters
    ----------
    where, cells, reading
        The table.
    exists
        Whether there is a file at a path.
    """
    found = candidates(where, list(cells.columns), "path", reading)
    if len(found) < 2:
        return (found[0] if found else None), ""
    if column_key(found[0]) == "path":
        return found[0], f"The images are those of the column `path`, not of {_names(found[1:])}."
    leading = [name for name in found if any(exists(path) for path in cells.columns[name][:_SETTLED_BY_ROWS] if path)]
    if len(leading) != 1:
        raise ambiguous(where, "path", found)
    others = [name for name in found if name != leading[0]]
    return leading[0], f"The images are those of the column `{leading[0]}`: {_names(others)} leads to no file."


def names_splits(cells: Sequence[str]) -> bool:
    """Check whether a column holds words for splits, and nothing else."""
    words = {cell.strip() for cell in set(cells)} - {""}
    return 0 < len(words) <= _MOST_WORDS and all(split_of_word(word) is not None for word in words)


def ambiguous(where: Rows, ours: str, names: Sequence[str]) -> UserError:
    """Return the error for several columns of one meaning."""
    return UserError(
        f"{where}: the columns {_names(names)} may each be the {ours}. Say which one with --columns {ours}=NAME."
    )


def _names(names: Sequence[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)


def _normal(names: Sequence[str]) -> list[str]:
    return [column_key(name) for name in names]
