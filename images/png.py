"""Take a PNG apart into the chunks that decide its pixels (PNG specification, third edition).

Pillow rejects a file for a text or a profile that is too long, and for a wrong checksum of a chunk that any decoder may
skip. So it is given the chunks that decide on pixels, and no others.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import NamedTuple

from .file import ImageRejected

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_IEND = b"\0\0\0\0IEND\xae\x42\x60\x82"
_COLOUR_BYTES = {0: 2, 2: 6}
"""Colour type -> bytes of ``tRNS`` that name the one transparent colour."""
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Adam7: first column, first row, and the steps to the next column and row."""

_RAW_PROFILE = b"Raw profile type exif\0"
_NOT_HEX = re.compile(rb"[^0-9a-fA-F]+")
_MOST_EXIF = 1 << 20
_BLOCK = 1 << 20


class PngFile(NamedTuple):
    """The parts of a PNG that decide its pixels.

    Attributes
    ----------
    header
        Content of ``IHDR``.
    palette, transparency
        Contents of ``PLTE`` and ``tRNS``; empty if there are none.
    pixels
        (start, end) of the content of each ``IDAT`` in the file.
    exif
        The EXIF block; empty if there is none.
    plain
        Whether the file is complete, and holds only these chunks.
    """

    header: bytes
    palette: bytes
    transparency: bytes
    pixels: list[tuple[int, int]]
    exif: bytes
    plain: bool

    @property
    def depth(self) -> int:
        """Bits per channel."""
        return self.header[8]

    @property
    def colour(self) -> int:
        """The colour type: 0 grey, 2 RGB, 3 palette, 4 grey with alpha, 6 RGB with alpha."""
        return self.header[9]

    @property
    def interlaced(self) -> bool:
        """Whether the rows are stored in the order of Adam7."""
        return self.header[12] != 0

    @property
    def unpacked_bytes(self) -> int:
        """Bytes that all rows take before compression."""
        width, height = struct.unpack_from(">II", self.header)
        bits = _CHANNELS.get(self.colour, 1) * self.depth
        passes = _PASSES if self.interlaced else ((0, 0, 1, 1),)
        total = 0
        for left, top, right, down in passes:
            columns, rows = -((left - width) // right), -((top - height) // down)
            if columns > 0 and rows > 0:
                total += rows * (1 + (columns * bits + 7) // 8)
        return total


def parse_png(data: bytes) -> PngFile:
    """Take a PNG apart. A file whose end is missing gives what there is.

    Raises
    ------
    ImageRejected
        ``truncated`` without any data of pixels, ``damaged`` for a critical chunk that cannot be read, and
        ``unsupported-mode`` for a critical chunk that the specification does not know.
    """
    header, palette, transparency, exif, profile = b"", b"", b"", b"", b""
    pixels: list[tuple[int, int]] = []
    position, size, others, ended = len(SIGNATURE), len(data), 0, False
    while position + 8 <= size:
        length, label = struct.unpack_from(">I4s", data, position)
        start, end = position + 8, position + 8 + length
        position = end + 4
        if label == b"IDAT":
            pixels.append((start, min(end, size)))
            continue
        if label == b"IEND":
            ended = True
            break
        if end > size:
            break
        if label == b"eXIf":
            exif = exif or data[start:end]
        elif label in (b"IHDR", b"PLTE", b"tRNS"):
            if not checksum_matches(data, start, end):
                raise ImageRejected("damaged", f"png: the checksum of {label.decode()} is wrong")
            header = header or (data[start:end] if label == b"IHDR" else b"")
            palette = palette or (data[start:end] if label == b"PLTE" else b"")
            transparency = transparency or (data[start:end] if label == b"tRNS" else b"")
            continue
        elif not label.isalpha():
            if pixels:
                break
            raise ImageRejected("damaged", f"png: {label!r} is no chunk")
        elif label[:1].isupper():
            raise ImageRejected(
                "unsupported-mode", f"png with the unknown chunk {label.decode()}, which it cannot do without"
            )
        elif label in (b"zTXt", b"tEXt") and data.startswith(_RAW_PROFILE, start):
            profile = profile or data[start:end]
        others += 1
    if len(header) != 13:
        raise ImageRejected("damaged" if ended or pixels else "truncated", "png: it has no header")
    if not pixels:
        raise ImageRejected("damaged" if ended else "truncated", "png: it has no pixels")
    if transparency and len(transparency) < _COLOUR_BYTES.get(header[9], 0):
        raise ImageRejected("damaged", "png: its transparent colour is too short")
    return PngFile(header, palette, transparency, pixels, exif or _exif_of(profile), ended and not others)


def rebuilt(data: bytes, png: PngFile, *, transparency: bool = True) -> bytes:
    """Return the file with nothing but the chunks that decide its pixels, ``tRNS`` only on request."""
    if png.plain and (transparency or not png.transparency):
        return data
    parts: list[bytes | memoryview] = [SIGNATURE, _chunk(b"IHDR", png.header)]
    if png.palette:
        parts.append(_chunk(b"PLTE", png.palette))
    if png.transparency and transparency:
        parts.append(_chunk(b"tRNS", png.transparency))
    view = memoryview(data)
    length = sum(end - start for start, end in png.pixels)
    # Pillow does not look at the checksum of pixels; check_pixel_sums does.
    parts.append(struct.pack(">I4s", length, b"IDAT"))
    parts += [view[start:end] for start, end in png.pixels]
    parts += [bytes(4), _IEND]
    return b"".join(parts)


def check_pixel_sums(data: bytes, png: PngFile) -> None:
    """Raise ImageRejected (``damaged``) if the checksum of a complete chunk of pixels is wrong."""
    for start, end in png.pixels:
        if end + 4 <= len(data) and not checksum_matches(data, start, end):
            raise ImageRejected("damaged", f"png: the checksum of the pixels at byte {start:,} is wrong")


def holds_all_rows(data: bytes, png: PngFile) -> bool:
    """Check by unpacking the pixels whether they are as many as the header says."""
    inflate = zlib.decompressobj()
    wanted = png.unpacked_bytes
    view = memoryview(data)
    try:
        for start, end in png.pixels:
            packed: bytes | memoryview = view[start:end]
            while packed and wanted > 0 and not inflate.eof:
                wanted -= len(inflate.decompress(packed, _BLOCK))
                packed = inflate.unconsumed_tail
        while wanted > 0 and not inflate.eof and (more := inflate.decompress(b"", _BLOCK)):
            wanted -= len(more)
    except zlib.error:
        return False
    return wanted <= 0


def checksum_matches(data: bytes, start: int, end: int) -> bool:
    """Verify the checksum of the chunk whose content is at ``start`` to ``end``."""
    return zlib.crc32(memoryview(data)[start - 4 : end]) == int.from_bytes(data[end : end + 4], "big")


def _chunk(label: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + label + content + struct.pack(">I", zlib.crc32(label + content))


def _exif_of(profile: bytes) -> bytes:
    """Return the EXIF block of a text chunk as ImageMagick writes it: keyword, lines of name and length, hex digits."""
    content = profile.removeprefix(_RAW_PROFILE)
    if content[:1] == b"\0":  # the method of zTXt
        try:
            content = zlib.decompressobj().decompress(content[1:], 2 * _MOST_EXIF)
        except zlib.error:
            return b""
    lines = content.split(b"\n", 3)
    digits = _NOT_HEX.sub(b"", lines[3][: 2 * _MOST_EXIF]) if len(lines) == 4 else b""
    return bytes.fromhex(digits[: len(digits) // 2 * 2].decode())
