"""What the cells of a label column mean: 0 real, 1 generated, or nothing.

Words mean what :mod:`..words` says, after what ``--labels`` says. Numbers are a matter of the column: 1 means generated in
``is_fake``, real in ``is_real``. In a column called ``label`` it is settled by whatever else the rows say: words in
another label column, the word ``real`` among the generators, class folders in the paths, or known generators. Only where nothing settles
it, 0 means real, and a note says so. What contradicts itself is an error that names rows and options.

An empty cell, and -1, say nothing. So does a word that is not known and occurs once, beside words or numbers that are:
such rows are passed over and counted. An unknown word that occurs more often names a class, and the user must say which.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ....errors import UserError
from ..file import ReadingOptions
from ..folders.families import is_known_generator
from ..words import NUMBERS, label_of_word, normalised
from .table_columns import FAKE_IS_1, REAL_IS_1, TARGET, Cells, Rows, ambiguous, candidates, column_key, meaning_of

ANY = "*"
"""The word of ``--labels`` that stands for all words without a meaning."""
UNLABELLED = ("", "-1", "nan", "none", "null", "n/a")
"""Cells (in lower case) that give a row no label."""

_MAX_SHOWN = 4
_MOST_WORDS = 50
"""Most distinct words of a column without a known name that may say the class."""
_Meaning = Mapping[str, int]
"""Cell -> 0 real, 1 generated."""


class Labels(NamedTuple):
    """Labels of all rows.

    Attributes
    ----------
    labels
        0, 1, or None where a row has no label that can be read.
    column
        The column that they are from; None if ``--labels '*=...'`` alone gave them.
    names_generators
        Whether the cells of the column name more than two classes.
    notes
        What was taken, and why, a sentence each.
    """

    labels: list[int | None]
    column: str | None
    names_generators: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Column:
    """A label column: its distinct cells that say something, and what the known words and the user say of them."""

    name: str
    cells: Sequence[str]
    counts: Mapping[str, int]
    meaning: _Meaning

    @property
    def is_numeric(self) -> bool:
        return all(number_of(cell) is not None for cell in self.counts)

    @property
    def is_known(self) -> bool:
        return bool(self.counts) and len(self.meaning) == len(self.counts)

    def labels(self, meaning: _Meaning) -> list[int | None]:
        return [meaning.get(cell) for cell in self.cells]


def read_labels(
    where: Rows, cells: Cells, generators: Sequence[str] | None, paths: Sequence[str] | None, reading: ReadingOptions
) -> Labels:
    """Return the labels of a table's rows.

    Parameters
    ----------
    where
        Names the table and its rows in errors.
    cells
        Its columns.
    generators
        The generator of each row, if there is a column of them.
    paths
        The path of each row, if the rows have paths.
    reading
        What the user says.

    Raises
    ------
    UserError
        If no column can be taken for the label, several may be it, or what the rows say contradicts itself.
    """
    columns = [
        _column(where, name, cells.columns[name], reading)
        for name in candidates(where, list(cells.columns), "label", reading)
    ]
    if not columns:
        return _without_column(where, cells, generators, reading)
    columns = [column for column in columns if column.counts] or columns[:1]
    known = [column for column in columns if column.is_known]
    named = [column for column in columns if column.is_numeric and _one_means(column.name) is not None]
    partly = [column for column in columns if column.meaning and not column.is_numeric]
    if known:
        found = _from_words(where, known, columns, cells)
    elif named:
        found = _from_names(where, named)
    elif partly:
        found = _from_words(where, partly, columns, cells)
    else:
        numeric = [column for column in columns if column.is_numeric]
        found = _from_numbers(where, numeric or columns, _witnesses(cells, generators, paths), generators)
    if not reading.labels:
        _check_generators(where, found, generators)
    return found


def meaning_of_cell(text: str, reading: ReadingOptions) -> int | None:
    """Return what the user, or else a known word, says of a cell; None for other words, and for numbers."""
    number = number_of(text)
    names = (normalised(text), *(() if number is None else (str(number),)))
    said = next((reading.labels[name] for name in names if name in reading.labels), None)
    if said is None:
        said = label_of_word(text)
    return reading.labels.get(ANY) if said is None else said


def is_unlabelled(text: str) -> bool:
    """Check whether a cell says that a row has no label."""
    return text.casefold() in UNLABELLED or number_of(text) == -1


def number_of(text: str) -> int | None:
    """Return the whole number that a cell holds, also as ``1.0`` or ``true``; None for anything else."""
    if (known := NUMBERS.get(text.casefold())) is not None:
        return known
    match = re.fullmatch(r"([+-]?\d{1,15})(?:\.0*)?", text, re.ASCII)
    return int(match[1]) if match else None


def _column(where: Rows, name: str, cells: Sequence[str], reading: ReadingOptions) -> _Column:
    counts = Counter(cells)
    minus = [cell for cell in counts if number_of(cell) == -1]
    if minus and "-1" not in reading.labels and {number_of(cell) for cell in counts if cell} == {-1, 1}:
        raise UserError(
            f"{where.row(cells.index(minus[0]))}: `{name}` holds -1 and 1. If -1 is a class, say what both mean with "
            "--labels=-1=real,1=fake; if rows with -1 have no label, take them out of the table."
        )
    for cell in list(counts):
        if is_unlabelled(cell) and not (cell in minus and "-1" in reading.labels):
            del counts[cell]
    meaning = {cell: said for cell in counts if (said := meaning_of_cell(cell, reading)) is not None}
    if not meaning and any(number_of(cell) is not None for cell in counts):  # numbers, and a word here and there
        counts = Counter({cell: count for cell, count in counts.items() if count > 1 or number_of(cell) is not None})
    return _Column(name, cells, counts, meaning)


def _one_means(name: str) -> int | None:
    """Return what 1 means by the name of a column."""
    if column_key(name) in map(column_key, FAKE_IS_1):
        return 1
    return 0 if column_key(name) in map(column_key, REAL_IS_1) else None


def _without_column(where: Rows, cells: Cells, generators: Sequence[str] | None, reading: ReadingOptions) -> Labels:
    """Return labels that the generators give, or the user for all rows."""
    if ANY in reading.labels:
        label = reading.labels[ANY]
        note = f"All rows are {_name(label)}, as --labels says: there is no label column."
        return Labels([label] * cells.rows, None, False, (note,))
    if generators is not None and any(label_of_word(name) == 0 for name in generators):
        labels = [None if not name else int(label_of_word(name) != 0) for name in generators]
        return Labels(labels, None, False, ("There is no label column: rows whose generator is `real` are real.",))
    shown = ", ".join(list(cells.columns) + list(cells.unused))
    raise UserError(
        f"{where}: has no label column. Its columns: {shown or 'none'}. Name it with --columns label=NAME, or give all "
        "rows one label with --labels '*=real' or '*=fake'."
    )


def _from_words(where: Rows, words: Sequence[_Column], columns: Sequence[_Column], cells: Cells) -> Labels:
    """Return labels of the first column of words; the others must agree with it."""
    first = words[0]
    meaning = dict(first.meaning)
    if first.name not in cells.classes:  # words and numbers in one column: 1 stands for the word that is not real
        numbers = {cell: number for cell in first.counts if (number := number_of(cell)) in (0, 1)}
        meaning = {**numbers, **meaning}
    labels = first.labels(meaning)
    unknown = {cell: count for cell, count in first.counts.items() if cell not in meaning}
    if first.name in cells.classes and unknown:
        raise _unknown_words(where, first, unknown)
    if any(count > 1 for count in unknown.values()):
        raise _unknown_words(where, first, {cell: count for cell, count in unknown.items() if count > 1})
    for other in words[1:]:
        row = _first_row(labels, other.labels(other.meaning), lambda one, two: one != two)
        if row is not None:
            raise UserError(
                f"{where.row(row)}: `{first.name}` says {first.cells[row]!r} and `{other.name}` says "
                f"{other.cells[row]!r}. Say which one is the label with --columns label=NAME."
            )
    notes = [f"Labels are from `{first.name}`: {_mapping(meaning)}."]
    for other in columns:
        if other not in words and other.is_numeric:
            notes.append(_seen_numbers(other, labels))
    return Labels(labels, first.name, len(first.meaning) > 2, tuple(notes))


def _seen_numbers(column: _Column, labels: Sequence[int | None]) -> str:
    """Return what the numbers of a column are that the words of another one overrule."""
    pairs = {(number_of(cell), label) for cell, label in zip(column.cells, labels, strict=True) if label is not None}
    if pairs == {(0, 1), (1, 0)}:
        return f"In `{column.name}`, 1 is real and 0 is generated."
    if pairs <= {(0, 0), (1, 1)}:
        return f"In `{column.name}`, 0 is real and 1 is generated."
    return f"`{column.name}` is not used."


def _from_names(where: Rows, named: Sequence[_Column]) -> Labels:
    """Return labels of columns whose names say what 1 means."""
    first, *others = named
    found = {column.name: column.labels(_numbers(where, column, _one_means(column.name) or 0)) for column in named}
    for other in others:
        row = _first_row(found[first.name], found[other.name], lambda one, two: one != two)
        if row is not None:
            raise UserError(
                f"{where.row(row)}: `{first.name}` is {first.cells[row]} and `{other.name}` is "
                f"{other.cells[row]}. Say which one is the label with --columns label=NAME."
            )
    one = _one_means(first.name) or 0
    note = f"Labels are from `{first.name}`: 1 = {_name(one)}, 0 = {_name(1 - one)}."
    return Labels(found[first.name], first.name, False, (note,))


def _witnesses(
    cells: Cells, generators: Sequence[str] | None, paths: Sequence[str] | None
) -> list[tuple[str, list[int | None]]]:
    """Return what else in a table may say the class of each row, and what it says."""
    return [
        ("the generators", _said_by_generators(generators)),
        *(
            (f"the words in `{name}`", [label_of_word(cell) for cell in column])
            for name, column in cells.columns.items()
            if meaning_of(name) is None and names_classes(column)
        ),
        ("the folders of the paths", _said_by_folders(paths)),
    ]


def names_classes(cells: Sequence[str]) -> bool:
    """Check whether a column holds words for both classes, and nothing else."""
    words = {cell.strip() for cell in set(cells)}
    return len(words) <= _MOST_WORDS and {label_of_word(word) for word in words if not is_unlabelled(word)} == {0, 1}


def _from_numbers(
    where: Rows,
    columns: Sequence[_Column],
    witnesses: Sequence[tuple[str, Sequence[int | None]]],
    generators: Sequence[str] | None,
) -> Labels:
    """Return labels of a column of numbers whose name does not say what 1 means."""
    column, *others = columns
    if normalised(column.name) != "label" and any(list(other.cells) != list(column.cells) for other in others):
        raise ambiguous(where, "label", [each.name for each in columns])
    if not column.is_numeric:
        raise _unknown_words(where, column, column.counts)
    if not column.counts:
        raise UserError(f"{where}: no row has a label in `{column.name}`.")
    if normalised(column.name) == TARGET and any((number_of(cell) or 0) > 1 for cell in column.counts):
        meaning = {cell: int(number_of(cell) != 0) for cell in column.counts}
        note = f"Labels are from `{column.name}`: 0 = real, every other number = generated."
        return Labels(column.labels(meaning), column.name, False, (note,))
    straight = _numbers(where, column, 1)
    plain = column.labels(straight)
    for witness, said in (*witnesses, ("the names of generators", _said_by_known(plain, generators))):
        verdict = _compare(where, column, plain, said, witness)
        if verdict is not None:
            labels = plain if verdict else [None if label is None else 1 - label for label in plain]
            note = f"Labels are from `{column.name}`: 1 = {_name(int(verdict))}, 0 = {_name(int(not verdict))}, as {witness} say."
            return Labels(labels, column.name, False, (note,))
    note = (
        f"Labels are from `{column.name}`: 0 = real, 1 = generated. Nothing in the table says so; if it is the other way "
        "round, give --labels 0=fake,1=real."
    )
    return Labels(plain, column.name, False, (note,))


def _numbers(where: Rows, column: _Column, one: int) -> dict[str, int]:
    """Return the meaning of a column of 0 and 1. Raises UserError if there are other numbers."""
    numbers = {cell: number_of(cell) for cell in column.counts}
    other = sorted({number for number in numbers.values() if number not in (0, 1)}, key=str)
    if other:
        row = next(row for row, cell in enumerate(column.cells) if numbers.get(cell) == other[0])
        raise UserError(
            f"{where.row(row)}: `{column.name}` holds {', '.join(map(str, other[:_MAX_SHOWN]))} besides 0 and 1. Say "
            "what the numbers mean, such as --labels '0=real,*=fake'."
        )
    return {cell: one if number == 1 else 1 - one for cell, number in numbers.items()}


def _said_by_generators(generators: Sequence[str] | None) -> list[int | None]:
    """Return what the generators' names say that are words for a class, if some are called real."""
    said = [label_of_word(name) for name in generators or ()]
    return said if 0 in said else []


def _said_by_known(plain: Sequence[int | None], generators: Sequence[str] | None) -> list[int | None]:
    """Return 1 for rows by known generators, if all these have one label and some other row has the other.

    Real images may carry the name of the generator that they are compared with: then it says nothing.
    """
    said = [1 if is_known_generator(name) else None for name in generators or ()]
    known = {label for label, one in zip(plain, said, strict=False) if one and label is not None}
    return said if len(known) == 1 and {0, 1} <= set(plain) else []


def _said_by_folders(paths: Sequence[str] | None) -> list[int | None]:
    """Return what the innermost class folder of each path says, if the folders name both classes."""
    if paths is None:
        return []
    said = [
        next(
            (label for part in reversed(re.split(r"[/\\]", path)[:-1]) if (label := label_of_word(part)) is not None),
            None,
        )
        for path in paths
    ]
    return said if {0, 1} <= set(said) else []


def _compare(
    where: Rows, column: _Column, plain: Sequence[int | None], said: Sequence[int | None], witness: str
) -> bool | None:
    """Return whether 1 means generated by what ``said`` says; None if it says nothing. Raises UserError for both."""
    agree = _first_row(plain, said, lambda one, two: one == two)
    differ = _first_row(plain, said, lambda one, two: one != two)
    if agree is not None and differ is not None:
        raise UserError(
            f"{where.row(agree)}: 1 means generated by {witness}, but in {where.row(differ)} it means real. Say what the "
            f"numbers in `{column.name}` mean with --labels 0=real,1=fake or --labels 0=fake,1=real."
        )
    return None if agree is None and differ is None else agree is not None


def _check_generators(where: Rows, found: Labels, generators: Sequence[str] | None) -> None:
    """Raise UserError if a generated image is by the generator ``real``."""
    for row, (label, name) in enumerate(zip(found.labels, generators or (), strict=False)):
        if label == 1 and label_of_word(name) == 0:
            raise UserError(
                f"{where.row(row)}: is generated by `{found.column}`, but its generator is {name!r}. Say what is "
                "right with --labels, or leave the generators out with --columns generator=."
            )


def _first_row(ones: Sequence[int | None], twos: Sequence[int | None], test: Callable[[int, int], bool]) -> int | None:
    """Return the first row with both labels that passes a test of them."""
    return next(
        (
            row
            for row, (one, two) in enumerate(zip(ones, twos, strict=False))
            if one is not None and two is not None and test(one, two)
        ),
        None,
    )


def _unknown_words(where: Rows, column: _Column, unknown: Mapping[str, int]) -> UserError:
    row = next(row for row, cell in enumerate(column.cells) if cell in unknown)
    more = sum(unknown.values()) - 1
    rest = f" (and {more:,} more {'row' if more == 1 else 'rows'} with such a label)" if more else ""
    words = list(unknown)
    free = [word for word in words if not is_known_generator(word)] if 0 not in column.meaning.values() else []
    real = free[-1] if len(words) > 1 and free else None
    example = shlex.quote(",".join(f"{word}={'real' if word == real else 'fake'}" for word in words[:2]))
    others = f" Others: {', '.join(map(repr, words[1:_MAX_SHOWN]))}." if len(words) > 1 else ""
    return UserError(
        f"{where.row(row)}: the label {column.cells[row]!r} in `{column.name}` is neither a word for real or "
        f"generated nor 0 or 1{rest}.{others} Say what it means with --labels, such as --labels {example}."
    )


def _mapping(meaning: _Meaning) -> str:
    shown = [f"{cell} = {_name(label)}" for cell, label in sorted(meaning.items())]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")


def _name(label: int) -> str:
    return ("real", "generated")[label]
