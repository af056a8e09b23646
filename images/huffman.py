"""Walk over the Huffman codes of a sequential JPEG, to tell whether its scans hold all blocks (ITU-T T.81, annex F).

Only for sampling factors that simplejpeg does not take: 1.4 s for each megabyte, and no pixels come of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from typing import NamedTuple

_RESTART = re.compile(rb"\xff+[\xd0-\xd7]")
_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
_HUFFMAN, _INTERVAL, _SCAN, _END = 0xC4, 0xDD, 0xDA, 0xD9
_LOOK = 16
_SIDE = 8

Table = list[int]
"""The next 16 bits -> 256 * length of the code + symbol; 0 for bits that are no code."""


class Component(NamedTuple):
    """Number and sampling factors of a component."""

    number: int
    across: int
    down: int


def lacks_blocks(data: bytes, frame: bytes, position: int) -> str | None:
    """Return what is wrong with the scans of a sequential JPEG; None if they hold all blocks and no more.

    Parameters
    ----------
    data
        Bytes of the file.
    frame
        Content of its frame header.
    position
        Position of the first segment.
    """
    height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    components = {n: Component(n, f >> 4, f & 15) for n, f in zip(frame[6::3], frame[7::3], strict=False)}
    most = (max(c.across for c in components.values()), max(c.down for c in components.values()))
    tables: dict[int, Table] = {}
    interval = 0
    while position + 4 <= len(data):
        marker, end = data[position + 1], position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        content = data[position + 4 : end]
        if marker == _END:
            break
        if marker == 0xFF:
            end = position + 1
        elif marker == _HUFFMAN:
            tables.update(_tables(content))
        elif marker == _INTERVAL:
            interval = int.from_bytes(content[:2], "big")
        elif marker == _SCAN:
            found = _MARKER.search(data, end)
            stop = len(data) if found is None else found.start()
            chosen = [(components[n], t) for n, t in zip(content[1:-3:2], content[2:-3:2], strict=False)]
            units = _units((width, height), most, [component for component, _ in chosen])
            blocks = [
                (tables[t >> 4], tables[16 | t & 15])
                for component, t in chosen
                for _ in range(component.across * component.down if len(chosen) > 1 else 1)
            ]
            fault = _scan_fault(data[end:stop], blocks, units, interval)
            if fault is not None:
                return fault
            end = stop
        position = end
    return None


def _units(size: tuple[int, int], most: tuple[int, int], components: Sequence[Component]) -> int:
    """Return the number of units of a scan: groups of blocks, or single ones if it has one component (T.81, A.2)."""
    if len(components) > 1:
        return -(-size[0] // (_SIDE * most[0])) * -(-size[1] // (_SIDE * most[1]))
    across = -(-size[0] * components[0].across // most[0])
    down = -(-size[1] * components[0].down // most[1])
    return -(-across // _SIDE) * -(-down // _SIDE)


def _tables(content: bytes) -> Iterator[tuple[int, Table]]:
    """Yield class and number, and the table, of each table in a segment (T.81, annex C)."""
    while len(content) >= 17:
        table, code, place = [0] * (1 << _LOOK), 0, 17
        for length, count in enumerate(content[1:17], 1):
            for symbol in content[place : place + count]:
                start = code << (_LOOK - length)
                span = 1 << (_LOOK - length)
                table[start : start + span] = [length << 8 | symbol] * span
                code += 1
            code <<= 1
            place += count
        yield content[0], table[: 1 << _LOOK]
        content = content[place:]


def _scan_fault(data: bytes, blocks: Sequence[tuple[Table, Table]], units: int, interval: int) -> str | None:
    """Check each stretch between restarts for its number of blocks."""
    parts = _RESTART.split(data)
    counts = [min(interval, units - first) for first in range(0, units, interval)] if interval else [units]
    if len(parts) < len(counts):
        return "data of its pixels are missing"
    if len(parts) > len(counts):
        return "too many restart markers"
    for part, count in zip(parts, counts, strict=True):
        plain = part.replace(b"\xff\0", b"\xff")
        used = _bits_of(plain, chain.from_iterable(repeat(blocks, count)))
        if used is None:
            return "bad Huffman code"
        if used > 8 * len(plain):
            return "data of its pixels are missing"
        if used <= 8 * (len(plain) - 1):
            return "more data than it has pixels"
    return None


def _bits_of(data: bytes, blocks: Iterator[tuple[Table, Table]]) -> int | None:
    """Return the bits that these blocks take, perhaps more than there are; None for a code that is none."""
    held, count, place, used = 0, 0, 0, 0
    size = len(data)
    for first, rest in blocks:
        table, left = first, 64
        while left > 0:
            while count < 32:
                held = (held << 8 | (data[place] if place < size else 0)) & 0xFFFFFFFFFF
                place += 1
                count += 8
            entry = table[held >> (count - _LOOK) & 0xFFFF]
            if not entry:
                return None if used + _LOOK <= 8 * size else 8 * size + 1
            symbol = entry & 0xFF
            bits = (entry >> 8) + (symbol & 15)
            count -= bits
            used += bits
            if used > 8 * size:
                return used
            if left == 64 and table is first:
                left, table = 63, rest
            elif symbol == 0:
                break
            else:
                left -= (symbol >> 4) + 1
    return used
