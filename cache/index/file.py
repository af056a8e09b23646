"""The compacted index: one file below ``features/F/index/`` that makes opening a feature fast. Deleting it loses nothing.

The markers stay the truth. The file holds what was read from them, its keys sorted; readers map it into memory and read
only the markers that it does not name. Layout: magic (8 bytes), length of the header (8, little-endian), SHA-256 of all
that follows (32), header (JSON, padded with spaces to a multiple of 64), keys (16 each), places (int32 each).

What protects a reader from an index that is wrong:

* The checksum, the fingerprint of the feature, the order of the keys, and that the places are a permutation of all rows
  are checked whenever the file is opened, in one pass over it. Whatever fails counts as absent.
* When a shard is first read, its marker is read anyway, and compared with all that the index says about the shard.
  Since the places are a permutation, no other key can then lead into the shard.

Files are numbered; each number is created exclusively, the highest valid one counts, older ones are removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from typing import IO, Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ...errors import UnreachableError
from ...storage import AnyPath, RemotePath, list_names, symlink_above, unreachable_on_error
from ...storage.atomic import create_file, make_folder
from ..shards.keys import BINARY
from ..shards.marker import Key
from .index import MAX_ROWS, Index, IndexSegment

FOLDER = "index"
SUFFIX = ".index"
_NAME = re.compile(r"(\d{6,12})\.index")
_MAGIC = b"dcindex1"
_PLACE = np.dtype("<i4")
_PREAMBLE = len(_MAGIC) + 8 + 32
_ALIGNMENT = 64
_MAX_HEADER = 2**30
_FEW = 64
_BLOCK = 1 << 20


class Header(BaseModel):
    """What a compacted index was made from: shards by id, each with its rows and stored bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[1] = 1
    fingerprint: Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
    shards: list[Key]
    rows: list[Annotated[int, Field(ge=0, le=MAX_ROWS)]]
    bytes: list[Annotated[int, Field(ge=0, lt=2**63)]]
    rejected: dict[Key, dict[Key, str]]
    merged: dict[Key, tuple[Key, ...]]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not len(self.shards) == len(self.rows) == len(self.bytes):
            raise ValueError("shards, rows and bytes have different lengths")
        if sorted(set(self.shards)) != self.shards:
            raise ValueError("the shards are not sorted")
        if not (self.rejected.keys() | self.merged.keys()) <= set(self.shards):
            raise ValueError("it describes a shard that it does not name")
        if sum(self.rows) > MAX_ROWS:
            raise ValueError("it has too many rows")
        return self


def read_newest(folder: AnyPath, fingerprint: str) -> IndexSegment | None:
    """Return the newest compacted index of a feature that can be trusted, mapped into memory, or None.

    folder : the feature's folder ``index``, which need not exist.
    """
    for _ in range(2):  # a second time in case a newer one was made, and the old ones removed, meanwhile
        vanished = False
        try:
            files = sorted(numbered(folder), reverse=True)
        except UnreachableError:
            return None  # the markers say the same; if they cannot be listed either, that is told
        for _, path in files:
            try:
                return read(path, fingerprint)
            except FileNotFoundError:
                vanished = True
            except (OSError, ValueError):
                continue
        if not vanished:
            break
    return None


def write(folder: AnyPath, part: IndexSegment, fingerprint: str) -> bool:
    """Write a part as the newest compacted index and remove the older ones.

    Returns whether this call did; another process may have written its own at the same time. UserError if the file
    cannot be written.
    """
    header = Header(
        fingerprint=fingerprint,
        shards=list(part.shards),
        rows=np.diff(part.starts).tolist(),
        bytes=part.bytes.tolist(),
        rejected={shard: dict(reasons) for shard, reasons in part.rejected.items()},
        merged=dict(part.merged),
    ).model_dump_json()
    text = header.encode()
    text += b" " * (-(_PREAMBLE + len(text)) % _ALIGNMENT)
    keys, places = part.keys.view(np.uint8).data, part.places.astype(_PLACE, copy=False).view(np.uint8).data
    digest = hashlib.sha256(text)
    digest.update(keys)
    digest.update(places)
    make_folder(folder)
    older = list(numbered(folder))
    number = 1 + max((number for number, _ in older), default=0)
    preamble = _MAGIC + len(text).to_bytes(8, "little") + digest.digest()
    if not create_file(folder / f"{number:06d}{SUFFIX}", preamble, text, keys, places):
        return False
    for _, path in older if symlink_above(folder / SUFFIX, folder.parents[2]) is None else ():
        with contextlib.suppress(OSError):  # somebody else may have removed it, or it stays as garbage
            path.unlink()
    return True


def is_current(folder: AnyPath, index: Index, *, tolerant: bool) -> bool:
    """Say whether the file on disk serves as well as one that would be written now.

    tolerant : also if reading the markers that it does not know takes a moment only: fewer than 64, or an eighth of all.
    """
    files = list(numbered(folder))
    if len(files) != bool(index.saved.shards):  # none that can be used, or one that cannot beside it
        return False
    behind = len(index.fresh.shards) + len(set(index.saved.shards) - index.known)
    return behind < max(_FEW, len(index.known) // 8) if tolerant else not behind


def numbered(folder: AnyPath) -> Iterator[tuple[int, AnyPath]]:
    """Yield the compacted indexes of a feature with their numbers, in no order; UnreachableError as :func:`list_names`."""
    for name in list_names(folder):
        if match := _NAME.fullmatch(name):
            yield int(match[1]), folder / name


def read(path: AnyPath, fingerprint: str) -> IndexSegment:
    """Check a file and map it; ValueError or OSError if it is not a sound index of this feature."""
    with _opened(path) as file:
        preamble = file.read(_PREAMBLE)
        length = int.from_bytes(preamble[len(_MAGIC) : len(_MAGIC) + 8], "little")
        size = os.fstat(file.fileno()).st_size
        if not preamble.startswith(_MAGIC) or not 0 < length <= min(_MAX_HEADER, size - _PREAMBLE):
            raise ValueError("it is no index")
        text = file.read(length)
        digest = hashlib.sha256(text)
        try:
            header = Header.model_validate_json(text)
        except ValidationError as error:
            raise ValueError("its header is not valid") from error
        total = sum(header.rows)
        start = _PREAMBLE + length
        if header.fingerprint != fingerprint or size != start + total * (BINARY.itemsize + _PLACE.itemsize):
            raise ValueError("it belongs to another feature, or has another size than its header says")
        _check_keys(file, total, digest)
        _check_places(file, total, digest)
        if digest.digest() != preamble[-32:]:
            raise ValueError("its checksum is wrong")
        keys, places = np.empty(0, BINARY), np.empty(0, _PLACE)
        if total:
            keys = np.memmap(file, BINARY, "r", start, (total,)).view(np.ndarray)
            places = np.memmap(file, _PLACE, "r", start + total * BINARY.itemsize, (total,)).view(np.ndarray)
    return IndexSegment(
        shards=header.shards,
        starts=np.cumsum([0, *header.rows], dtype=np.int64),
        bytes=np.array(header.bytes, np.int64),
        keys=keys,
        places=places,
        rejected=header.rejected,
        merged=header.merged,
    )


def _opened(path: AnyPath) -> IO[bytes]:
    """Open a file that can be mapped: that of a disk, or a nameless copy of one in an object store."""
    if not isinstance(path, RemotePath):
        return path.open("rb")
    copy: IO[bytes] = tempfile.TemporaryFile(prefix="distil-cache-")  # noqa: SIM115  (the caller closes it)
    with unreachable_on_error(path):
        source = path.open()
    with source:
        while block := _fetched(source, path):
            copy.write(block)
    copy.seek(0)
    return copy


def _fetched(source: IO[bytes], path: RemotePath) -> bytes:
    """Return the next piece of an object; what goes wrong with the copy on this disk is not the store's failure."""
    with unreachable_on_error(path):
        return source.read(_BLOCK * _ALIGNMENT)


def _blocks(file: IO[bytes], total: int, dtype: np.dtype[Any], digest: hashlib._Hash) -> Iterator[NDArray[Any]]:
    """Yield ``total`` items in blocks, adding each to the digest. They are read, not mapped: nothing stays in memory."""
    for start in range(0, total, _BLOCK):
        data = file.read(min(_BLOCK, total - start) * dtype.itemsize)
        digest.update(data)
        yield np.frombuffer(data, dtype)


def _check_keys(file: IO[bytes], total: int, digest: hashlib._Hash) -> None:
    """Raise ValueError unless the keys ascend; equal ones may stand side by side."""
    last = np.zeros(1, BINARY)
    for block in _blocks(file, total, BINARY, digest):
        if block[0] < last[0] or (block[1:] < block[:-1]).any():
            raise ValueError("its keys are not sorted")
        last = block[-1:]


def _check_places(file: IO[bytes], total: int, digest: hashlib._Hash) -> None:
    """Raise ValueError unless the places are a permutation of all rows."""
    seen = np.zeros(total, bool)
    for block in _blocks(file, total, _PLACE, digest):
        if block.min() < 0 or block.max() >= total:
            raise ValueError("it names a row that no shard has")
        seen[block] = True
    if not seen.all():
        raise ValueError("it names a row twice")
