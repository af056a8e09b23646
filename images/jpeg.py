"""Read how a JPEG was compressed: quantisation tables, quality, chroma subsampling, kinds of segments.

The segments before the first scan are parsed as in ITU-T T.81, annex B. Nothing is decoded. A truncated or inconsistent
file gives what was read up to that point.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

DQT = 0xDB
"""Second byte of the marker of a segment that defines quantisation tables."""

_NAMES = {0xC4: "DHT", 0xCC: "DAC", 0xDB: "DQT", 0xDD: "DRI", 0xFE: "COM"}
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_SCAN, _END = 0xDA, 0xD9
_EXIF, _ADOBE, _COMMENT = 0xE1, 0xEE, 0xFE
_JFIF = b"JFIF\0\1\1\0\0\1\0\1\0\0"
_TRANSFORMS = {3: ((0, 1), 1), 4: ((0, 2), 2)}
"""Channels -> the transforms of Adobe's segment that there are, and the one that decoders take others for."""
_MOST_SEGMENTS = 10_000
_MOST_REMEMBERED = 1024  # bytes of tables

# The luminance table of T.81, annex K, row by row. The IJG library scales it for qualities 1..100.
_STANDARD = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip

ZIGZAG = tuple(
    8 * i + j
    for i, j in sorted(
        ((i, j) for i in range(8) for j in range(8)),
        key=lambda index: (sum(index), index[0] if sum(index) % 2 else index[1]),
    )
)
"""Position in the zigzag order -> 8 * row + column (T.81, figure 5)."""


Segment = tuple[int, bytes]
"""One segment before the scan: second byte of its marker, and its content."""


class Quantisation(NamedTuple):
    """Quantisation tables of a JPEG.

    Attributes
    ----------
    tables
        Table number -> 64 steps, row by row.
    quality
        Quality (1..100) whose standard luminance table is nearest to table 0; None if there is no table 0.
    name
        The first steps of table 0 and a hash of all tables.
    whole
        Whether all tables are complete.
    """

    tables: Mapping[int, tuple[int, ...]]
    quality: int | None
    name: str
    whole: bool


class JpegInfo(NamedTuple):
    """Contents of the segments before the first scan.

    Attributes
    ----------
    quantisation
        Quantisation tables.
    sampling
        Chroma subsampling such as ``4:2:0``, ``grey``, or ``unknown``.
    progressive
        Whether the frame is progressive.
    segments
        Segments in file order.
    reaches_scan
        Whether all segments are complete, including the header of the first scan.
    scan_at
        Position in the file of the first scan's marker, if it is reached.
    """

    quantisation: Quantisation
    sampling: str
    progressive: bool
    segments: list[Segment]
    reaches_scan: bool
    scan_at: int

    @property
    def tables(self) -> Mapping[int, tuple[int, ...]]:
        """Table number -> 64 quantisation steps, row by row."""
        return self.quantisation.tables


def parse_jpeg(data: bytes) -> JpegInfo:
    """Parse the segments before a JPEG's first scan. Never raises: what cannot be read is left out."""
    segments, reaches_scan, scan_at = _segments(data)
    tables = []
    sampling, progressive = "unknown", False
    for marker, content in segments:
        if marker == DQT:
            tables.append(content)
        elif marker in _FRAMES:
            sampling, progressive = _sampling(content), marker in _PROGRESSIVE
    return JpegInfo(_quantisation(tuple(tables)), sampling, progressive, segments, reaches_scan, scan_at)


def segment_names(segments: Sequence[Segment]) -> list[str]:
    """Return a name for each segment: its marker, and the identifier of an application segment."""
    return [
        _application_name(marker, content[:28]) if 0xE0 <= marker <= 0xEF else _MARKER_NAMES[marker]
        for marker, content in segments
    ]


def is_metadata(name: str) -> bool:
    """Check whether a decoder may skip a segment with this name."""
    return name.startswith("APP") or name == "COM"


def exif_block(info: JpegInfo) -> bytes:
    """Return the EXIF block of a JPEG; empty if it has none."""
    return next(
        (content for marker, content in info.segments if marker == _EXIF and content.startswith(b"Exif\0")), b""
    )


def without_metadata(data: bytes, info: JpegInfo) -> bytes:
    """Return a JPEG without the segments that a decoder may skip. Those of JFIF and Adobe, which name colours, stay.

    What they say beside that is put to their usual values, and an unknown transform of Adobe's to the one that decoders
    take it for. A file that does not reach its first scan is returned as it is.
    """
    extras = [content for marker, content in info.segments if 0xE0 <= marker <= 0xEF or marker == _COMMENT]
    if not info.reaches_scan or not extras or extras == [_JFIF]:
        return data
    channels = next((content[5] for marker, content in info.segments if marker in _FRAMES and len(content) > 5), 3)
    parts = [data[:2]]
    for marker, content in info.segments:
        if marker == 0xE0 and content.startswith(b"JFIF\0") and len(content) >= len(_JFIF):
            kept = _JFIF
        elif marker == _ADOBE and content.startswith(b"Adobe") and len(content) >= 12:
            known, assumed = _TRANSFORMS.get(channels, _TRANSFORMS[3])
            transform = content[11] if content[11] in known else assumed
            kept = content[:11] + bytes((transform,))
        elif 0xE0 <= marker <= 0xEF or marker == _COMMENT:
            continue
        else:
            kept = content
        parts += [bytes((0xFF, marker)), (len(kept) + 2).to_bytes(2, "big"), kept]
    return b"".join([*parts, memoryview(data)[info.scan_at :]])


def standard_table(quality: int) -> tuple[int, ...]:
    """Return the 64 luminance steps that the IJG library uses at a quality of 1..100, row by row."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return tuple(min(max((step * scale + 50) // 100, 1), 255) for step in _STANDARD)


def nearest_quality(steps: Mapping[int, int]) -> int:
    """Return the quality whose standard luminance steps are nearest to the given ones.

    The distance is the mean relative difference. The higher quality wins a tie.

    Parameters
    ----------
    steps
        8 * row + column -> step, for some or all coefficients.
    """
    found = np.array(list(steps.values()), dtype=np.float64)
    tables = _TABLES[:, list(steps)]
    distances = (np.abs(found - tables) / np.maximum(found, tables)).sum(axis=1)
    return 100 - int(np.argmin(distances))


_TABLES = np.array([standard_table(quality) for quality in range(100, 0, -1)], dtype=np.float64)
_MARKER_NAMES = {
    marker: f"SOF{marker - 0xC0}" if marker in _FRAMES else _NAMES.get(marker, f"{marker:02X}") for marker in range(256)
}


@lru_cache(maxsize=4096)
def _application_name(marker: int, start: bytes) -> str:
    label = start.split(b"\0", 1)[0]
    name = label.decode() if label.isascii() and label.decode().isprintable() else ""
    return f"APP{marker - 0xE0}" + (f"({name.rsplit('/', 2)[0][-20:]})" if name else "")


def _segments(data: bytes) -> tuple[list[Segment], bool, int]:
    """Return the segments before the first scan, whether its header follows them, and the position after them."""
    found: list[Segment] = []
    position, size = 2, len(data)
    while position + 4 <= size and data[position] == 0xFF and len(found) < _MOST_SEGMENTS:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        end = position + 2 + (data[position + 2] << 8 | data[position + 3])
        if marker == _SCAN or end < position + 4:
            return found, marker == _SCAN and position + 4 <= end <= size, position
        found.append((marker, data[position + 4 : end]))
        position = end
    return found, False, position


def _quantisation(contents: tuple[bytes, ...]) -> Quantisation:
    """Parse quantisation tables. Tables of a usual size are cached: many files share them."""
    usual = sum([len(content) for content in contents]) <= _MOST_REMEMBERED
    return _known_quantisation(contents) if usual else _read_quantisation(contents)


def _read_quantisation(contents: tuple[bytes, ...]) -> Quantisation:
    tables: dict[int, tuple[int, ...]] = {}
    whole = True
    for content in contents:
        whole = _add_tables(content, tables) and whole
    luminance = tables.get(0)
    first = ",".join(str(step) for step in (luminance or ())[:4])
    return Quantisation(
        tables=tables,
        quality=None if luminance is None else nearest_quality(dict(enumerate(luminance))),
        name=f"{first}… #{hashlib.sha256(repr(sorted(tables.items())).encode()).hexdigest()[:6]}",
        whole=whole,
    )


_known_quantisation = lru_cache(maxsize=1024)(_read_quantisation)


def _add_tables(content: bytes, tables: dict[int, tuple[int, ...]]) -> bool:
    """Add the tables of one segment to ``tables``; return whether it holds complete tables and nothing else."""
    while content:
        width = 2 if content[0] >> 4 else 1
        values = content[1 : 1 + 64 * width]
        if len(values) < 64 * width:
            return False
        table = [0] * 64
        for number, position in enumerate(ZIGZAG):
            table[position] = int.from_bytes(values[width * number : width * (number + 1)], "big")
        tables[content[0] & 15] = tuple(table)
        content = content[1 + 64 * width :]
    return True


def _sampling(content: bytes) -> str:
    """Return the chroma subsampling of a frame header."""
    count = content[5] if len(content) > 5 else 0
    factors = [(byte >> 4, byte & 15) for byte in content[7 : 7 + 3 * (count - 1) + 1 : 3]]
    if count == 1 or not factors:
        return "grey" if count == 1 else "unknown"
    known = {(1, 1): "4:4:4", (2, 1): "4:2:2", (2, 2): "4:2:0", (1, 2): "4:4:0", (4, 1): "4:1:1"}
    if len(factors) == count and all(factor == (1, 1) for factor in factors[1:]):
        return known.get(factors[0], f"{factors[0][0]}x{factors[0][1]}")
    return " ".join(f"{wide}x{high}" for wide, high in factors)
