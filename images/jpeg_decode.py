"""Decode a JPEG to pixels, and refuse one whose scans lack data (ITU-T T.81).

libjpeg fills what is missing with grey and only warns of it; Pillow drops the warning. ``simplejpeg`` decodes with the
same library and the same settings, so to the same pixels, and raises instead. What no warning tells is read off the
scans' headers: whether every coefficient of every component was sent in full.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from .file import ImageRejected
from .huffman import lacks_blocks
from .jpeg import JpegInfo, parse_jpeg, without_metadata

_END_MARKER = b"\xff\xd9"
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""A marker that ends entropy-coded data: neither a stuffed byte nor a restart."""

_SCAN, _END = 0xDA, 0xD9
_SEQUENTIAL, _PROGRESSIVE = frozenset({0xC0, 0xC1}), 0xC2
_ARITHMETIC = frozenset({0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_COEFFICIENTS = 64
_NOT_SENT = 99
_HUFFMAN = 0xC4
_TABLE_HEADER = 17
_ONE_COEFFICIENT = 0x01
_ZEROS, _MORE_ZEROS = 24, 64
"""Bytes of zeros that hold 64 coefficients of three bits, more than a block has; and two blocks of luma with chroma."""
_COLOURS = {1: "GRAY", 3: "RGB", 4: "CMYK"}


class JpegFrame(NamedTuple):
    """The frame header of a JPEG.

    Attributes
    ----------
    marker
        Second byte of its marker, which names the process.
    precision
        Bits per sample.
    width, height
        In pixels.
    components
        Numbers of the components.
    """

    marker: int
    precision: int
    width: int
    height: int
    components: tuple[int, ...]


def read_frame(info: JpegInfo, *, two: bool = False) -> JpegFrame:
    """Return the frame header of a JPEG, which may have two components only on request.

    Raises
    ------
    ImageRejected
        ``truncated`` or ``damaged`` if it has none, ``unsupported-mode`` if its process is not decoded here.
    """
    found = next(((marker, content) for marker, content in info.segments if marker in _FRAMES), None)
    if found is None or len(found[1]) < 6 + 3 * found[1][5]:
        raise ImageRejected("damaged", "jpeg: it has no frame header before its first scan")
    marker, content = found
    count = content[5]
    height, width = int.from_bytes(content[1:3], "big"), int.from_bytes(content[3:5], "big")
    frame = JpegFrame(marker, content[0], width, height, tuple(content[6 : 6 + 3 * count : 3]))
    if marker in _ARITHMETIC:
        raise ImageRejected("unsupported-mode", "jpeg: arithmetic coding, which does not show whether data are missing")
    if marker not in _SEQUENTIAL and marker != _PROGRESSIVE:
        raise ImageRejected("unsupported-mode", f"jpeg: the process SOF{marker - 0xC0}, lossless or hierarchical")
    if frame.precision != 8:
        raise ImageRejected("unsupported-mode", f"jpeg: {frame.precision} bits per sample, not 8")
    if count not in _COLOURS and not (two and count == 2):
        raise ImageRejected("unsupported-mode", f"jpeg: {count} components")
    if not height or not width:
        raise ImageRejected("unsupported-mode", "jpeg: its height is not in its frame header")
    return frame


def decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    """Decode a JPEG that has all its data.

    Parameters
    ----------
    data
        Bytes of the whole file. Its end marker may be missing.

    Returns
    -------
    uint8 array of shape (height, width, 3)
        RGB as stored: the orientation is not applied.

    Raises
    ------
    ImageRejected
        ``truncated``, ``damaged`` or ``unsupported-mode``.
    """
    info = parse_jpeg(data)
    frame = read_frame(info)
    plain = without_metadata(data, info)
    end = _read_scans(data, info.scan_at, frame)
    if frame.marker in _SEQUENTIAL and data.find(bytes(_ZEROS), info.scan_at, end) >= 0:
        _refuse_zeros(data, info, frame, end)
    if end is None:
        plain += _END_MARKER
    try:
        pixels = _decode_strictly(plain, _COLOURS[len(frame.components)])
    except ValueError as error:
        if "subsampling" not in str(error):
            raise _refusal(str(error)) from None
        return _decode_unusual_sampling(plain, frame)
    if len(frame.components) == 3:
        return pixels
    if len(frame.components) == 1:
        return np.repeat(pixels, 3, axis=2)
    inverted = Image.fromarray(np.subtract(255, pixels, out=pixels), "CMYK")  # Adobe's convention, as Pillow reads it
    return np.asarray(inverted.convert("RGB"))


def check_jpeg(data: bytes) -> None:
    """Raise as :func:`decode_jpeg` for a JPEG inside a TIFF, which may have two components: grey and alpha."""
    info = parse_jpeg(data)
    frame = read_frame(info, two=True)
    if len(frame.components) == 2:
        _check_blocks(data, frame)
    else:
        decode_jpeg(data)


def _decode_strictly(data: bytes, colours: str) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colours, strict=True)
    return pixels


def _refusal(message: str) -> ImageRejected:
    """Return the rejection for a warning or an error of libjpeg."""
    if "remature end" in message or "found marker 0xd9 instead of RST" in message:
        return ImageRejected("truncated", "jpeg: data of its pixels are missing")
    return ImageRejected("damaged", f"jpeg: {message.removeprefix('Corrupt JPEG data: ')}")


def _decode_unusual_sampling(data: bytes, frame: JpegFrame) -> NDArray[np.uint8]:
    """Decode with Pillow the sampling factors that simplejpeg does not take, if all blocks are there."""
    _check_blocks(data, frame)
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    return np.asarray(image.convert("RGB"))


def _check_blocks(data: bytes, frame: JpegFrame) -> None:
    """Raise ImageRejected unless the scans of a JPEG that simplejpeg does not take hold all blocks."""
    if frame.marker == _PROGRESSIVE:
        raise ImageRejected(
            "unsupported-mode", "jpeg: progressive with sampling factors that hide missing data; save it again"
        )
    header = next(content for marker, content in parse_jpeg(data).segments if marker == frame.marker)
    try:
        fault = lacks_blocks(data, header, 2)
    except (LookupError, ValueError):
        fault = "its tables or scans cannot be read"
    if fault is not None:
        raise ImageRejected("truncated" if "missing" in fault else "damaged", f"jpeg: {fault}")


def _refuse_zeros(data: bytes, info: JpegInfo, frame: JpegFrame, end: int | None) -> None:
    """Raise ImageRejected (``damaged``) if a long run of zeros cannot be a sequential JPEG's data.

    In the standard's table for luma, and in those that are made for a photograph, zeros stand for coefficients of -1
    without an end. libjpeg takes such blocks for sound, as long as the number of blocks comes out right.
    """
    firsts = [symbol for marker, content in info.segments if marker == _HUFFMAN for symbol in _first_symbols(content)]
    certain = bool(firsts) and all(symbol == _ONE_COEFFICIENT for symbol in firsts)
    interleaved = data[info.scan_at + 4] == len(frame.components)  # so luma has its share in every run of some length
    lost = _ONE_COEFFICIENT in firsts and interleaved and data.find(bytes(_MORE_ZEROS), info.scan_at, end) >= 0
    if certain or lost:
        raise ImageRejected("damaged", "jpeg: zeros in place of its data")


def _first_symbols(content: bytes) -> Iterator[int]:
    """Yield the symbol whose code is all zeros, for each table of AC coefficients in a segment (T.81, B.2.4.2)."""
    while len(content) > _TABLE_HEADER:
        length = sum(content[1:_TABLE_HEADER])
        if content[0] >> 4:
            yield content[_TABLE_HEADER]
        content = content[_TABLE_HEADER + length :]


def _read_scans(data: bytes, position: int, frame: JpegFrame) -> int | None:
    """Check by the headers of all scans that every coefficient was sent in full; return where the end marker is.

    A progressive file may leave coefficients out; encoders do not, and one whose last scans are cut off looks the same.
    """
    sent = {number: [_NOT_SENT] * _COEFFICIENTS for number in frame.components}
    end = None
    while position + 2 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == _END:
            end = position
            break
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        after = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == _SCAN:
            _note_scan(data[position + 4 : after], frame, sent)
            found = _MARKER.search(data, after)
            after = len(data) if found is None else found.start()
        position = after
    if any(bit for bits in sent.values() for bit in bits):
        raise ImageRejected("truncated", "jpeg: some of its scans are missing")
    return end


def _note_scan(header: bytes, frame: JpegFrame, sent: dict[int, list[int]]) -> None:
    """Note which bits of which coefficients a scan sends (T.81, B.2.3)."""
    count = header[0] if header else 0
    if len(header) < 4 + 2 * count:
        return
    first, last, shift = header[1 + 2 * count], header[2 + 2 * count], header[3 + 2 * count] & 15
    if frame.marker != _PROGRESSIVE:
        first, last, shift = 0, _COEFFICIENTS - 1, 0
    for number in header[1 : 1 + 2 * count : 2]:
        if number in sent and first <= last < _COEFFICIENTS:
            sent[number][first : last + 1] = [shift] * (last + 1 - first)
