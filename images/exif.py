"""Read the orientation out of an EXIF block, and nothing else of it.

A block may be damaged, or made to keep a parser busy. Here it costs at most one pass over its first directory, and what
cannot be read leaves an image as it is stored.
"""

from __future__ import annotations

import struct

_ORIENTATION = 0x0112
_FORMATS = {1: "B", 3: "H", 4: "I"}
_START = b"Exif\0\0"


def exif_orientation(block: bytes) -> int:
    """Return the orientation, 1..8, in an EXIF block (with or without ``Exif`` in front); 1 if there is none."""
    block = block.removeprefix(_START)
    order = {b"II": "<", b"MM": ">"}.get(bytes(block[:2]))
    if order is None or len(block) < 8:
        return 1
    (directory,) = struct.unpack_from(f"{order}I", block, 4)
    if directory + 2 > len(block):
        return 1
    (entries,) = struct.unpack_from(f"{order}H", block, directory)
    for place in range(directory + 2, min(directory + 2 + 12 * entries, len(block) - 11), 12):
        tag, kind, count = struct.unpack_from(f"{order}HHI", block, place)
        if tag == _ORIENTATION:
            letter = _FORMATS.get(kind)
            value = int(struct.unpack_from(order + letter, block, place + 8)[0]) if letter and count == 1 else 1
            return value if 1 <= value <= 8 else 1
    return 1
