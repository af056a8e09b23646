"""Where files lie: on a disk, or in an object store that fsspec reaches.

A cache and the sources of a dataset may be either. Both are written as paths with the same few operations, so that most
code need not know which one it has: :class:`pathlib.Path`, or :class:`RemotePath` for ``s3://``, ``gs://`` and the like.
"""

from .parallel import map_ordered
from .paths import (
    AnyPath,
    list_folders,
    list_matching,
    list_names,
    path_exists,
    relative_name,
    symlink_above,
    to_path,
    unreachable_error,
    unreachable_on_error,
)
from .remote import Entry, RemotePath, read_many

__all__ = [
    "AnyPath",
    "Entry",
    "RemotePath",
    "list_folders",
    "list_matching",
    "list_names",
    "map_ordered",
    "path_exists",
    "read_many",
    "relative_name",
    "symlink_above",
    "to_path",
    "unreachable_error",
    "unreachable_on_error",
]
