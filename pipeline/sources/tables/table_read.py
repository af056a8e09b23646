"""Read tables that are text into columns of cells: CSV and TSV, JSON, JSON lines, and lists of ``PATH LABEL`` lines.

Encoding, separator and line ends are recognised: UTF-8 or UTF-16, commas, semicolons, tabs or bars, quoted cells. All
cells are text; what JSON calls null is empty.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv

from ....errors import UserError
from ....storage import AnyPath
from ....storage.regular import read_regular
from ..words import NUMBERS, label_of_word
from .table_columns import meaning_of
from .text import decode_text

Columns = dict[str, list[str]]
"""The table's name of a column -> its cells."""

_SEPARATORS = (",", ";", "\t", "|")
MAX_TABLE_BYTES = 2 * 1024**3
"""Largest table of text that is read: some twenty million rows."""


def read_text_table(source: AnyPath) -> Columns:
    """Return the columns of a table that is text.

    Raises
    ------
    UserError
        If it cannot be read, or is not what its suffix says.
    """
    try:
        text = decode_text(read_regular(source, MAX_TABLE_BYTES))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{source}: is not {error.encoding.upper()} text (byte {error.start:,}: {error.reason}). Save it as UTF-8."
        ) from error
    if not text.strip():
        raise UserError(f"{source}: cannot be read as a table (it is empty).")
    if "\n" not in text:
        text = text.replace("\r", "\n")  # lines as old programs on Macs end them
    return _READERS[source.suffix.lower()](source, text)


def cell_of(value: object) -> str:
    """Return a value as a cell; null and NaN become empty, lists and objects too."""
    if value is None or isinstance(value, (list, dict)) or (isinstance(value, float) and math.isnan(value)):
        return ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _csv(source: AnyPath, text: str) -> Columns:
    header = text.lstrip("\r\n").split("\n", 1)[0]
    if re.fullmatch(r'"?sep=(.)"?\s*', header):  # a line that Excel writes and hides
        text = text.lstrip("\r\n").split("\n", 1)[1]
        return _separated(source, text, header.strip().strip('"')[4])
    return _separated(source, text, _separator(header))


def _separator(header: str) -> str:
    """Return the separator by which a header has the most columns with a meaning, or else the most columns."""

    def score(separator: str) -> tuple[int, int]:
        names = [name.strip().strip('"') for name in header.split(separator)]
        return sum(meaning_of(name) is not None for name in names), len(names)

    return max(_SEPARATORS, key=score)


def _separated(source: AnyPath, text: str, separator: str) -> Columns:
    try:
        names = next(row for row in csv.reader(io.StringIO(text), delimiter=separator) if row)
        table = pa.csv.read_csv(
            pa.BufferReader(text.encode()),
            parse_options=pa.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
        )
    except (pa.ArrowException, ValueError, csv.Error) as error:
        raise UserError(f"{source}: cannot be read as a table ({_first_line(error)}).") from error
    stripped = [name.strip() for name in table.column_names]
    _check_names(source, stripped)
    return {name: texts(column.to_pylist()) for name, column in zip(stripped, table.columns, strict=True) if name}


def _json(source: AnyPath, text: str) -> Columns:
    """Return the columns of a list of objects, also as the only list of an object, or of an object PATH -> LABEL.

    An object of columns, as pandas writes it, and JSON lines under the wrong suffix are read too.
    """
    first, _, rest = text.strip().partition("\n")
    if first.startswith("{") and first.rstrip().endswith("}") and rest.lstrip().startswith("{"):
        return _json_lines(source, text)
    value = _parsed(source, text)
    if isinstance(value, dict) and {"path", "label"} <= {meaning_of(name) for name in value}:
        columns = [list(part.values()) if isinstance(part, dict) else part for part in value.values()]
        if all(isinstance(part, list) and len(part) == len(columns[0]) for part in columns):
            value = [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
    if isinstance(value, dict):
        lists = [part for part in value.values() if isinstance(part, list) and part and isinstance(part[0], dict)]
        if len(lists) == 1:
            value = lists[0]
        elif value and all(isinstance(part, dict) for part in value.values()):
            value = [{"path": path, **part} for path, part in value.items()]
        elif value and not any(isinstance(part, (list, dict)) for part in value.values()):
            value = [{"path": path, "label": label} for path, label in value.items()]
    if not isinstance(value, list):
        raise UserError(f'{source}: is no list of objects, such as [{{"path": ..., "label": ...}}].')
    return _columns(source, value, "entry")


def _json_lines(source: AnyPath, text: str) -> Columns:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return _columns(source, [_parsed(source, line, f", line {number}") for number, line in lines], "line")


def _parsed(source: AnyPath, text: str, where: str = "") -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source}{where}: is not valid JSON ({_first_line(error)}).") from error


def _columns(source: AnyPath, objects: Sequence[Any], what: str) -> Columns:
    """Return the columns of objects; a name that an object lacks is an empty cell."""
    for number, value in enumerate(objects, 1):
        if not isinstance(value, dict):
            raise UserError(f"{source}, {what} {number}: is not an object with names and values.")
    names = list(dict.fromkeys(name for value in objects for name in value))
    return {name: [cell_of(value.get(name)) for value in objects] for name in names}


def _list(source: AnyPath, text: str) -> Columns:
    """Return the columns of ``PATH LABEL`` or ``LABEL PATH`` lines; a list with a header is read as a table."""
    lines = [line.strip() for line in text.split("\n")]
    lines = [line for line in lines if line]
    separator = _separator(lines[0])
    names = [name.strip().strip('"') for name in lines[0].split(separator)]
    if {"path", "label"} <= {meaning_of(name) for name in names}:
        return _separated(source, text, separator)
    if {meaning_of(name) for name in lines[0].split()} == {"path", "label"} and len(lines[0].split()) == 2:
        (*names,), lines = lines[0].split(), lines[1:]
    else:
        names = ["path", "label"]
    rows = [_path_and_label(line) for line in lines]
    swapped = [(path, label) for line in lines for label, _, path in [line.partition(" ")]]
    if not any(_is_label(label) for _, label in rows) and all(_is_label(label) for _, label in swapped):
        rows = [(path.strip(), label) for path, label in swapped]
    if not any(label for _, label in rows):
        raise UserError(f"{source}: has no label on any line. Write PATH LABEL on each, such as a.png 0.")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)) if rows else {name: [] for name in names}


def _path_and_label(line: str) -> tuple[str, str]:
    """Split a line at its last tab, or else comma or semicolon, or else space: a path may hold spaces."""
    for pattern in (r"(.*\S)\s*\t\s*(\S+)", r"(.*\S)\s*[,;]\s*([^\s,;/]+)", r"(.*\S)\s+(\S+)"):
        if match := re.fullmatch(pattern, line):
            return match[1].strip('"'), match[2].strip('"')
    return line, ""


def _is_label(text: str) -> bool:
    return text.casefold() in NUMBERS or label_of_word(text) is not None


def _check_names(source: AnyPath, names: Sequence[str]) -> None:
    known = [name for name in names if name and meaning_of(name)]
    if len(known) != len(set(known)):
        twice = next(name for name in known if known.count(name) > 1)
        raise UserError(f"{source}: has two columns `{twice}`. Its columns: {', '.join(names)}.")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


_READERS: Mapping[str, Callable[[AnyPath, str], Columns]] = {
    ".csv": _csv,
    ".tsv": _csv,
    ".json": _json,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".txt": _list,
}
TEXT_SUFFIXES = tuple(_READERS)


def texts(values: Iterable[object]) -> list[str]:
    """Return values as cells."""
    return [cell_of(value) for value in values]
