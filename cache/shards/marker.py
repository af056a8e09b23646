"""The marker: the small JSON file that makes a shard exist, validated before anything in it is trusted."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from ...choices import PackedStorage
from ...errors import IntegrityError
from ...storage import AnyPath
from ...storage.atomic import read_file
from ...storage.json_record import InvalidRecordError, entries, parse_model
from .packed import packed_bytes

MAX_SHARD_BYTES = 16 * 2**30
"""Largest shard, uncompressed, that is written or accepted."""
MAX_ROW_BYTES = 256 * 2**20
"""Largest row, since a row is the least that any reader holds in memory."""
MAX_ROWS = 2**20
MAX_MARKER_BYTES = 64 * 2**20
ID_DIGITS = 32

_ID = re.compile(r"[0-9a-f]{32}")
MARKER_NAME = re.compile(r"[0-9a-f]{32}\.json")
DATA_NAME = re.compile(r"([0-9a-f]{32})-[0-9a-f]{16}\.[a-z]{1,8}")
"""File names of a shard's marker and data. Both begin with the shard's id."""
Key = Annotated[str, Field(pattern=r"\A[0-9a-f]{32}\z")]
Name = Annotated[str, Field(pattern=r"\A[a-z0-9-]{1,64}\z")]
DType = Literal["uint8", "float16", "float32"]
Size = Annotated[int, Field(ge=1, le=MAX_SHARD_BYTES)]
Keys = Annotated[tuple[Key, ...], FailFast()]
"""Keys or shard ids."""


def is_id(text: str) -> bool:
    """Return whether ``text`` is a key or a shard id: 32 lower-case hex digits."""
    return _ID.fullmatch(text) is not None


Reasons = Annotated[dict[Key, str], entries(is_id, str)]
"""Key -> why it has no row."""


class Marker(BaseModel):
    """The record of one shard.

    Attributes
    ----------
    version
        Version of this form.
    shard
        The shard's id, 32 hex digits.
    data
        Name of the data, in the marker's folder.
    format
        Name of the shard format.
    keys
        The keys of the stored rows, in order.
    rejected
        Reason for each planned key that has no row.
    dtype, shape
        Those of one row as it is read.
    packed
        How the data hold the rows, if not as they are read; see :mod:`.packed`. Left out of the JSON if None.
    codec
        How the rows are compressed.
    bytes, sha256
        Size and checksum of the data; see :func:`.format.checksum`.
    merged
        Ids of the smaller shards that this one replaces. Left out of the JSON if empty.
    offsets
        Byte offset of each row's array data in a single file, for formats that need it. Left out of the JSON if empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[1] = 1
    shard: Key
    data: Annotated[str, Field(pattern=r"\A[0-9a-f]{32}-[0-9a-f]{16}\.[a-z]{1,8}\z")]
    format: Name
    keys: Annotated[Keys, Field(max_length=MAX_ROWS)]
    rejected: Reasons = {}
    dtype: DType
    shape: Annotated[tuple[Size, ...], FailFast(), Field(min_length=1, max_length=8)]
    packed: PackedStorage | None = None
    codec: Name
    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
    merged: Keys = ()
    offsets: Annotated[tuple[int, ...], FailFast()] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.data.startswith(self.shard):
            raise ValueError("the data belong to another shard")
        if len(set(self.keys)) != len(self.keys):
            raise ValueError("a key is named twice")
        if not self.rejected.keys().isdisjoint(self.keys):
            raise ValueError("a key is both stored and rejected")
        if self.decoded_bytes > MAX_SHARD_BYTES:
            raise ValueError(f"{self.decoded_bytes:,} bytes decoded are more than {MAX_SHARD_BYTES:,}")
        if self.row_bytes > MAX_ROW_BYTES:
            raise ValueError(f"{self.row_bytes:,} bytes of a row are more than {MAX_ROW_BYTES:,}")
        if len({self.shard, *self.merged}) != 1 + len(self.merged):
            raise ValueError("a merged shard is named twice, or is this one")
        if self.packed is not None and self.dtype != "float16":
            raise ValueError(f"rows of {self.dtype} are never packed")
        if self.offsets:
            self._check_offsets()
        return self

    def _check_offsets(self) -> None:
        if len(self.offsets) != self.rows:
            raise ValueError(f"{len(self.offsets)} offsets for {self.rows} rows")
        sizes = (after - before for before, after in pairwise((*self.offsets, self.bytes)))
        if self.offsets[0] < 0 or min(sizes) < self.of_data().row_bytes:
            raise ValueError("the offsets make rows overlap or leave the file")

    @model_serializer(mode="wrap")
    def _without_empty(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = dump(self)
        return {name: value for name, value in fields.items() if value or name not in ("merged", "offsets", "packed")}

    def of_data(self) -> Marker:
        """Return the marker with the dtype and shape that the rows have in the data."""
        if self.packed is None:
            return self
        shape = (packed_bytes(self.shape, self.packed),)
        return self.model_copy(update={"dtype": "uint8", "shape": shape, "packed": None})

    @property
    def rows(self) -> int:
        """Number of stored rows."""
        return len(self.keys)

    @property
    def row_bytes(self) -> int:
        """Size of one row in memory, in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def decoded_bytes(self) -> int:
        """Size of all rows in memory, in bytes."""
        return self.rows * self.row_bytes

    @property
    def planned(self) -> list[str]:
        """The keys that name the shard, see :func:`planned_keys`."""
        return planned_keys(self.keys, self.rejected)


def planned_keys(keys: Sequence[str], rejected: Collection[str]) -> list[str]:
    """Return the keys that name a shard: the stored ones in order or, if some were rejected, all of them sorted."""
    return sorted((*keys, *rejected)) if rejected else list(keys)


def shard_id_of(fingerprint: str, planned_keys: Sequence[str]) -> str:
    """Return a shard's id: the first 32 hex digits of the SHA-256 over fingerprint and keys, joined with newlines."""
    return hashlib.sha256("\n".join((fingerprint, *planned_keys)).encode()).hexdigest()[:ID_DIGITS]


def read_marker(path: AnyPath) -> Marker:
    """Read and validate a marker.

    Raises
    ------
    IntegrityError
        If the file is absent, or is not a valid marker of this name.
    UnreachableError
        If it cannot be read at the moment.
    """
    return parse_marker(read_file(path, MAX_MARKER_BYTES), path)


def parse_marker(text: bytes, path: AnyPath) -> Marker:
    """Validate the content of the marker at ``path``; errors as for :func:`read_marker`."""
    try:
        marker = parse_model(Marker, text)
    except InvalidRecordError as error:
        raise IntegrityError(f"{path}: is not a valid marker ({error}). {check_hint(path)}") from error
    if path.name != f"{marker.shard}.json":
        raise IntegrityError(f"{path}: is the marker of another shard, {marker.shard}. {check_hint(path)}")
    return marker


def check_hint(path: AnyPath) -> str:
    """Return the sentence that says how to check the cache to which ``path``, a path in a feature's folder, belongs."""
    return f"Check the cache with: distil-cache cache verify {_cache_root(path)}"


def check_keys(keys: Iterable[str]) -> None:
    """Raise ValueError for the first key that is not 32 lower-case hex digits."""
    for key in keys:
        if not is_id(key):
            raise ValueError(f"{key!r} is not a sample key")


def _cache_root(path: AnyPath) -> AnyPath:
    for folder in path.parents:
        if folder.name == "features":
            return folder.parent
    return path.parent
