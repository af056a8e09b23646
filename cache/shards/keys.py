"""Sample keys as 16 bytes each for storing, sorting and searching in memory; hex digits are for files and messages.

An array of keys has dtype ``S16``. numpy drops trailing zero bytes when a single element is taken out, so keys are
compared and sorted as arrays, and converted to hex only by the functions here.
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
"""Keys, (N,) of dtype ``BINARY``."""
_BLOCK = 1 << 20


def binary_keys(keys: Sequence[str] | NDArray[Any]) -> KeyArray:
    """Convert keys to binary.

    Parameters
    ----------
    keys
        N strings of 32 lower-case hex digits, an array of them (``S32``, ``U32`` or objects), or binary keys, which are
        returned unchanged.

    Returns
    -------
    ndarray
        (N,) of dtype S16.

    Raises
    ------
    ValueError
        If a key is anything else.
    """
    if isinstance(keys, np.ndarray):
        if keys.ndim == 1 and keys.dtype == BINARY:
            return keys
        if keys.ndim != 1 or (keys.dtype.kind in "SU" and keys.dtype != f"{keys.dtype.kind}{ID_DIGITS}"):
            raise ValueError(f"keys must be a one-dimensional array of strings of {ID_DIGITS} digits")
        if keys.dtype.kind == "S":
            return _decode(np.ascontiguousarray(keys).view(np.uint8).data)
        keys = keys.tolist()
    if not set(map(len, keys)) <= {ID_DIGITS}:
        raise ValueError(f"keys must be strings of {ID_DIGITS} digits")
    return _decode(memoryview("".join(keys).encode()))


def keys_of_column(column: pa.ChunkedArray) -> KeyArray:
    """Convert a table's column of hex keys to binary without creating a Python string for any.

    Returns
    -------
    ndarray
        (rows,) of dtype S16.

    Raises
    ------
    ValueError
        If a value is null or not 32 lower-case hex digits.
    """
    parts = [np.empty(0, BINARY)]
    for chunk in column.chunks:
        _, offsets, text = chunk.buffers()
        if not len(chunk):
            continue
        bounds = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
        if chunk.null_count or (np.diff(bounds) != ID_DIGITS).any():
            raise ValueError(f"keys must be strings of {ID_DIGITS} digits")
        parts.append(_decode(memoryview(text)[bounds[0] : bounds[-1]]))
    return np.concatenate(parts)


def hex_keys(keys: KeyArray) -> list[str]:
    """Return binary keys as strings of 32 hex digits."""
    text = np.ascontiguousarray(keys).tobytes().hex()
    return [text[start : start + ID_DIGITS] for start in range(0, len(text), ID_DIGITS)]


def _decode(text: memoryview) -> KeyArray:
    found = np.empty(len(text) // ID_DIGITS, BINARY)
    for start in range(0, len(found), _BLOCK):
        part = text[start * ID_DIGITS : (start + _BLOCK) * ID_DIGITS]
        try:
            raw = binascii.unhexlify(part)
        except ValueError:
            raise ValueError("a key has a character that is not a hex digit") from None
        if (np.frombuffer(part, np.uint8) - np.uint8(ord("A")) < 6).any():
            raise ValueError("a key has upper-case digits")
        found[start : start + _BLOCK] = np.frombuffer(raw, BINARY)
    return found
