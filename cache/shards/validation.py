"""What must hold of the rows and keys of a shard before a byte of it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np

from ...errors import UserError
from .format import Rows
from .marker import MAX_ROW_BYTES, MAX_ROWS, MAX_SHARD_BYTES, DType, check_keys


def check_rows(
    feature: str, planned: Sequence[str], stored: Sequence[str], refused: Mapping[str, str], rows: Rows
) -> None:
    """Check what :meth:`..store.FeatureStore.commit` is given; ``stored`` are the keys of the rows.

    Raises ValueError for a caller's mistake, UserError for rows that are too large or hold NaN or Inf.
    """
    check_keys(planned)
    if refused and list(planned) != sorted(planned):
        raise ValueError("the planned keys of a shard with rejected rows must be sorted")
    if tuple(key for key in planned if key not in refused) != tuple(stored) or not refused.keys() <= set(planned):
        raise ValueError("every planned key must be either stored, in the same order, or rejected")
    if rows.shape[0] != len(stored) or rows.ndim < 2 or rows.dtype.name not in get_args(DType):
        raise ValueError(f"{len(stored)} keys do not fit rows of shape {rows.shape}, {rows.dtype}")
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
