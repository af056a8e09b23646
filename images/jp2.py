"""Check that a JPEG 2000 codestream holds all its tile-parts (ITU-T T.800, annex A).

Its decoder makes an image of what there is. But each tile-part says how long it is, and of how many its tile consists.
"""

from __future__ import annotations

import struct
from collections import Counter

from .file import ImageRejected

_START = b"\xff\x4f\xff\x51"
_TILE_PART, _END = 0xFF90, 0xFFD9
_END_MARKER = b"\xff\xd9"


def check_tile_parts(data: bytes) -> bytes:
    """Return the file, with an end marker if that alone is missing, without which its decoder refuses it.

    Raises
    ------
    ImageRejected
        ``truncated`` if a tile-part reaches past the end, or one is not there.
    """
    start = data.find(_START)
    if start < 0:
        raise ImageRejected("damaged", "jp2: it has no codestream")
    try:
        parts, wanted, tiles, end = _walk(data, start)
    except struct.error:
        raise ImageRejected("truncated", "jp2: a header reaches past the end") from None
    if len(parts) < tiles:
        raise ImageRejected("truncated", f"jp2: {len(parts)} of {tiles} tiles")
    if any(parts[tile] < count for tile, count in wanted.items()):
        raise ImageRejected("truncated", "jp2: a tile lacks some of its parts")
    return data if end + 2 <= len(data) else data[:end] + _END_MARKER


def _walk(data: bytes, start: int) -> tuple[Counter[int], dict[int, int], int, int]:
    """Return the tile-parts, and the position after them.

    They are tile -> parts that are there, tile -> parts that there should be if it says so, and the number of tiles.
    """
    length, _, right, bottom, _, _, wide, high, first, above = struct.unpack_from(">HHIIIIIIII", data, start + 4)
    if not wide or not high:
        raise ImageRejected("damaged", "jp2: tiles of no size")
    tiles = -((first - right) // wide) * -((above - bottom) // high)
    parts, wanted = Counter[int](), dict[int, int]()
    position = start + 4 + length
    while position + 2 <= len(data):
        marker, length = struct.unpack_from(">HH", data[position : position + 4].ljust(4, b"\0"))
        if marker != _TILE_PART:
            if marker == _END:
                break
            position += 2 + length
            continue
        tile, part_length, _, count = struct.unpack_from(">HIBB", data, position + 4)
        parts[tile] += 1
        if count:
            wanted[tile] = count
        if part_length == 0:  # up to the end marker
            if data.find(_END_MARKER, position) < 0:
                raise ImageRejected("truncated", "jp2: its last tile-part has no end")
            break
        if position + part_length > len(data):
            raise ImageRejected("truncated", f"jp2, {len(data):,} bytes: a tile-part reaches past the end")
        position += max(part_length, 12)
    return parts, wanted, tiles, position
