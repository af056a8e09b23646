"""Sample keys as 16 bytes each, which is what is kept, sorted and searched in memory; hex digits are for the edges.

An array of keys has dtype ``S16``. numpy drops the zero bytes at the end of a single element, so keys are compared and
sorted as arrays and turned back into text here, never by taking an element out.
"""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .marker import ID_DIGITS

KEY_BYTES = ID_DIGITS // 2
BINARY = np.dtype(f"S{KEY_BYTES}")
KeyArray = NDArray[np.bytes_]
_BLOCK = 1 << 20


def binary_keys(keys: Sequence[str] | NDArray[Any]) -> KeyArray:
    """Return N keys as an array (N,) of S16.

    keys : strings of 32 lower-case hex digits, the same as an array (of ``S32``, ``U32``, or objects), or keys that are
    binary already, which are returned as they are. Anything else is a ValueError.
    """
    if isinstance(keys, np.ndarray):
        if keys.ndim == 1 and keys.dtype == BINARY:
            return keys
        if keys.ndim != 1 or (keys.dtype.kind in "SU" and keys.dtype != f"{keys.dtype.kind}{ID_DIGITS}"):
            raise ValueError(f"keys must be one row of strings of {ID_DIGITS} digits")
        if keys.dtype.kind == "S":
            return _decoded(np.ascontiguousarray(keys).view(np.uint8).data)
        keys = keys.tolist()
    if not set(map(len, keys)) <= {ID_DIGITS}:
        raise ValueError(f"keys must be strings of {ID_DIGITS} digits")
    return _decoded(memoryview("".join(keys).encode()))


def keys_of_column(column: pa.ChunkedArray) -> KeyArray:
    """Return a table's column of hex keys as an array of S16, without making a string of any; ValueError as above."""
    parts = [np.empty(0, BINARY)]
    for chunk in column.chunks:
        _, offsets, text = chunk.buffers()
        if not len(chunk):
            continue
        bounds = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
        if chunk.null_count or (np.diff(bounds) != ID_DIGITS).any():
            raise ValueError(f"keys must be strings of {ID_DIGITS} digits")
        parts.append(_decoded(memoryview(text)[bounds[0] : bounds[-1]]))
    return np.concatenate(parts)


def hex_keys(keys: KeyArray) -> list[str]:
    """Return binary keys as strings of 32 hex digits."""
    text = np.ascontiguousarray(keys).tobytes().hex()
    return [text[start : start + ID_DIGITS] for start in range(0, len(text), ID_DIGITS)]


def _decoded(text: memoryview) -> KeyArray:
    found = np.empty(len(text) // ID_DIGITS, BINARY)
    for start in range(0, len(found), _BLOCK):
        part = text[start * ID_DIGITS : (start + _BLOCK) * ID_DIGITS]
        try:
            raw = binascii.unhexlify(part)
        except ValueError:
            raise ValueError("a key holds something that is no hex digit") from None
        if (np.frombuffer(part, np.uint8) - np.uint8(ord("A")) < 6).any():
            raise ValueError("a key holds upper-case digits")
        found[start : start + _BLOCK] = np.frombuffer(raw, BINARY)
    return found
