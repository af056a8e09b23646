"""Take the first frame out of a GIF (GIF89a specification), as a GIF of its own.

A frame may cover a part of the canvas, and begin anywhere on it. What it does not cover is transparent.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

_EXTENSION, _IMAGE, _TRAILER = 0x21, 0x2C, 0x3B
_GRAPHIC_CONTROL = 0xF9
_HAS_PALETTE = 0x80
_INTERLACED = 0x40


class GifFrame(NamedTuple):
    """The first frame of a GIF.

    Attributes
    ----------
    left, top, width, height
        Its place on the canvas, in pixels.
    interlaced
        Whether its rows are stored in four passes.
    transparent
        Index of the transparent colour; None if there is none.
    palettes
        The file's palette with its header, up to the first block.
    image
        The image block: its descriptor, palette and data.
    """

    left: int
    top: int
    width: int
    height: int
    interlaced: bool
    transparent: int | None
    palettes: bytes
    image: bytes

    def alone(self, transparent: int | None = None) -> bytes:
        """Return a GIF of this frame alone, as large as the frame, with a transparent colour only if one is given."""
        start = self.palettes[:6] + struct.pack("<HH", self.width, self.height) + self.palettes[10:]
        control = b"" if transparent is None else bytes((_EXTENSION, _GRAPHIC_CONTROL, 4, 1, 0, 0, transparent, 0))
        return start + control + self.image[:1] + bytes(4) + self.image[5:] + b"\0;"

    @property
    def last_row(self) -> int:
        """The row that is decoded last."""
        return self.height - 1 if not self.interlaced or self.height == 1 else (self.height // 2) * 2 - 1


def first_frame(data: bytes) -> GifFrame | None:
    """Return the first frame of a GIF; None if the file ends before one, or has none."""
    if len(data) < 13:
        return None
    position = 13 + _palette_bytes(data[10])
    palettes, transparent = data[:position], None
    while position < len(data):
        block = data[position]
        if block == _IMAGE and position + 10 <= len(data):
            left, top, width, height, flags = struct.unpack_from("<HHHHB", data, position + 1)
            end = _after_blocks(data, position + 10 + _palette_bytes(flags) + 1)
            image = data[position:end]
            return GifFrame(left, top, width, height, bool(flags & _INTERLACED), transparent, palettes, image)
        if block == _EXTENSION and position + 2 <= len(data):
            if data[position + 1] == _GRAPHIC_CONTROL and data[position + 2 : position + 3] == b"\4":
                flags, _, index = struct.unpack_from("<BHB", data.ljust(position + 8, b"\0"), position + 3)
                transparent = index if flags & 1 else None
            position = _after_blocks(data, position + 2)
        elif block in (_IMAGE, _EXTENSION, _TRAILER):
            return None
        else:
            position += 1  # readers skip what they do not know
    return None


def _palette_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & _HAS_PALETTE else 0


def _after_blocks(data: bytes, position: int) -> int:
    """Return the position after a sequence of data blocks, or the end of the file."""
    while position < len(data) and data[position]:
        position += 1 + data[position]
    return min(position + 1, len(data))
