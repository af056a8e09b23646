"""The headers of plain JPEG and PNG files, read without Pillow, where both are bound to agree.

A scan of many small files spends more on Pillow's parsing than on reading and hashing them. A file counts as plain if
nothing in it can make Pillow refuse it, turn it, or see it otherwise than its frame header says: a JPEG of 8 bits and
one or three channels, whole from its start to its first scan, with neither EXIF nor XMP nor further pictures; a PNG of
8-bit channels without palette whose header's checksums hold and whose other chunks are of a few simple kinds. Whatever
is not, is left to Pillow: None is returned, never an error.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from .jpeg import DQT, JpegInfo

_ADOBE, _ICC = b"Adobe", b"ICC_PROFILE\0"
_ANY_CONTENT = frozenset({0xC4, 0xDD, 0xFE, *range(0xE3, 0xED), 0xEF})  # Pillow passes over them: DHT, DRI, COM, APPn
_FRAMES = (0xC0, 0xC1, 0xC2)
_JPEG_MODES = {1: "L", 3: "RGB"}

_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_PNG_MODES = {(8, 0): "L", (8, 2): "RGB", (8, 4): "LA", (8, 6): "RGBA"}
_PNG_SIMPLE = {b"sRGB": 1, b"gAMA": 4, b"pHYs": 9, b"cHRM": 32}
"""Chunks before the pixels that change nothing here, and their lengths."""


class JpegHeader(NamedTuple):
    """What the frame header says: pixels, and Pillow's mode."""

    mode: str
    width: int
    height: int


class PngHeader(NamedTuple):
    """The same of a PNG, whether it is interlaced, and label and length of its chunks in their order."""

    mode: str
    width: int
    height: int
    interlaced: bool
    chunks: list[tuple[str, int]]


def parse_jpeg_header(facts: JpegInfo) -> JpegHeader | None:
    """Return what the segments before a JPEG's first scan tell, if the file is a plain one."""
    frame = None
    for marker, content in facts.segments:
        if marker in _FRAMES and frame is None:
            frame = content
        elif marker != DQT and marker not in _ANY_CONTENT and not _is_simple(marker, content):
            return None
    if frame is None or len(frame) < 6 or not facts.reaches_scan or not facts.quantisation.whole:
        return None
    mode = _JPEG_MODES.get(frame[5])
    height, width = struct.unpack_from(">HH", frame, 1)
    if mode is None or frame[0] != 8 or len(frame) != 6 + 3 * frame[5] or not width or not height:
        return None
    return JpegHeader(mode, width, height)


def _is_simple(marker: int, content: bytes) -> bool:
    """Say whether an application's segment can be passed over: long enough for what Pillow reads of it."""
    if marker == 0xE0:
        return not content.startswith(b"JFIF") or len(content) >= 12
    if marker == 0xE2:
        return content.startswith(_ICC) and len(content) > len(_ICC) + 2
    return marker == 0xEE and (not content.startswith(_ADOBE) or len(content) >= 12)


def parse_png_header(data: bytes) -> PngHeader | None:
    """Return what a PNG's chunks tell, if the file is a plain one and whole."""
    if not data.startswith(_PNG_START) or len(data) < 33:
        return None
    width, height, depth, colour, _, filtering, interlace, checksum = struct.unpack_from(">IIBBBBBI", data, 16)
    mode = _PNG_MODES.get((depth, colour))
    if mode is None or not width or not height or filtering or zlib.crc32(data[12:29]) != checksum:
        return None
    chunks, place, pixels = [("IHDR", 13)], 33, False
    while place + 12 <= len(data):
        length, label = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if end > len(data):
            return None
        if label == b"IDAT":
            pixels = True
        elif label == b"IEND":
            chunks.append(("IEND", length))
            return PngHeader(mode, width, height, interlace != 0, chunks) if pixels and end == len(data) else None
        elif pixels or _PNG_SIMPLE.get(label) != length or not _holds(data, place, length):
            return None
        chunks.append((label.decode(), length))
        place = end
    return None


def _holds(data: bytes, place: int, length: int) -> bool:
    """Check the checksum of a chunk."""
    end = place + 8 + length
    return zlib.crc32(data[place + 4 : end]) == int.from_bytes(data[end : end + 4], "big")
