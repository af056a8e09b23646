"""The compacted index: a file below ``features/F/index/`` that makes opening a feature fast. It is safe to delete.

The markers stay the source of truth. The file holds what was read from them, with sorted keys. Readers map it into
memory and read only the markers that it lacks. Layout: magic (8 bytes), length of the header (8, little-endian),
SHA-256 of all that follows (32), header (JSON, padded with spaces to a multiple of 64), keys (16 each), row numbers
(int32 each).

A wrong index does not mislead a reader:

* Checksum, fingerprint, order of the keys, and that the row numbers are a permutation are checked in one pass whenever
  the file is opened. A file that fails is ignored.
* When a shard is first read, its marker is read too and compared with all that the index says about the shard. Since
  the row numbers are a permutation, no other key can then lead into the shard.

Files are numbered. Each number is created exclusively, the highest valid one counts, and older ones are deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from typing import IO, Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, FailFast, Field, model_validator

from ...errors import UnreachableError
from ...storage import AnyPath, list_names, symlink_above
from ...storage.atomic import check_new_size, create_file, make_folder
from ...storage.json_record import InvalidRecordError, entries, parse_model
from ...storage.trees import open_mappable
from ..shards.keys import BINARY
from ..shards.marker import Key, Keys, Reasons, is_id
from .index import MAX_ROWS, Index, IndexSegment

FOLDER = "index"
SUFFIX = ".index"
_NAME = re.compile(r"([0-9]{6,12})\.index")
_MAGIC = b"dcindex1"
_ROW_NUMBER = np.dtype("<i4")
_PREAMBLE = len(_MAGIC) + 8 + 32
_ALIGNMENT = 64
_MAX_HEADER = 2**26
"""That of a million shards."""
_FEW_MARKERS = 64
_BLOCK = 1 << 20


class Header(BaseModel):
    """The header of a compacted index.

    Attributes
    ----------
    version
        Version of the layout.
    fingerprint
        The feature's, 64 hex digits.
    shards
        Shard ids, sorted.
    rows, bytes
        For each shard, its rows and the bytes of its data.
    rejected
        For each shard that has any, the reasons of its rejected keys.
    merged
        For each shard that has any, the shards that it replaces.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[1] = 1
    fingerprint: Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
    shards: Annotated[list[Key], FailFast()]
    rows: Annotated[list[Annotated[int, Field(ge=0, le=MAX_ROWS)]], FailFast()]
    bytes: Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], FailFast()]
    rejected: Annotated[dict[Key, Reasons], entries(is_id, dict)]
    merged: Annotated[dict[Key, Annotated[Keys, Field(strict=False)]], entries(is_id, (list, tuple))]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not len(self.shards) == len(self.rows) == len(self.bytes):
            raise ValueError("shards, rows and bytes have different lengths")
        if sorted(set(self.shards)) != self.shards:
            raise ValueError("the shards are not sorted")
        if not (self.rejected.keys() | self.merged.keys()) <= set(self.shards):
            raise ValueError("it describes a shard that it does not list")
        if sum(self.rows) > MAX_ROWS:
            raise ValueError("it has too many rows")
        return self


def read_newest(folder: AnyPath, fingerprint: str) -> IndexSegment | None:
    """Return the newest valid compacted index of a feature, mapped into memory.

    Parameters
    ----------
    folder
        The feature's ``index`` folder, which need not exist.
    fingerprint
        The feature's.

    Returns
    -------
    IndexSegment or None
        None if there is no valid file.
    """
    for _ in range(2):  # again in case another process has replaced the files meanwhile
        vanished = False
        try:
            files = sorted(numbered(folder), reverse=True)
        except UnreachableError:
            return None  # the markers hold the same; if they cannot be listed either, that is reported
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


def write(folder: AnyPath, segment: IndexSegment, fingerprint: str) -> bool:
    """Write a segment as the newest compacted index and delete the older ones.

    Parameters
    ----------
    folder
        The feature's ``index`` folder.
    segment
        All rows of the feature.
    fingerprint
        The feature's.

    Returns
    -------
    bool
        Whether this call wrote the file; another process may have written its own at the same time.

    Raises
    ------
    UserError
        If the file cannot be written; an OversizeError if its header would be larger than :func:`read` accepts.
    """
    header = Header(
        fingerprint=fingerprint,
        shards=list(segment.shards),
        rows=np.diff(segment.starts).tolist(),
        bytes=segment.bytes.tolist(),
        rejected={shard: dict(reasons) for shard, reasons in segment.rejected.items()},
        merged=dict(segment.merged),
    ).model_dump_json()
    text = header.encode()
    text += b" " * (-(_PREAMBLE + len(text)) % _ALIGNMENT)
    check_new_size(folder, len(text), _MAX_HEADER, "The feature opens without it, more slowly, from its markers.")
    keys, row_numbers = (
        segment.keys.view(np.uint8).data,
        segment.row_numbers.astype(_ROW_NUMBER, copy=False).view(np.uint8).data,
    )
    digest = hashlib.sha256(text)
    digest.update(keys)
    digest.update(row_numbers)
    make_folder(folder)
    older = list(numbered(folder))
    number = 1 + max((number for number, _ in older), default=0)
    preamble = _MAGIC + len(text).to_bytes(8, "little") + digest.digest()
    if not create_file(folder / f"{number:06d}{SUFFIX}", preamble, text, keys, row_numbers):
        return False
    for _, path in older if symlink_above(folder / SUFFIX, folder.parents[2]) is None else ():
        with contextlib.suppress(OSError):  # another process deleted it, or it stays as garbage
            path.unlink()
    return True


def is_current(folder: AnyPath, index: Index, *, tolerant: bool) -> bool:
    """Return whether the file on disk serves as well as a new one would.

    Parameters
    ----------
    folder
        The feature's ``index`` folder.
    index
        The feature's index as it is now.
    tolerant
        Accept a file that lacks few markers: fewer than 64, or than an eighth of all.
    """
    files = list(numbered(folder))
    if len(files) != bool(index.saved.shards):  # no valid file, or an invalid one as well
        return False
    behind = len(index.fresh.shards) + len(set(index.saved.shards) - index.known)
    return behind < max(_FEW_MARKERS, len(index.known) // 8) if tolerant else not behind


def numbered(folder: AnyPath) -> Iterator[tuple[int, AnyPath]]:
    """Yield (number, path) of a feature's compacted indexes, unordered; errors as for :func:`list_names`."""
    for name in list_names(folder):
        if match := _NAME.fullmatch(name):
            yield int(match[1]), folder / name


def read(path: AnyPath, fingerprint: str) -> IndexSegment:
    """Check a compacted index and map it into memory.

    Raises
    ------
    ValueError, OSError
        If it is not a valid index of the feature with this fingerprint.
    """
    with open_mappable(path) as file:
        preamble = file.read(_PREAMBLE)
        length = int.from_bytes(preamble[len(_MAGIC) : len(_MAGIC) + 8], "little")
        size = os.fstat(file.fileno()).st_size
        if not preamble.startswith(_MAGIC) or not 0 < length <= min(_MAX_HEADER, size - _PREAMBLE):
            raise ValueError("it is not an index")
        text = file.read(length)
        digest = hashlib.sha256(text)
        try:
            header = parse_model(Header, text)
        except InvalidRecordError as error:
            raise ValueError("its header is not valid") from error
        total = sum(header.rows)
        start = _PREAMBLE + length
        if header.fingerprint != fingerprint or size != start + total * (BINARY.itemsize + _ROW_NUMBER.itemsize):
            raise ValueError("it belongs to another feature, or has another size than its header says")
        _check_keys(file, total, digest)
        _check_row_numbers(file, total, digest)
        if digest.digest() != preamble[-32:]:
            raise ValueError("its checksum is wrong")
        keys, row_numbers = np.empty(0, BINARY), np.empty(0, _ROW_NUMBER)
        if total:
            keys = np.memmap(file, BINARY, "r", start, (total,)).view(np.ndarray)
            row_numbers = np.memmap(file, _ROW_NUMBER, "r", start + total * BINARY.itemsize, (total,)).view(np.ndarray)
    return IndexSegment(
        shards=header.shards,
        starts=np.cumsum([0, *header.rows], dtype=np.int64),
        bytes=np.array(header.bytes, np.int64),
        keys=keys,
        row_numbers=row_numbers,
        rejected=header.rejected,
        merged=header.merged,
    )


def _blocks(file: IO[bytes], total: int, dtype: np.dtype[Any], digest: hashlib._Hash) -> Iterator[NDArray[Any]]:
    """Yield ``total`` items in blocks and add them to the digest. They are read, not mapped, so none stay in memory."""
    for start in range(0, total, _BLOCK):
        data = file.read(min(_BLOCK, total - start) * dtype.itemsize)
        digest.update(data)
        yield np.frombuffer(data, dtype)


def _check_keys(file: IO[bytes], total: int, digest: hashlib._Hash) -> None:
    """Raise ValueError unless the keys are in ascending order; duplicates are allowed."""
    last = np.zeros(1, BINARY)
    for block in _blocks(file, total, BINARY, digest):
        if block[0] < last[0] or (block[1:] < block[:-1]).any():
            raise ValueError("its keys are not sorted")
        last = block[-1:]


def _check_row_numbers(file: IO[bytes], total: int, digest: hashlib._Hash) -> None:
    """Raise ValueError unless the row numbers are a permutation of all rows."""
    seen = np.zeros(total, bool)
    for block in _blocks(file, total, _ROW_NUMBER, digest):
        if block.min() < 0 or block.max() >= total:
            raise ValueError("it has a row number that no shard has")
        seen[block] = True
    if not seen.all():
        raise ValueError("it has a row number twice")
