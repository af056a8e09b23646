"""Read the size of a JPEG XL image from its header (ISO/IEC 18181-1, 9.2): its plugin decodes the pixels to tell it."""

from __future__ import annotations

import struct

_CODESTREAM = b"\xff\x0a"
_BITS = (9, 13, 18, 30)
_RATIOS = ((1, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
"""Number of the ratio -> width and height; 0 means that the width is stored."""


def jxl_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height as stored, before any turn; None if the header cannot be read."""
    start = _codestream(data)
    if start is None or len(data) < start + 14:
        return None
    bits = int.from_bytes(data[start + 2 : start + 14], "little")

    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    def side(small: int) -> int:
        return 8 * (take(5) + 1) if small else take(_BITS[take(2)]) + 1

    small = take(1)
    height = side(small)
    ratio = take(3)
    across, down = _RATIOS[ratio]
    return (height * across // down if ratio else side(small)), height


def _codestream(data: bytes) -> int | None:
    """Return where the codestream begins: at once, or in the first box that holds it or a part of it."""
    if data.startswith(_CODESTREAM):
        return 0
    position = 0
    while position + 8 <= len(data):
        length, label = struct.unpack_from(">I4s", data, position)
        content = position + 8
        if length == 1 and content + 8 <= len(data):
            (length,) = struct.unpack_from(">Q", data, content)
            content += 8
        if label in (b"jxlc", b"jxlp"):
            content += 4 if label == b"jxlp" else 0  # the number of the part
            return content if data.startswith(_CODESTREAM, content) else None
        if length < 8:
            return None
        position += length
    return None
