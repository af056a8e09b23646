"""A shard's data, a file or a folder of files: check, write and delete, on a disk or in an object store."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple, get_args

import numpy as np

from ...choices import PackedStorage
from ...errors import UserError
from ...storage import AnyPath
from ...storage.trees import new_tree, remove_tree
from .format import Rows, ShardFormat, checksum
from .marker import MAX_ROW_BYTES, MAX_ROWS, MAX_SHARD_BYTES, DType, check_keys


class Written(NamedTuple):
    """What a marker records of the data.

    Attributes
    ----------
    codec
        Name of the codec.
    offsets
        Byte offset of each row in the file; empty if the format has none.
    bytes
        Total size of the files.
    sha256
        Checksum, 64 hex digits; see :func:`.format.checksum`.
    """

    codec: str
    offsets: tuple[int, ...]
    bytes: int
    sha256: str


def check_rows(
    feature: str,
    planned: Sequence[str],
    stored: Sequence[str],
    rejected: Mapping[str, str],
    rows: Rows,
    packed: PackedStorage | None = None,
) -> None:
    """Check the arguments of :meth:`..store.FeatureStore.commit` before anything is written.

    Parameters
    ----------
    feature
        The feature's name.
    planned
        The keys that name the shard.
    stored
        The keys of the rows, in order.
    rejected
        Reason for each planned key that has no row.
    rows
        (N, *shape), one row for each of ``stored``.
    packed
        How the rows will be packed, which only float16 can be; None if they are stored as they are.

    Raises
    ------
    ValueError
        For a programming error: keys and rows do not fit each other, or rows of another dtype would be packed.
    UserError
        If the rows are too large, or hold NaN or Inf.
    """
    check_keys(planned)
    if rejected and list(planned) != sorted(planned):
        raise ValueError("the planned keys of a shard with rejected rows must be sorted")
    if tuple(key for key in planned if key not in rejected) != tuple(stored) or not rejected.keys() <= set(planned):
        raise ValueError("every planned key must be either stored, in the same order, or rejected")
    if rows.shape[0] != len(stored) or rows.ndim < 2 or rows.dtype.name not in get_args(DType):
        raise ValueError(f"{len(stored)} keys do not fit rows of shape {rows.shape}, {rows.dtype}")
    if packed is not None and rows.dtype.name != "float16":
        raise ValueError(f"{feature}: is stored as {packed}, which takes rows of float16, not of {rows.dtype.name}")
    if rows.nbytes > MAX_SHARD_BYTES or len(planned) > MAX_ROWS:
        what = f"a shard of {len(planned):,} rows and {rows.nbytes:,} bytes"
        raise UserError(f"{feature}: {what} is too large. Lower --shard-size.")
    if rows[:1].nbytes > MAX_ROW_BYTES:
        raise UserError(f"{feature}: a row of {rows[:1].nbytes:,} bytes is too large. Use smaller images.")
    if rows.dtype.kind == "f":
        bad = [key for key, row in zip(stored, rows, strict=True) if not np.isfinite(row).all()]
        if bad:
            raise UserError(
                f"{feature}: {len(bad)} of {len(stored)} rows hold NaN or Inf (first: {bad[0]}), "
                "so the shard was not written. Try a wider --precision."
            )


def write_data(
    data: AnyPath, form: ShardFormat, rows: Rows, keys: Sequence[str], feature: str, chunk_tail: tuple[int, ...]
) -> Written:
    """Write a shard's rows to a new path. The data are durable when this returns.

    For an object store the data are written to a local temporary folder and uploaded. The checksum is that of the local
    files, so a reader notices if something else arrived.

    Parameters
    ----------
    data
        The new file, folder or object.
    form
        The shard format.
    rows
        (N, *shape) uint8, float16 or float32.
    keys
        One for each row.
    feature
        The feature's name.
    chunk_tail
        The part of a row that is compressed together.

    Raises
    ------
    OSError
        If the data cannot be written.
    """
    with new_tree(data) as local:
        codec, offsets = form.write(local, rows, keys, feature, chunk_tail)
        return Written(codec, offsets, *checksum(local))


def remove_data(data: AnyPath) -> None:
    """Delete a shard's data if they exist; errors are ignored, since leftover data are garbage that ``gc`` deletes."""
    with contextlib.suppress(OSError):
        remove_tree(data, ignore_errors=True)
