"""Read Parquet files: tables of paths, and images inside them as the Hugging Face Hub publishes them.

A column holds images if it is a structure with ``bytes`` (what the Hub calls an image), or binary with a name such as
``image`` or ``image_data``. Otherwise the file is a table of paths. Numbers of classes become their names, which the
schema's metadata hold: the Hub orders them by the alphabet, so 0 is often ``FAKE``.

Only the columns of text and numbers are read here. The images are read by :mod:`.parquet_rows`, row by row.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ....errors import UserError
from ....storage import AnyPath
from ....storage.parquet import check_declared, for_pyarrow, read_bounded, read_nested_text
from ....storage.regular import regular_status
from ..file import ParquetMember, ReadingOptions
from ..words import label_of_word, normalised, split_of_word
from .table_columns import ALIASES, meaning_of, names_splits
from .table_labels import names_classes, number_of
from .table_read import Columns, texts

SUFFIX = ".parquet"
_IMAGES = (*ALIASES["path"], "image_data", "image_bytes", "img_bytes", "bytes", "data", "jpg", "jpeg", "png", "webp")
_NAMES = ("image_name", "file_name", "filename", "image_path", "path", "__key__")
"""Columns that may name an image in a row, if the structure does not."""


@dataclass(frozen=True)
class ParquetTable:
    """A Parquet file as a table.

    Attributes
    ----------
    columns
        Columns of text and numbers, as cells.
    rows
        Number of rows.
    members
        Place of the image of each row; None for a table of paths.
    names
        The images' own names, without folders; empty where there is none.
    classes
        Columns whose numbers were replaced by the names of classes.
    unused
        The names of all other columns.
    """

    columns: Columns
    rows: int
    members: Sequence[ParquetMember] | None
    names: Sequence[str]
    classes: frozenset[str]
    unused: tuple[str, ...]


def read_parquet_table(source: AnyPath, archive: str, reading: ReadingOptions) -> ParquetTable:
    """Return a Parquet file as a table.

    Parameters
    ----------
    source
        The file, local or in an object store, of which only ranges are read.
    archive
        Its path for :class:`..file.ParquetMember`.
    reading
        What the user says.

    Raises
    ------
    UserError
        If it cannot be read, declares more than a file of its size may, or has several columns of images.
    """
    try:
        status = regular_status(source)
        with pq.ParquetFile(for_pyarrow(source)) as file:
            schema, footer = file.schema_arrow, file.metadata
        image = _image_column(source, schema, reading)
        if image is not None and _is_empty(footer, image):
            image = None
        wanted = _text_columns(schema, reading, image)
        if image is not None:
            check_declared(footer, status.st_size, [image])
        told = _told_by_words(schema, footer, {*wanted, image})
        plain = [name for name in [*wanted, *told] if name in schema.names]
        table = read_bounded(source, plain) if plain else pa.table({})
        nested = {name: read_nested_text(source, name) for name in wanted if name not in schema.names}
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # pyarrow's own for damage have no number
            raise
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{source}: cannot be read as a table ({said}).") from error
    cells = {name: texts(table.column(name).to_pylist()) for name in table.column_names}
    telling = {name for name in told if names_classes(cells[name]) or names_splits(cells[name])}
    cells = {name: column for name, column in cells.items() if name not in told or name in telling}
    cells |= {_shown(name, image): texts(values) for name, values in nested.items()}
    classes = _class_names(schema, reading)
    resolved = frozenset(name for name in classes if name in cells)
    for name in resolved:
        cells[name] = [_class_of(cell, classes[name]) for cell in cells[name]]
    members = names = None
    if image is not None:
        names = _names(cells, image, footer.num_rows)
        groups = [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]
        members = [
            ParquetMember(archive, status.st_size, status.st_mtime_ns, image, group, row)
            for group, rows in enumerate(groups)
            for row in range(rows)
        ]
        used = (
            {name for name in cells if meaning_of(name) not in (None, "path")} | telling | set(reading.columns.values())
        )
        cells = {name: column for name, column in cells.items() if name in used}
    seen = {name.split(".")[0] for name in [*cells, *([image] if image else [])]}
    unused = tuple(name for name in schema.names if name not in seen and name not in cells)
    return ParquetTable(cells, footer.num_rows, members, names or [], resolved, unused)


def _told_by_words(schema: pa.Schema, footer: pq.FileMetaData, known: Collection[str | None]) -> list[str]:
    """Return columns of text without a known name that may hold only words for classes or splits, by their statistics."""
    texts_only = [
        field.name
        for field in schema
        if field.name not in known and (pa.types.is_string(field.type) or pa.types.is_large_string(field.type))
    ]
    places = {footer.schema.column(place).path: place for place in range(footer.num_columns)}
    return [name for name in texts_only if name in places and _has_words_at_its_ends(footer, places[name])]


def _has_words_at_its_ends(footer: pq.FileMetaData, place: int) -> bool:
    """Check whether the smallest and the largest text of each row group are words for classes or splits."""
    for group in range(footer.num_row_groups):
        statistics = footer.row_group(group).column(place).statistics
        if statistics is None or not statistics.has_min_max:
            return False
        try:
            ends = (statistics.min, statistics.max)
        except ValueError:
            return False
        if not all(isinstance(end, str) and (label_of_word(end), split_of_word(end)) != (None, None) for end in ends):
            return False
    return bool(footer.num_row_groups)


def _shown(name: str, image: str | None) -> str:
    """Return the name of a column; the paths of images without bytes have that of the images."""
    return name.removesuffix(".path") if image is None else name


def image_name(archive: str, member: ParquetMember, row: int, name: str) -> str:
    """Return the path of an image in a Parquet file: ARCHIVE/COLUMN/ROW, and the image's own name if it has one."""
    column = member.column.removesuffix(".bytes")
    return f"{archive}/{column}/{row}/{name}" if name else f"{archive}/{column}/{row}"


def parse_image_name(rest: str, columns: Sequence[str]) -> tuple[str, int] | None:
    """Return the column and the row that a path below a Parquet file names, if it does: see :func:`image_name`."""
    for column in columns:
        shown = column.removesuffix(".bytes") + "/"
        if rest.startswith(shown):
            row = rest[len(shown) :].split("/", 1)[0]
            if row.isascii() and row.isdigit() and len(row) < 16:
                return column, int(row)
    return None


def leaf_columns(schema: pa.Schema) -> list[str]:
    """Return the columns that may hold images, with dots within structures."""
    return [path for field in schema if (path := _image_leaf(field)) is not None]


def _image_leaf(field: pa.Field) -> str | None:
    """Return the column of a field's binary data; None if it has none."""
    if pa.types.is_struct(field.type):
        inner = {part.name: part.type for part in field.type}
        return f"{field.name}.bytes" if "bytes" in inner and _is_binary(inner["bytes"]) else None
    return field.name if _is_binary(field.type) else None


def _image_column(source: AnyPath, schema: pa.Schema, reading: ReadingOptions) -> str | None:
    """Return the column of the images' bytes; None for a table of paths."""
    leaves = {field.name: leaf for field in schema if (leaf := _image_leaf(field)) is not None}
    if named := reading.columns.get("path"):
        return leaves.get(named)
    usual = [name for name in leaves if normalised(name) in map(normalised, _IMAGES)]
    images = usual or [name for name in leaves if leaves[name] != name]
    images = [name for name in images if leaves[name] != name] or images
    if len(images) > 1:
        shown = " and ".join(f"`{name}`" for name in images)
        raise UserError(f"{source}: the columns {shown} hold images. Say which one with --columns path=NAME.")
    binary_paths = [name for name in images if leaves[name] == name and _only_paths(name)]
    return None if not images or binary_paths else leaves[images[0]]


def _only_paths(name: str) -> bool:
    """Check whether a binary column is called like a column of paths: some writers do not mark text."""
    return normalised(name).endswith(("path", "name"))


def _is_empty(footer: pq.FileMetaData, column: str) -> bool:
    """Check by the statistics whether a column has no value at all."""
    for group in range(footer.num_row_groups):
        for number in range(footer.num_columns):
            chunk = footer.row_group(group).column(number)
            if chunk.path_in_schema == column:
                statistics = chunk.statistics
                if statistics is None or statistics.null_count != footer.row_group(group).num_rows:
                    return False
    return True


def _text_columns(schema: pa.Schema, reading: ReadingOptions, image: str | None) -> list[str]:
    """Return the columns of text and numbers that may say something of an image, with dots within structures."""
    wanted = []
    for field in schema:
        known = meaning_of(field.name) is not None or field.name in reading.columns.values() or field.name in _NAMES
        if pa.types.is_struct(field.type):
            if _image_leaf(field) is not None and any(part.name == "path" for part in field.type):
                wanted.append(f"{field.name}.path")
        elif known and field.name != image and not pa.types.is_nested(field.type):
            wanted.append(field.name)
    if image is not None:
        structs = {field.name for field in schema if pa.types.is_struct(field.type)}
        wanted = [
            name for name in wanted if name.split(".")[0] not in structs or name == image.removesuffix("bytes") + "path"
        ]
    return wanted


def _names(cells: Columns, image: str, rows: int) -> list[str]:
    """Return the last part of the images' names, from the structure or else a column of names."""
    inner = image.removesuffix("bytes") + "path"
    column = next((name for name in (inner, *_NAMES) if any(cells.get(name, ()))), None)
    if column is None:
        return [""] * rows
    return [cell.replace("\\", "/").rstrip("/").rpartition("/")[2] for cell in cells[column]]


def _class_names(schema: pa.Schema, reading: ReadingOptions) -> dict[str, list[str]]:
    """Return column -> names of its classes by the Hub's metadata; not where the user maps the numbers."""
    try:
        features: Any = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        found = {
            name: [str(word) for word in _listed(feature["names"])]
            for name, feature in features.items()
            if isinstance(feature, dict) and "names" in feature
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    by_number = any(number_of(word) is not None for word in reading.labels)
    return {} if by_number else found


def _listed(names: Any) -> list[Any]:
    return [names[key] for key in sorted(names, key=int)] if isinstance(names, dict) else list(names)


def _class_of(cell: str, names: Sequence[str]) -> str:
    """Return the name of a class; -1 means none, and text stays."""
    number = number_of(cell)
    if number is None or number < 0 or cell.casefold() in ("true", "false"):
        return cell if number is None else ""
    return names[number] if number < len(names) else cell


def _is_binary(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return str(kind) in ("binary", "large_binary", "binary_view")  # pyarrow 15 has no test for the last
