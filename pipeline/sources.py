"""Sources: a folder in a known layout, or a table, to the list of image files with what is known about each.

A **folder** is recognised by its structure or taken as the layout that is named; :mod:`.layouts` says what each layout
means. Files with an image's extension (jpg, jpeg, png, webp, bmp, tif, tiff, gif, in any case) are taken, and judged
later by their content. Other files are counted as ignored. Hidden files and what operating systems leave behind are
passed over without a word. A linked folder is followed only inside the source; a linked file is a file.

**Tars** of webdataset samples are read where they lie: a ``.tar`` file, or a folder that has some itself or in its split
folders and fits no image layout. :mod:`.tar_source` says what is read of them.

A **table** is a CSV or Parquet file with the columns ``path`` and ``label`` and, if known, ``split``, ``generator``,
``family`` and ``group``; further columns are ignored. Relative paths start at the table's folder. A label is 0, 1,
``real`` or ``fake``. An empty cell or a missing column means: split ``train``, generator ``real`` or ``fake``, the
family of the generator, no group.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ..errors import UserError
from .image_file import EXTENSIONS
from .layouts import LAYOUTS, SPLITS, Layout, Leaf, Tree, family_of, is_clutter, is_folder, join
from .source_file import LABELS, Discovery, SourceFile, is_storable, printable
from .tar_source import PATTERN, SUFFIX, WEBDATASET, discover_tars

__all__ = ["LAYOUT_NAMES", "Discovery", "SourceFile", "discover", "files_of", "is_storable", "printable", "walk"]

TABLE = "table"
TABLE_SUFFIXES = (".csv", ".parquet")
LAYOUT_NAMES = (*LAYOUTS, TABLE, WEBDATASET)

_COLUMNS = ("path", "label", "split", "generator", "family", "group")


def discover(source: Path, layout: str | None = None) -> Discovery:
    """List the image files of a source, without opening any.

    source : a folder, a CSV or Parquet table, or a tar. layout : one of :data:`LAYOUT_NAMES`, or None to recognise it.
    Files of a folder are sorted by path; those of a table keep its order.
    Raises UserError if there is no such source, its structure is unknown or fits several layouts, or it has no image.
    """
    if not is_storable(str(source)):
        raise UserError(f"{printable(str(source))}: the name is not valid UTF-8. Rename the folder.")
    if layout is not None and layout not in LAYOUT_NAMES:
        raise UserError(f"{layout}: no such layout. There are: {', '.join(LAYOUT_NAMES)}.")
    if not source.exists():
        raise UserError(f"{source}: no such file or folder.")
    if not source.is_dir():
        if layout in (None, WEBDATASET) and source.suffix.lower() == SUFFIX:
            return discover_tars(source.parent, [source.name])
        return _discover_table(source, layout)
    if layout == TABLE:
        raise UserError(f"{source}: is a folder. The layout `table` needs a CSV or Parquet file.")
    try:
        return _discover_folder(source, layout)
    except OSError as error:
        raise UserError(f"{printable(error.filename or str(source))}: cannot be listed ({error.strerror}).") from error


def _discover_folder(source: Path, name: str | None) -> Discovery:
    tree = Tree(source)
    if name == WEBDATASET:
        return _discover_tars(tree)
    candidates = list(LAYOUTS.values()) if name is None else [LAYOUTS[name]]
    fitting = [(layout, leaves) for layout in candidates if (leaves := layout.leaves(tree))]
    if not fitting and name is None and any(_tars_in(tree, folder) for folder in ("", *_split_folders(tree))):
        return _discover_tars(tree)
    if not fitting:
        raise UserError(_unknown(tree, candidates))
    if len(fitting) > 1:
        raise UserError(f"{source}: fits the layouts {_names(fitting)}. Name one of them with --layout.")
    layout, leaves = fitting[0]
    files, ignored = files_of(tree, leaves)
    if not files:
        raise UserError(
            f"{source}: has the folders of the layout {layout.name}, but no image file in them "
            f"({ignored} other files; looked for {', '.join(sorted(EXTENSIONS))}).{_outside(tree)}"
        )
    return Discovery(layout.name, files, ignored)


def files_of(tree: Tree, leaves: list[Leaf]) -> tuple[list[SourceFile], int]:
    """List the image files below the leaves, sorted by path, and count the other files."""
    files: list[SourceFile] = []
    ignored = 0
    root = str(tree.root)
    for leaf in leaves:
        family = family_of(leaf.generator)
        for path in walk(tree, leaf.folder):
            if path.rsplit(".", 1)[-1].lower() in EXTENSIONS:
                files.append(SourceFile(root, path, leaf.label, leaf.split, leaf.generator, family, leaf.group))
            else:
                ignored += 1
    return sorted(files, key=lambda file: file.path), ignored


def _discover_tars(tree: Tree) -> Discovery:
    """List the images in all tars below a folder."""
    tars = [path for path in walk(tree, "") if path.lower().endswith(SUFFIX)]
    if not tars:
        raise UserError(
            f"{tree.root}: has no .tar file. The layout {WEBDATASET} needs uncompressed tars.{_outside(tree)}"
        )
    return discover_tars(tree.root, tars)


def _tars_in(tree: Tree, folder: str) -> bool:
    """Say whether a folder itself has a tar."""
    with os.scandir(tree.root / folder) as entries:
        return any(entry.name.lower().endswith(SUFFIX) and not is_clutter(entry.name) for entry in entries)


def _split_folders(tree: Tree) -> list[str]:
    return [folder for _, folder in tree.splits()]


def walk(tree: Tree, folder: str) -> Iterator[str]:
    """Yield the files below a folder, clutter excepted. A dangling link is a file, for the scan to reject."""
    with os.scandir(tree.root / folder) as entries:
        for entry in entries:
            if is_clutter(entry.name):
                continue
            if not is_folder(entry):
                yield join(folder, entry.name)
            elif tree.may_enter(entry):
                yield from walk(tree, join(folder, entry.name))


def _names(fitting: list[tuple[Layout, list[Leaf]]]) -> str:
    return " and ".join(layout.name for layout, _ in fitting)


def _unknown(tree: Tree, candidates: list[Layout]) -> str:
    """Say what was looked for and what was found instead."""
    patterns = {layout.name: layout.pattern for layout in candidates}
    if len(candidates) > 1:
        patterns[WEBDATASET] = PATTERN
    looked_for = "; ".join(f"{pattern} ({name})" for name, pattern in patterns.items())
    found = [join(top, name) + "/" for top in tree.folders() for name in (tree.folders(top) or [""])]
    shown = ", ".join(printable(name.rstrip("/") + "/") for name in found[:8]) + (", ..." if len(found) > 8 else "")
    return (
        f"{tree.root}: the structure is not known. Looked for {looked_for}. "
        f"Found {shown or 'no folders'}.{_outside(tree)} "
        "Arrange the images so, or list them in a CSV file with the columns path and label."
    )


def _outside(tree: Tree) -> str:
    links = sorted(tree.outside)
    return f" Links that lead out of the source are not followed: {printable(', '.join(links[:3]))}." if links else ""


def _discover_table(source: Path, layout: str | None) -> Discovery:
    if layout not in (None, TABLE) or source.suffix.lower() not in TABLE_SUFFIXES:
        suffixes = " or ".join(TABLE_SUFFIXES)
        raise UserError(f"{source}: is a file. Give a folder, a table that ends in {suffixes}, or a {SUFFIX}.")
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
    return Discovery(TABLE, files, 0)


def _read_table(source: Path) -> tuple[list[str], pa.Table]:
    """Return the names of all columns, and a table that holds at least those of them that are known here."""
    if source.suffix.lower() == ".parquet":
        with pa.parquet.ParquetFile(source) as file:
            names = file.schema_arrow.names
            return names, file.read(columns=[name for name in _COLUMNS if name in names])
    table = pa.csv.read_csv(
        source,
        parse_options=pa.csv.ParseOptions(newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(_COLUMNS, pa.string())),
    )
    return table.column_names, table


def _text(value: object) -> str:
    """Return a cell as text; a null or a NaN is empty."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value)


def _table_row(source: Path, row: int, cells: list[str]) -> SourceFile:
    """Make a file of one row; ``row`` counts from 1, the header aside."""
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
    root, path = _located(PurePosixPath(path), source.parent)
    return SourceFile(root, path, label, SPLITS[split], generator, family or family_of(generator), group)


def _located(path: PurePosixPath, folder: Path) -> tuple[str, str]:
    """Return root and relative path: seen from the table's folder, or from ``/`` if an absolute path lies elsewhere."""
    if not path.is_absolute():
        return str(folder), str(path)
    if path.is_relative_to(folder.absolute()):
        return str(folder), str(path.relative_to(folder.absolute()))
    return path.anchor, str(path.relative_to(path.anchor))
