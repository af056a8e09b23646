"""Find the images of a dataset again by their recorded paths: what a record names in an archive is looked up there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import UserError
from ...storage import AnyPath, to_path
from ...storage.parquet import for_pyarrow
from ...storage.regular import regular_status
from .archives import tar
from .archives.tar_index import read_tar_index
from .archives.zip_index import SUFFIX as ZIP_SUFFIX
from .archives.zip_index import read_zip_index
from .file import Member, ParquetMember, SourceFile, TarMember
from .tables import parquet

_Finder = Callable[[str], Member | None]
"""Finds a member of an archive by its name there."""


def with_members(files: Sequence[SourceFile]) -> list[SourceFile]:
    """Return files as recorded, those in archives with their places there.

    An archive is listed once. A file keeps no place if its archive is gone or cannot be read, or has no such member any
    more: it is missing then.
    """
    held: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, file in enumerate(files):
        for archive in _archives_of(file.path):
            held[file.root, archive].append(number)
    found = list(files)
    for (root, archive), numbers in held.items():
        finder = _finder(to_path(root), archive)
        if finder is None:
            continue
        for number in numbers:
            member = finder(files[number].path[len(archive) + 1 :])
            if member is not None:
                found[number] = replace(files[number], member=member)
    return found


def _archives_of(path: str) -> list[str]:
    """Return the parts of a path, from its beginning, that are called like an archive and are not its end."""
    parts = path.split("/")
    ends = tuple(_FINDERS)
    return ["/".join(parts[:count]) for count in range(1, len(parts)) if parts[count - 1].lower().endswith(ends)]


def _finder(root: AnyPath, archive: str) -> _Finder | None:
    """Return what finds the members of an archive; None if it cannot be read."""
    make = next(make for suffix, make in _FINDERS.items() if archive.lower().endswith(suffix))
    try:
        return make(root / archive, archive) if (root / archive).is_file() else None
    except (UserError, OSError, ValueError, pa.ArrowException):
        return None


def _in_tar(path: AnyPath, archive: str) -> _Finder:
    index = read_tar_index(path)
    places = {entry.name: (entry.offset, entry.length) for entry in index.entries}

    def find(name: str) -> Member | None:
        return TarMember(archive, index.bytes, index.mtime_ns, *places[name]) if name in places else None

    return find


def _in_zip(path: AnyPath, archive: str) -> _Finder:
    return {entry.name: entry.member for entry in read_zip_index(path, archive) if entry.member is not None}.get


def _in_parquet(path: AnyPath, archive: str) -> _Finder:
    status = regular_status(path)
    with pq.ParquetFile(for_pyarrow(path)) as file:
        columns, footer = parquet.leaf_columns(file.schema_arrow), file.metadata
    groups = [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]

    def find(name: str) -> Member | None:
        column, row = parquet.parse_image_name(name, columns) or ("", -1)
        for group, rows in enumerate(groups):
            if 0 <= row < rows:
                return ParquetMember(archive, status.st_size, status.st_mtime_ns, column, group, row)
            row -= rows
        return None

    return find


_FINDERS: Mapping[str, Callable[[AnyPath, str], _Finder]] = {
    tar.SUFFIX: _in_tar,
    ZIP_SUFFIX: _in_zip,
    parquet.SUFFIX: _in_parquet,
}
"""Suffix of an archive -> what lists it."""
