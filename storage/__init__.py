"""Paths on a local disk or in an object store behind one small interface.

A cache and the sources of a dataset may be either, so most code takes an ``AnyPath``: a :class:`pathlib.Path`, or a
:class:`RemotePath` for ``s3://``, ``gs://`` and other fsspec URLs. Other folders use what is exported here and the
modules :mod:`.atomic`, :mod:`.trees`, :mod:`.parquet` and :mod:`.pydantic_field`.
"""

from .parallel import map_ordered
from .paths import (
    AnyPath,
    by_requests,
    file_in_place,
    has_links,
    is_inside,
    is_url,
    list_folders,
    list_matching,
    list_names,
    path_exists,
    relative_name,
    resolved,
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
    "by_requests",
    "file_in_place",
    "has_links",
    "is_inside",
    "is_url",
    "list_folders",
    "list_matching",
    "list_names",
    "map_ordered",
    "path_exists",
    "read_many",
    "relative_name",
    "resolved",
    "symlink_above",
    "to_path",
    "unreachable_error",
    "unreachable_on_error",
]
