"""List the image files of a source, with label, split, generator and group of each.

A **folder** is recognised by its structure, or read in the layout that is named; :mod:`.layouts` defines the layouts.
Files with the extension of an image (jpg, jpeg, png, webp, bmp, tif, tiff, gif, in any case) are listed; whether they
are images is decided later by their content. Other files are counted as ignored. Hidden files and files of operating
systems are skipped silently. A linked folder is followed only inside the source; a linked file is a file.

**Tars** of webdataset samples are read in place: a ``.tar`` file, or a folder that has some itself or in its split
folders and fits no image layout; see :mod:`.tar`.

A **table** is a CSV or Parquet file with a row for each image; see :mod:`.table`.

A source may be in an object store. A folder there is listed once, recursively; see :mod:`.tree`.
"""

from __future__ import annotations

from ...errors import UserError
from ...images.file import EXTENSIONS
from ...storage import AnyPath, RemotePath
from .file import (
    AS_RECOGNISED,
    DiscoveredSource,
    ReadingOptions,
    SourceAccount,
    SourceFile,
    is_storable,
    printable,
    source_place,
)
from .layouts import LAYOUTS, FolderLayout, ImageFolder, family_of
from .table import SUFFIXES as TABLE_SUFFIXES
from .table import TABLE, discover_table
from .tar import PATTERN, SUFFIX, WEBDATASET, discover_tars
from .tree import Tree, join, tree_of

LAYOUT_NAMES = (*LAYOUTS, TABLE, WEBDATASET)


def discover(source: AnyPath, layout: str | None = None, reading: ReadingOptions = AS_RECOGNISED) -> DiscoveredSource:
    """List the image files of a source, without opening any.

    Parameters
    ----------
    source
        A folder, a CSV or Parquet table, or a tar, local or in an object store.
    layout
        One of :data:`LAYOUT_NAMES`, or None to recognise it.
    reading
        What the user says of words and columns.

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
    if layout is not None and layout not in LAYOUT_NAMES:
        raise UserError(f"{layout}: no such layout. There are: {', '.join(LAYOUT_NAMES)}.")
    try:
        tree = tree_of(source_place(source))
        if tree is not None:
            return _discover_folder(tree, layout)
        if not source.exists():
            raise UserError(_absent(source))
        return _discover_file(source, layout, reading)
    except OSError as error:
        shown = printable(error.filename or str(source))
        hint = " Check the URL, the credentials and what they allow." if isinstance(source, RemotePath) else ""
        raise UserError(f"{shown}: cannot be listed ({error.strerror or error}).{hint}") from error


def _discover_file(source: AnyPath, layout: str | None, reading: ReadingOptions) -> DiscoveredSource:
    if layout in (None, WEBDATASET) and source.suffix.lower() == SUFFIX:
        return discover_tars(source.parent, [source.name])
    if layout not in (None, TABLE) or source.suffix.lower() not in TABLE_SUFFIXES:
        suffixes = " or ".join(TABLE_SUFFIXES)
        raise UserError(f"{source}: is a file. Give a folder, a table that ends in {suffixes}, or a {SUFFIX}.")
    return discover_table(source, reading)


def _absent(source: AnyPath) -> str:
    if isinstance(source, RemotePath):
        return f"{source}: not found in the object store; or its bucket does not exist."
    return f"{source}: no such file or folder."


def _discover_folder(tree: Tree, name: str | None) -> DiscoveredSource:
    if name == TABLE:
        raise UserError(f"{tree.root}: is a folder. The layout `table` needs a CSV or Parquet file.")
    if name == WEBDATASET:
        return _discover_tars(tree)
    candidates = list(LAYOUTS.values()) if name is None else [LAYOUTS[name]]
    fitting = [(layout, leaves) for layout in candidates if (leaves := layout.leaves(tree))]
    if not fitting and name is None and any(_tars_in(tree, folder) for folder in ("", *_split_folders(tree))):
        return _discover_tars(tree)
    if not fitting:
        raise UserError(_unknown(tree, candidates))
    if len(fitting) > 1:
        raise UserError(f"{tree.root}: fits the layouts {_names(fitting)}. Name one of them with --layout.")
    layout, leaves = fitting[0]
    files, ignored = files_of(tree, leaves)
    if not files:
        raise UserError(
            f"{tree.root}: has the folders of the layout {layout.name}, but no image file in them "
            f"({ignored} other files; expected {', '.join(sorted(EXTENSIONS))}).{_outside(tree)}"
        )
    account = SourceAccount(str(tree.root), layout.name, len(files) + ignored, len(files), ignored)
    return DiscoveredSource(layout.name, files, account)


def files_of(tree: Tree, leaves: list[ImageFolder]) -> tuple[list[SourceFile], int]:
    """Return the image files below the leaves, sorted by path, and the number of other files."""
    files: list[SourceFile] = []
    ignored = 0
    root = str(tree.root)
    for leaf in leaves:
        family = family_of(leaf.generator)
        for path in tree.walk(leaf.folder):
            if path.rsplit(".", 1)[-1].lower() in EXTENSIONS:
                listed = tree.listed(path)
                files.append(
                    SourceFile(root, path, leaf.label, leaf.split, leaf.generator, family, leaf.group, listed=listed)
                )
            else:
                ignored += 1
    return sorted(files, key=lambda file: file.path), ignored


def _discover_tars(tree: Tree) -> DiscoveredSource:
    """List the images in all tars below a folder."""
    tars = [path for path in tree.walk() if path.lower().endswith(SUFFIX)]
    if not tars:
        raise UserError(
            f"{tree.root}: has no .tar file. The layout {WEBDATASET} needs uncompressed tars.{_outside(tree)}"
        )
    return discover_tars(tree.root, tars)


def _tars_in(tree: Tree, folder: str) -> bool:
    """Check whether a folder directly contains a tar."""
    return any(name.lower().endswith(SUFFIX) for name in tree.children(folder)[1])


def _split_folders(tree: Tree) -> list[str]:
    return [folder for _, folder in tree.splits()]


def _names(fitting: list[tuple[FolderLayout, list[ImageFolder]]]) -> str:
    return " and ".join(layout.name for layout, _ in fitting)


def _unknown(tree: Tree, candidates: list[FolderLayout]) -> str:
    """Return the error text for an unknown structure: the known patterns, and what was found."""
    patterns = {layout.name: layout.pattern for layout in candidates}
    if len(candidates) > 1:
        patterns[WEBDATASET] = PATTERN
    expected = "; ".join(f"{pattern} ({name})" for name, pattern in patterns.items())
    found = [join(top, name) + "/" for top in tree.folders() for name in (tree.folders(top) or [""])]
    shown = ", ".join(printable(name.rstrip("/") + "/") for name in found[:8]) + (", ..." if len(found) > 8 else "")
    return (
        f"{tree.root}: unknown structure. Expected {expected}. "
        f"Found {shown or 'no folders'}.{_outside(tree)} "
        "Arrange the images like this, or list them in a CSV file with the columns path and label."
    )


def _outside(tree: Tree) -> str:
    links = sorted(tree.outside)
    return f" Links out of the source are not followed: {printable(', '.join(links[:3]))}." if links else ""
