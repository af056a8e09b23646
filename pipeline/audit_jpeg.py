"""What a JPEG says about its own compression before the first pixel: tables, quality, subsampling, kinds of segments.

The segments before the scan are walked as ITU-T T.81, annex B lays them out. Nothing is decoded, and a file that breaks
off or contradicts itself gives what was read until there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

_NAMES = {0xC4: "DHT", 0xCC: "DAC", 0xDB: "DQT", 0xDD: "DRI", 0xFE: "COM"}
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_SCAN = 0xDA
_MOST_SEGMENTS = 10_000

# The luminance table of T.81, annex K, in the order of its rows; qualities 1..100 of the IJG's library scale it.
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
        key=lambda place: (sum(place), place[0] if sum(place) % 2 else place[1]),
    )
)
"""Place in a JPEG's order of coefficients to 8 * row + column."""


class Segment(NamedTuple):
    """One segment before the scan: its marker's second byte, and what it holds."""

    marker: int
    content: bytes

    @property
    def name(self) -> str:
        """The marker in letters; of an application's segment also the name that it gives itself."""
        if 0xE0 <= self.marker <= 0xEF:
            label = self.content[:28].split(b"\0", 1)[0]
            word = "".join(map(chr, label)) if label.isascii() and label.decode().isprintable() else ""
            return f"APP{self.marker - 0xE0}" + (f"({word.rsplit('/', 2)[0][-20:]})" if word else "")
        if self.marker in _FRAMES:
            return f"SOF{self.marker - 0xC0}"
        return _NAMES.get(self.marker, f"{self.marker:02X}")

    @property
    def is_metadata(self) -> bool:
        """Whether a decoder may pass it over."""
        return 0xE0 <= self.marker <= 0xEF or self.marker == 0xFE


@dataclass(frozen=True, slots=True)
class JpegFacts:
    """What the segments say.

    tables : quantisation steps by table number, 64 each, row by row. sampling : as in ``4:2:0``, or grey.
    """

    tables: Mapping[int, tuple[int, ...]]
    sampling: str
    progressive: bool
    segments: tuple[Segment, ...]


def jpeg_facts(data: bytes) -> JpegFacts:
    """Read what stands before a JPEG's first scan. Never raises: what cannot be read is left out."""
    segments = _segments(data)
    tables: dict[int, tuple[int, ...]] = {}
    sampling, progressive = "unknown", False
    for segment in segments:
        if segment.marker == 0xDB:
            tables.update(_tables(segment.content))
        elif segment.marker in _FRAMES:
            sampling, progressive = _sampling(segment.content), segment.marker in _PROGRESSIVE
    return JpegFacts(tables, sampling, progressive, tuple(segments))


def standard_table(quality: int) -> tuple[int, ...]:
    """Return the luminance steps that the IJG's library uses at a quality of 1..100, row by row."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return tuple(min(max((step * scale + 50) // 100, 1), 255) for step in _STANDARD)


def nearest_quality(steps: Mapping[int, int]) -> int:
    """Return the quality whose standard steps are nearest to some luminance steps.

    steps : 8 * row + column -> step. The distance is the mean relative difference; the higher quality wins a tie.
    """

    def distance(quality: int) -> float:
        table = _TABLES[quality]
        return sum(abs(step - table[place]) / max(step, table[place]) for place, step in steps.items())

    return min(range(100, 0, -1), key=distance)


_TABLES = {quality: standard_table(quality) for quality in range(1, 101)}


def _segments(data: bytes) -> list[Segment]:
    found: list[Segment] = []
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF and len(found) < _MOST_SEGMENTS:
        marker = data[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == _SCAN or length < 2:
            break
        found.append(Segment(marker, data[place + 4 : place + 2 + length]))
        place += 2 + length
    return found


def _tables(content: bytes) -> dict[int, tuple[int, ...]]:
    found = {}
    while content:
        width = 2 if content[0] >> 4 else 1
        values = content[1 : 1 + 64 * width]
        if len(values) < 64 * width:
            break
        table = [0] * 64
        for number, place in enumerate(ZIGZAG):
            table[place] = int.from_bytes(values[width * number : width * (number + 1)], "big")
        found[content[0] & 15] = tuple(table)
        content = content[1 + 64 * width :]
    return found


def _sampling(content: bytes) -> str:
    """Name the chroma subsampling of a frame header."""
    count = content[5] if len(content) > 5 else 0
    factors = [(byte >> 4, byte & 15) for byte in content[7 : 7 + 3 * (count - 1) + 1 : 3]]
    if count == 1 or not factors:
        return "grey" if count == 1 else "unknown"
    known = {(1, 1): "4:4:4", (2, 1): "4:2:2", (2, 2): "4:2:0", (1, 2): "4:4:0", (4, 1): "4:1:1"}
    if len(factors) == count and all(factor == (1, 1) for factor in factors[1:]):
        return known.get(factors[0], f"{factors[0][0]}x{factors[0][1]}")
    return " ".join(f"{wide}x{high}" for wide, high in factors)
