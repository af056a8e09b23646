"""List the image files of a source, with label, split, generator and group of each, and account for every other file.

A **folder** is recognised by its structure (:mod:`.folders.recognise`), or read in the layout that is named or written as a
pattern; :mod:`.folders.layouts` defines the layouts. What is an image is decided by its first bytes (:mod:`.folders.census`). Images
that no class folder covers are listed by folder, and so are places that could not be entered: nothing is left out in
silence. Linked folders are followed, see :mod:`.tree`.

**Metadata**: a folder whose ``metadata.csv`` or ``.jsonl`` files have labels; see :mod:`.folders.metadata`.

**Tars** of webdataset samples are read in place: a ``.tar`` file, or a folder that has some itself or in its split
folders and fits no image layout; see :mod:`.archives.tar`.

**Zips** are read in place as folders, a ``.zip`` file or all below a folder that fits no layout; see :mod:`.archives.zip`.

A **table** has a row for each image: a CSV file, JSON, a list, or Parquet, with paths or with the images in it. Parquet
files with images below a folder that fits no layout are one table; see :mod:`.tables.table`.

A source may be in an object store. A folder there is listed once, recursively; see :mod:`.tree`.
"""

from __future__ import annotations

import heapq
import shlex
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

from ...choices import LAYOUT_NAMES
from ...errors import UsageError, UserError
from ...storage import AnyPath, absent_error, absolute, access_hint
from .account import Leftovers
from .archives.tar import PATTERN, SUFFIX, WEBDATASET, discover_tars
from .archives.zip import ZIP, ZipTree, discover_zips
from .archives.zip_index import SUFFIX as ZIP_SUFFIX
from .file import (
    AS_RECOGNISED,
    UNASSIGNED,
    DiscoveredSource,
    ReadingOptions,
    SourceFile,
    is_storable,
    printable,
    source_place,
)
from .file_table import FileTable
from .folders.census import Census, take_census
from .folders.families import is_known_generator
from .folders.layouts import LAYOUTS, FolderLayout, ImageFolder, custom_layout, family_of, is_pattern
from .folders.metadata import METADATA, MetadataTable, column_names, discover_metadata, labelled_tables
from .folders.recognise import LayoutFit, recognise
from .names import Names
from .tables.parquet import SUFFIX as PARQUET_SUFFIX
from .tables.table import PARQUET, TABLE, discover_shards, discover_table
from .tables.table import SUFFIXES as TABLE_SUFFIXES
from .tables.table_columns import meaning_of
from .tree import Tree, join, tree_of
from .words import label_of_word, split_of_word

DECLARED = "declared"
"""Name of the layout of a folder whose class the user declares."""
_HEADED = (".csv", ".tsv", ".jsonl", ".ndjson")
"""Suffixes of tables whose first line has the names of the columns."""
_TABLES_TRIED = 20
_FEATURE_ROOTS = ("dire", "recons")
"""Names of folders that DIRE's scripts write: a source with such a name does not hold photographs."""


def discover(
    source: AnyPath,
    layout: str | None = None,
    reading: ReadingOptions = AS_RECOGNISED,
    *,
    follow_out: bool = True,
) -> DiscoveredSource:
    """List the image files of a source.

    Parameters
    ----------
    source
        A folder, a CSV or Parquet table, or a tar, local or in an object store.
    layout
        One of :data:`LAYOUT_NAMES`, a pattern such as ``{split}/{generator}/{label}``, or None to recognise it.
    reading
        What the user says of words and columns.
    follow_out
        Whether to enter linked folders that lead out of the source.

    Returns
    -------
    DiscoveredSource
        Files of a folder are sorted by path; those of a table keep its order.

    Raises
    ------
    UserError
        If the source does not exist, its structure is unknown or fits several layouts, it has no image, or it cannot be
        listed.
    """
    if not is_storable(str(source)):
        raise UserError(f"{printable(str(source))}: the name is not valid UTF-8. Rename the folder.")
    check_layout(layout)
    try:
        tree = tree_of(source_place(source), follow_out=follow_out)
        if tree is not None:
            found = _discover_folder(tree, layout, reading)
        elif source.exists():
            found = _discover_file(source, layout, reading)
        else:
            raise absent_error(source)
    except OSError as error:
        shown = printable(error.filename or str(source))
        raise UserError(f"{shown}: cannot be listed ({error.strerror or error}).{access_hint(source)}") from error
    found.account.check()
    return found


def check_layout(layout: str | None) -> None:
    """Raise UsageError for a layout that is neither known nor a pattern."""
    if layout is None or layout in LAYOUT_NAMES:
        return
    if not is_pattern(layout) or not is_storable(layout):
        raise UsageError(
            f"--layout {printable(layout)}: no such layout. There are: {', '.join(LAYOUT_NAMES)}; or write a pattern such as "
            "'{split}/{generator}/{label}'."
        )
    custom_layout(layout, {})


def _discover_file(source: AnyPath, layout: str | None, reading: ReadingOptions) -> DiscoveredSource:
    if layout in (None, WEBDATASET) and source.suffix.lower() == SUFFIX:
        return discover_tars(source.parent, [source.name], reading)
    if source.suffix.lower() == ZIP_SUFFIX and layout not in (TABLE, PARQUET, WEBDATASET):
        named = None if layout == ZIP else layout
        return discover_zips(source.parent, [source.name], source, lambda tree: _discover_folder(tree, named, reading))
    if layout not in (None, TABLE, PARQUET) or source.suffix.lower() not in TABLE_SUFFIXES:
        suffixes = ", ".join(TABLE_SUFFIXES)
        raise UserError(f"{source}: is a file. Give a folder, a table ({suffixes}), a {SUFFIX} or a {ZIP_SUFFIX}.")
    return discover_table(source, reading)


def _discover_folder(tree: Tree, layout: str | None, reading: ReadingOptions) -> DiscoveredSource:
    if layout == TABLE:
        raise UserError(f"{tree.root}: is a folder. The layout `table` needs a CSV or Parquet file, or a list.")
    census = take_census(tree)
    in_zip = isinstance(tree, ZipTree)
    if in_zip and layout in (METADATA, WEBDATASET, PARQUET, ZIP):
        raise UserError(
            f"{tree.root}: tables and archives in a zip are not read. Unpack it to use the layout {layout}."
        )
    if layout == WEBDATASET:
        return _discover_tars(census, reading)
    if layout == PARQUET:
        if (found := _discover_shards(census, reading)) is None:
            raise UserError(f"{tree.root}: has no Parquet file with images in it.{_unread(census)}")
        return found
    if layout == ZIP:
        if (found := _discover_zips(census, None, reading)) is None:
            raise UserError(f"{tree.root}: has no {ZIP_SUFFIX} file.{_unread(census)}")
        return found
    if layout is None:
        _refuse_features(tree.root)
    tables = labelled_tables(census) if layout in (None, METADATA) and not in_zip else []
    if layout == METADATA:
        if not tables:
            raise UserError(f"{tree.root}: has no metadata.csv or metadata.jsonl with columns for path and label.")
        return discover_metadata(census, tables, reading)
    layouts = _layouts(layout, reading)
    fit = recognise(census, layouts, tree.root) if census.total else None
    if layout is None and not in_zip and (fit is None or not fit.is_complete or fit.layout.fallback):
        described = _by_metadata(census, tables, fit, reading)
        if described is not None:
            return described
        if fit is None and _tars(census, everywhere=False):
            return _discover_tars(census, reading)
        if fit is None and (found := _discover_shards(census, reading)) is not None:
            return found
    if fit is None and not in_zip and (found := _discover_zips(census, layout, reading)) is not None:
        return found
    if fit is None:
        raise UserError(_unknown(census, layouts, layout))
    found = _files(census, fit, reading)
    if not tables:
        return found
    shown = printable(", ".join(join(table.folder, table.name) for table in tables[:3])) + ", ..." * (len(tables) > 3)
    note = (
        f"The folders name the classes; metadata with labels is not read: {shown}. To read it, give --layout metadata."
    )
    return found._replace(account=replace(found.account, notes=(*found.account.notes, note)))


def _by_metadata(
    census: Census, tables: Sequence[MetadataTable], fit: LayoutFit | None, reading: ReadingOptions
) -> DiscoveredSource | None:
    """Return the images that tables of metadata name, if these are more than a layout covers."""
    if not tables:
        return None
    try:
        found = discover_metadata(census, tables, reading)
    except UserError:
        if fit is None:
            raise
        return None  # the folders say enough without the table
    return found if fit is None or len(found.files) > fit.covered - fit.layout.fallback else None


def _layouts(name: str | None, reading: ReadingOptions) -> list[FolderLayout]:
    if name is not None and name not in LAYOUTS:
        return [custom_layout(name, reading.labels)]
    known = LAYOUTS.values() if name is None else [LAYOUTS[name]]
    if not reading.labels:
        return list(known)
    return [replace(layout, labels=tuple(reading.labels.items())) for layout in known]


def _files(census: Census, fit: LayoutFit, reading: ReadingOptions) -> DiscoveredSource:
    """List the files of a layout, and account for all others."""
    tree, base = census.tree, fit.census.base
    default, notes = _default_split(tree.root / base if base else tree.root, fit, reading)
    if base:
        notes.insert(0, f"The data set starts at {printable(base)}/, below the folder that was given.")
    if fit.layout.name == "numbered" and not reading.labels:
        notes.append("The folders 0 and 1 are taken for real and generated. If not, give --labels 0=fake,1=real.")
    owners = {join(base, folder.folder): folder for folder in fit.folders.values()}
    files, leftovers = _divide(census, owners, default)
    account = leftovers.account(fit.layout.name, len(files), [*notes, *fit.notes])
    return DiscoveredSource(fit.layout.name, files, account)


def discover_declared(
    folder: AnyPath, label: int, generator: str, reading: ReadingOptions = AS_RECOGNISED
) -> DiscoveredSource:
    """List all images of a folder that the user declares real or generated.

    Parameters
    ----------
    folder
        The folder, local or in an object store.
    label, generator
        What its images are.
    reading
        Names their split. Without it, top folders that are named for splits give it, else the images are for training.

    Raises
    ------
    UserError
        If it is not a folder, has no image, or cannot be listed.
    """
    if not is_storable(str(folder)):
        raise UserError(f"{printable(str(folder))}: the name is not valid UTF-8. Rename the folder.")
    try:
        tree = tree_of(source_place(folder), follow_out=True)
        if tree is None:
            raise UserError(f"{folder}: is not a folder. --real and --fake take folders of images.")
        census = take_census(tree)
    except OSError as error:
        raise UserError(f"{printable(str(folder))}: cannot be listed ({error.strerror or error}).") from error
    if not census.total:
        raise UserError(_unknown(census, [], DECLARED))
    owners = {"": ImageFolder("", label, "", generator)}
    if not reading.split:
        named = {child: split for child in census.children() if (split := split_of_word(child)) is not None}
        owners |= {child: ImageFolder(child, label, split, generator) for child, split in named.items()}
    default = "train" if reading.split is None else reading.split
    files, leftovers = _divide(census, owners, default)
    return DiscoveredSource(DECLARED, files, leftovers.account(DECLARED, len(files), _odd_names(census, label)))


def _odd_names(census: Census, label: int) -> list[str]:
    odd = sorted(folder for folder in census.images if label_of_word(folder.rpartition("/")[2]) == 1 - label)
    if not odd:
        return []
    shown = printable(", ".join(odd[:5])) + (", ..." if len(odd) > 5 else "")
    return [
        f"All images are declared {('real', 'generated')[label]}, also those in folders named for the other class: {shown}."
    ]


def files_below(tree: Tree, folders: Iterable[ImageFolder], split: str = "train") -> tuple[FileTable, int]:
    """Return the image files below class folders, sorted by path, and the number of other files there."""
    census = take_census(tree)
    files, _ = _divide(census, {folder.folder: folder for folder in folders}, split)
    return files, sum(map(len, census.others.values()))


def _divide(census: Census, owners: dict[str, ImageFolder], default: str) -> tuple[FileTable, Leftovers]:
    """Return the files of class folders, sorted by path, and what is left of the source."""
    tree, root = census.tree, str(census.tree.root)
    leftovers = Leftovers(census, root, owners)
    owned_folders: list[Iterator[SourceFile]] = []
    owned: dict[str, ImageFolder | None] = {}
    for folder, names in census.images.items():
        owner = owners.get(folder) or owned.get(folder.rpartition("/")[0] if folder else folder)
        owned[folder] = owner = None if folder in census.features else owner
        if not leftovers.is_first(folder, owner):
            continue
        if owner is None:
            leftovers.add(folder, names)
            continue
        owned_folders.append(_files_in(tree, folder, names, owner, default))
    return FileTable(heapq.merge(*owned_folders, key=lambda file: file.path)), leftovers


def _files_in(tree: Tree, folder: str, names: Names, owner: ImageFolder, default: str) -> Iterator[SourceFile]:
    """Yield the files of a class folder, sorted by path."""
    root, label, split, generator, group = str(tree.root), owner.label, owner.split, owner.generator, owner.group
    family = owner.family or family_of(generator)
    start = f"{folder}/" if folder else ""
    names.sort()
    for name in names:
        path = start + name
        yield SourceFile(root, path, label, split or default, generator, family, group, listed=tree.listed(path))


def _default_split(base: AnyPath, fit: LayoutFit, reading: ReadingOptions) -> tuple[str, list[str]]:
    """Return the split of images whose path names none, and a note on it if it was guessed."""
    if all(folder.split for folder in fit.folders.values()):
        unused = reading.split is not None and reading.split != UNASSIGNED
        return "train", ["--split changes nothing: the folders name the split of every image."] if unused else []
    if reading.split is not None:
        return reading.split, []
    name = absolute(base).name
    named = split_of_word(name)
    if named is None:
        return "train", _beside_splits(fit)
    return named, [f"The split {named} is taken from the name of the folder, {printable(name)}."]


def _beside_splits(fit: LayoutFit) -> list[str]:
    """Return a note on class folders that name no split, if others do: the missing name may be a word for a split."""
    without = sorted(folder.folder for folder in fit.folders.values() if not folder.split)
    if len(without) == len(fit.folders):
        return []
    shown = printable(", ".join(f"{folder}/" for folder in without[:5])) + (", ..." if len(without) > 5 else "")
    return [
        f"Folders that name no split, beside others that do, are taken for train: {shown}. Give --split if that is wrong."
    ]


def _refuse_features(root: AnyPath) -> None:
    """Raise UserError for a folder that holds what DIRE's scripts compute."""
    *above, name = absolute(root).parts[1:] or [""]
    if split_of_word(name) is not None and above:
        name = above[-1]
    if name in _FEATURE_ROOTS:
        raise UserError(
            f"{printable(str(root))}: a folder called {name} holds DIRE's reconstructions or reconstruction errors, not photographs. "
            "`distil-cache cache import --kind dire` reads them, given the folder above, which has images/ beside it. To build "
            "features, give images/. If these are photographs all the same, name the layout with --layout."
        )


def _discover_tars(census: Census, reading: ReadingOptions) -> DiscoveredSource:
    """List the images in all tars below a folder."""
    tars = _tars(census, everywhere=True)
    if not tars:
        raise UserError(
            f"{census.tree.root}: has no .tar file. The layout {WEBDATASET} needs uncompressed tars.{_unread(census)}"
        )
    return _with_loose(census, discover_tars(census.tree.root, tars, reading), tars)


def _discover_shards(census: Census, reading: ReadingOptions) -> DiscoveredSource | None:
    """List the images in all Parquet files below a folder; None if none has any."""
    found = discover_shards(census.tree.root, _files_called(census, PARQUET_SUFFIX), reading)
    return None if found is None else _with_loose(census, *found)


def _discover_zips(census: Census, layout: str | None, reading: ReadingOptions) -> DiscoveredSource | None:
    """List the images in all zips below a folder; None if there are none."""
    zips = _files_called(census, ZIP_SUFFIX)
    if not zips:
        return None
    root = census.tree.root
    found = discover_zips(root, zips, root, lambda tree: _discover_folder(tree, layout, reading))
    return _with_loose(census, found, zips)


def _with_loose(census: Census, found: DiscoveredSource, read: Collection[str]) -> DiscoveredSource:
    """Return a source of archives with what lies beside those that are read in its account."""
    loose = Leftovers(census, str(census.tree.root), {}, reason="are beside the archives that are read")
    for folder, names in census.images.items():
        if loose.is_first(folder, None):
            loose.add(folder, names)
    return found._replace(account=loose.added_to(found.account, read=read))


def _files_called(census: Census, suffix: str) -> list[str]:
    """Return the files below a folder that have a suffix, and are no images."""
    return [
        join(folder, name) for folder, names in census.others.items() for name in names if name.lower().endswith(suffix)
    ]


def _tars(census: Census, *, everywhere: bool) -> list[str]:
    """Return the tars of a folder; unless ``everywhere``, only those directly in it or in its split folders."""
    return [
        join(folder, name)
        for folder, names in census.others.items()
        for name in names
        if name.lower().endswith(SUFFIX)
        and (everywhere or not folder or ("/" not in folder and split_of_word(folder) is not None))
    ]


def _unknown(census: Census, layouts: Collection[FolderLayout], name: str | None) -> str:
    """Return the error text for a folder that fits no layout: what was looked for, what was found, what to do."""
    root = printable(str(census.tree.root))
    if not census.total:
        if "cache.json" in census.others.get("", ()):
            return (
                f"{root}: is a cache, which holds features and no image files. Give the images it was built from, or "
                f"compute from the images in it: distil-cache build --cache {shlex.quote(root)} --from-cache --dataset NAME."
            )
        others = sum(map(len, census.others.values()))
        return f"{root}: has no image file ({others:,} other files in {len(census.images):,} folders).{_unread(census)}"
    if (above := _folder_above(census.tree.root)) is not None:
        return (
            f"{root}: is the folder of one class, and nothing in it names the class. Give the folder that holds all "
            f"classes: distil-cache build {shlex.quote(above)}. Or declare it: --real DIR, --fake NAME=DIR."
        )
    if (
        name is None
        and not census.children()
        and is_known_generator(folder := (absolute(census.tree.root).parts[1:] or [""])[-1])
    ):
        declared = shlex.quote(f"{printable(folder)}={root}")
        return (
            f"{root}: is the folder of one generator, by its name. Give the folder that holds all classes, or declare both: "
            f"distil-cache build --real DIR --fake {declared}."
        )
    if name is None and (tables := _tables(census)):
        commands = " or ".join(f"distil-cache build {shlex.quote(table)}" for table in tables[:3])
        return (
            f"{root}: {census.total:,} images, and no folder that says which of them are real and which generated, but "
            f"a table with columns for path and label. Give the table: {commands}."
        )
    patterns = {layout.name: layout.rows[0].pattern for layout in layouts}
    if name is None:
        patterns |= {METADATA: "metadata.csv with file_name and label", WEBDATASET: PATTERN}
    expected = "; ".join(dict.fromkeys(f"{pattern} ({name})" for name, pattern in patterns.items()))
    folders = [folder for folder in sorted(census.images) if folder.count("/") == 1] or census.children()
    shown = ", ".join(printable(folder) + "/" for folder in folders[:8]) + (", ..." if len(folders) > 8 else "")
    return (
        f"{root}: unknown structure: {census.total:,} images, and no folder that says which of them are real and which "
        f"generated. Found {shown or 'no folders'}.{_unread(census)} Name the folders `real` and `fake`, declare them in place of "
        f"the source with --real DIR and --fake NAME=DIR{_example(census)}, give a pattern such as "
        "--layout '{generator}/{split}/{label}' and the meaning of words with --labels, or list the images in a table with the "
        f"columns path and label. Expected {expected}."
    )


def _example(census: Census) -> str:
    """Return how the first two top folders would be declared, in brackets; empty if there are not two."""
    children = [printable(child) for child in census.children() if census.below_each[child]]
    if len(children) < 2:
        return ""
    root = printable(str(census.tree.root))
    first, second = (
        shlex.quote(f"{name}{root}/{child}") for name, child in zip(("", f"{children[1]}="), children, strict=False)
    )
    return f" (if {children[0]}/ is real: --real {first} --fake {second})"


def _tables(census: Census) -> list[str]:
    """Return the tables in the top folder that have columns for path and label."""
    root = census.tree.root
    if isinstance(census.tree, ZipTree):
        return []
    tables = [name for name in sorted(census.others.get("", ())) if name.lower().endswith(_HEADED)][:_TABLES_TRIED]
    return [
        printable(str(root / name))
        for name in tables
        if {"path", "label"} <= {meaning_of(column) for column in column_names(root / name)}
    ]


def _folder_above(root: AnyPath) -> str | None:
    """Return the folder to give if the root is, or is in, the folder of a class."""
    place = absolute(root)
    names = place.parts[1:]
    for up in range(min(3, len(names) - 1)):
        if label_of_word(names[-1 - up]) is not None:
            above = [*place.parents][up]
            return str(above.parent if split_of_word(names[-2 - up]) is not None else above)
    return None


def _unread(census: Census) -> str:
    places = census.tree.unreadable
    if not places:
        return ""
    shown = ", ".join(f"{place.path} {place.reason}" for place in places[:3]) + (", ..." if len(places) > 3 else "")
    return f" Not entered: {shown}."
