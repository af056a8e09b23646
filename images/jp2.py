"""Check that a JPEG 2000 codestream holds all its tile-parts (ITU-T T.800, annex A).

Its decoder makes an image of what there is: each tile-part says how long it is, and all tiles must be there.
"""

from __future__ import annotations

import struct

from .file import ImageRejected

_START = b"\xff\x4f\xff\x51"
_TILE_PART, _END = 0xFF90, 0xFFD9


def check_tile_parts(data: bytes) -> None:
    """Raise ImageRejected (``truncated``) if a tile-part reaches past the end, or a tile has none."""
    start = data.find(_START)
    if start < 0:
        raise ImageRejected("damaged", "jp2: it has no codestream")
    try:
        seen, tiles = _walk(data, start)
    except struct.error:
        raise ImageRejected("truncated", "jp2: a header reaches past the end") from None
    if len(seen) < tiles:
        raise ImageRejected("truncated", f"jp2: {len(seen)} of {tiles} tiles")


def _walk(data: bytes, start: int) -> tuple[set[int], int]:
    """Return the numbers of the tiles that are there, and how many there should be."""
    length, _, right, bottom, _, _, wide, high, first, above = struct.unpack_from(">HHIIIIIIII", data, start + 4)
    if not wide or not high:
        raise ImageRejected("damaged", "jp2: tiles of no size")
    tiles = -((first - right) // wide) * -((above - bottom) // high)
    seen: set[int] = set()
    position = start + 4 + length
    while position + 2 <= len(data):
        (marker,) = struct.unpack_from(">H", data, position)
        if marker == _END:
            break
        (length,) = struct.unpack_from(">H", data, position + 2)
        if marker == _TILE_PART:
            tile, part_length = struct.unpack_from(">HI", data, position + 4)
            seen.add(tile)
            if part_length == 0:  # up to the end
                break
            if position + part_length > len(data):
                raise ImageRejected("truncated", f"jp2, {len(data):,} bytes: a tile-part reaches past the end")
            position += max(part_length, 12)
        else:
            position += 2 + length
    return seen, tiles
