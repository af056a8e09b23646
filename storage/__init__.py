"""Where files lie: on a disk, or in an object store that fsspec reaches.

A cache and the sources of a dataset may be either. Both are written as paths with the same few operations, so that most
code need not know which one it has: :class:`pathlib.Path`, or :class:`RemotePath` for ``s3://``, ``gs://`` and the like.
"""

from .parallel import each
from .paths import (
    Place,
    answered,
    folders_in,
    is_there,
    link_above,
    matching,
    name_below,
    names_in,
    place_of,
    unreachable,
)
from .remote import Entry, RemotePath, read_many

__all__ = [
    "Entry",
    "Place",
    "RemotePath",
    "answered",
    "each",
    "folders_in",
    "is_there",
    "link_above",
    "matching",
    "name_below",
    "names_in",
    "place_of",
    "read_many",
    "unreachable",
]
