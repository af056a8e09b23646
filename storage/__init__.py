"""Paths on a local disk or in an object store behind one small interface.

A cache and the sources of a dataset may be either, so most code takes an ``AnyPath``: a :class:`pathlib.Path`, or a
:class:`RemotePath` for ``s3://``, ``gs://`` and other fsspec URLs. Other folders use what is exported here and the
modules :mod:`.atomic`, :mod:`.trees`, :mod:`.regular`, :mod:`.ranges`, :mod:`.parquet`, :mod:`.locks`, :mod:`.text` and
:mod:`.pydantic_field`, and do not look at the class of a path.
"""

from .parallel import map_ordered
from .paths import (
    AnyPath,
    absent_error,
    absolute,
    access_hint,
    by_requests,
    file_in_place,
    has_links,
    is_inside,
    is_url,
    list_folders,
    list_matching,
    list_names,
    list_objects,
    located,
    path_exists,
    protocol_of,
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
    "absent_error",
    "absolute",
    "access_hint",
    "by_requests",
    "file_in_place",
    "has_links",
    "is_inside",
    "is_url",
    "list_folders",
    "list_matching",
    "list_names",
    "list_objects",
    "located",
    "map_ordered",
    "path_exists",
    "protocol_of",
    "read_many",
    "relative_name",
    "resolved",
    "symlink_above",
    "to_path",
    "unreachable_error",
    "unreachable_on_error",
]
