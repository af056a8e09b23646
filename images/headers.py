"""Read the header of an image file without decoding pixels: size, format, and traits of the encoder.

Pillow reads any header. Most files of most data sets are plain, however: a JPEG without EXIF, or a PNG without metadata
that changes its meaning. For these, parsers of our own give the same result several times faster; without them, a scan
of many small files would spend more time in Pillow's parser than on reading and hashing.

A file is plain if nothing in it can make Pillow reject it, rotate it, or report another size than its frame header: a
JPEG of 8 bits and one or three channels, complete up to its first scan, without EXIF, XMP or further images; a PNG of
8-bit channels without a palette, whose header checksums are right and whose other chunks are of a few simple kinds.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from PIL import Image

from ..choices import MAX_PIXELS
from .file import PILLOW_ERRORS, rejection
from .jpeg import DQT, JpegInfo, is_metadata, parse_jpeg, segment_names
from .opening import format_name, open_image, orientation

_MOST_CHUNKS = 100_000
_MOST_LABELS = 40
_PNG_SIGNATURE_BYTES = 8


class HeaderTraits(NamedTuple):
    """Traits of the encoder in a header. A field is None where it does not apply.

    Attributes
    ----------
    mode
        Pillow's mode, with the bits per channel if they are not 8.
    metadata
        Kinds of segments or chunks that a decoder may skip.
    structure
        Kinds of all segments or chunks in file order, which identify an encoder.
    scan
        ``plain``, ``progressive`` or ``interlaced``.
    jpeg_quality
        1..100.
    jpeg_tables
        Name of the quantisation tables.
    subsampling
        Chroma subsampling such as ``4:2:0``.
    """

    mode: str
    metadata: str
    structure: str
    scan: str
    jpeg_quality: int | None = None
    jpeg_tables: str | None = None
    subsampling: str | None = None

    def as_text(self) -> str:
        """Return the traits as a JSON list. Files from one encoder have the same text."""
        return _traits_text(self)


class FileHeader(NamedTuple):
    """Size, format and traits of an image file.

    Attributes
    ----------
    width, height
        Size in pixels as stored.
    turned
        Whether the image is displayed rotated by 90 degrees.
    format
        File format in lower case.
    metadata_bytes
        Bytes of the segments or chunks that a decoder may skip.
    traits
        Text of :meth:`HeaderTraits.as_text`.
    """

    width: int
    height: int
    turned: bool
    format: str
    metadata_bytes: int
    traits: str


@lru_cache(maxsize=4096)
def parse_traits(text: str) -> HeaderTraits:
    """Parse the text of :meth:`HeaderTraits.as_text`; raise ValueError for any other text."""
    values = json.loads(text)
    if not isinstance(values, list) or len(values) != len(HeaderTraits._fields):
        raise ValueError("not the traits of a file")
    texts = [*values[:4], *values[5:]]
    if not all(isinstance(text, str) for text in texts[:4]) or not isinstance(values[4], int | None):
        raise ValueError("not the traits of a file")
    if not all(isinstance(value, str | None) for value in texts):
        raise ValueError("not the traits of a file")
    return HeaderTraits(*values)


def read_header(data: bytes) -> FileHeader:
    """Read the header of an image file. Raises ImageRejected as :func:`.opening.open_image` does."""
    try:
        return _read_plain_header(data) or read_header_with_pillow(data)
    except PILLOW_ERRORS as error:
        raise rejection(data, error) from None


def _read_plain_header(data: bytes) -> FileHeader | None:
    """Read the header of a plain JPEG or PNG; None for any other file."""
    if data.startswith(b"\xff\xd8\xff"):
        found = parse_jpeg(data)
        jpeg = parse_jpeg_header(found)
        if jpeg is not None and jpeg.width * jpeg.height <= MAX_PIXELS:
            return _of_jpeg(found, jpeg.mode, jpeg.width, jpeg.height, turned=False)
        return None
    png = parse_png_header(data)
    if png is not None and png.width * png.height <= MAX_PIXELS:
        return _of_chunks("png", png.mode, png.width, png.height, png.chunks, interlaced=png.interlaced)
    return None


def read_header_with_pillow(data: bytes) -> FileHeader:
    """Read the header of any accepted file with Pillow. :func:`read_header` gives the same result."""
    image = open_image(data)
    kind = format_name(image)
    turned = orientation(image) >= 5
    if kind == "jpeg":
        return _of_jpeg(parse_jpeg(data), image.mode, image.width, image.height, turned=turned)
    return _of_chunks(
        kind,
        _mode(image, data, kind),
        image.width,
        image.height,
        list(_chunks(data, kind)),
        interlaced=bool(image.info.get("interlace")),
        turned=turned,
        named=_named(image, kind),
    )


def _of_jpeg(info: JpegInfo, mode: str, width: int, height: int, *, turned: bool) -> FileHeader:
    names = tuple(segment_names(info.segments))
    metadata, structure = _known_kinds(names) if len(names) <= _MOST_LABELS else _kinds(names)
    traits = HeaderTraits(
        mode,
        metadata,
        structure,
        "progressive" if info.progressive else "plain",
        info.quantisation.quality,
        info.quantisation.name,
        info.sampling,
    )
    extra = sum([len(content) for marker, content in info.segments if 0xE0 <= marker <= 0xEF or marker == 0xFE])
    return FileHeader(width, height, turned, "jpeg", extra, traits.as_text())


def _kinds(names: tuple[str, ...]) -> tuple[str, str]:
    """Return metadata and structure of a JPEG with these segments."""
    return _joined(sorted({name for name in names if is_metadata(name)})), _joined(_without_repeats(names))


_known_kinds = lru_cache(maxsize=1024)(_kinds)


def _of_chunks(
    kind: str,
    mode: str,
    width: int,
    height: int,
    chunks: Sequence[tuple[str, int]],
    *,
    interlaced: bool,
    turned: bool = False,
    named: Collection[str] = (),
) -> FileHeader:
    """Return the header of a file other than a JPEG; ``named`` is metadata that is not among its chunks."""
    extras = [(label, length) for label, length in chunks if _is_metadata(label, kind)]
    traits = HeaderTraits(
        mode=mode,
        metadata=_joined(sorted({label for label, _ in extras}.union(named))),
        structure=_joined(_without_repeats([label for label, _ in chunks])),
        scan="interlaced" if interlaced else "plain",
    )
    return FileHeader(width, height, turned, kind, sum(length for _, length in extras), traits.as_text())


@lru_cache(maxsize=4096)
def _traits_text(traits: HeaderTraits) -> str:
    return json.dumps(traits, ensure_ascii=False, separators=(",", ":"))


def _mode(image: Image.Image, data: bytes, kind: str) -> str:
    depth = data[24] if kind == "png" and len(data) > 24 else 8
    return image.mode if depth == 8 else f"{image.mode} {depth}-bit"


def _named(image: Image.Image, kind: str) -> set[str]:
    """Return the names of metadata that Pillow found, for formats whose chunks are not parsed here."""
    if kind in ("png", "webp"):
        return set()
    return {str(name) for name, value in image.info.items() if isinstance(value, (bytes, str))}


def _chunks(data: bytes, kind: str) -> Iterator[tuple[str, int]]:
    """Yield label and length of the chunks of a PNG or WebP, up to the first inconsistency."""
    big, position = kind == "png", _PNG_SIGNATURE_BYTES if kind == "png" else 12
    if kind not in ("png", "webp"):
        return
    for _ in range(_MOST_CHUNKS):
        if position + 8 > len(data):
            return
        first, second = data[position : position + 4], data[position + 4 : position + 8]
        label, length = (second, int.from_bytes(first, "big")) if big else (first, int.from_bytes(second, "little"))
        if not (label.isascii() and label.decode().isprintable()):
            return
        yield _label(label.decode().strip(), data[position + 8 : position + 8 + 40]), min(length, len(data) - position)
        position += 12 + length if big else 8 + length + length % 2


def _label(label: str, start: bytes) -> str:
    """Add the keyword to the label of a PNG text chunk: generators store prompts under their own keyword."""
    if label not in ("tEXt", "zTXt", "iTXt"):
        return label
    keyword = start.split(b"\0", 1)[0].decode("latin-1")
    return f"{label}({keyword[:20]})" if keyword.isprintable() else label


def _is_metadata(label: str, kind: str) -> bool:
    """Check whether a decoder may skip a chunk: in a PNG, its first letter is lower case."""
    return label[:1].islower() if kind == "png" else label in ("EXIF", "XMP", "ICCP")


def _without_repeats(labels: Sequence[str]) -> list[str]:
    return [label for number, label in enumerate(labels) if number == 0 or label != labels[number - 1]]


def _joined(labels: list[str]) -> str:
    return " ".join(labels if len(labels) <= _MOST_LABELS else [*labels[:_MOST_LABELS], "…"])


_ADOBE, _ICC = b"Adobe", b"ICC_PROFILE\0"
_ANY_CONTENT = frozenset({0xC4, 0xDD, 0xFE, *range(0xE3, 0xED), 0xEF})  # Pillow skips them: DHT, DRI, COM, APPn
_FRAMES = (0xC0, 0xC1, 0xC2)
_JPEG_MODES = {1: "L", 3: "RGB"}

_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_PNG_MODES = {(8, 0): "L", (8, 2): "RGB", (8, 4): "LA", (8, 6): "RGBA"}
_PNG_SIMPLE = {b"sRGB": 1, b"gAMA": 4, b"pHYs": 9, b"cHRM": 32}
"""Chunks before the pixels that change nothing here -> their length in bytes."""


class JpegHeader(NamedTuple):
    """Pillow's mode and the size in pixels, from the frame header of a plain JPEG."""

    mode: str
    width: int
    height: int


class PngHeader(NamedTuple):
    """Pillow's mode, the size in pixels, interlacing, and (label, length) of each chunk of a plain PNG."""

    mode: str
    width: int
    height: int
    interlaced: bool
    chunks: list[tuple[str, int]]


def parse_jpeg_header(info: JpegInfo) -> JpegHeader | None:
    """Return the header of a JPEG from the segments before its first scan; None if the file is not plain."""
    frame = None
    for marker, content in info.segments:
        if marker in _FRAMES and frame is None:
            frame = content
        elif marker != DQT and marker not in _ANY_CONTENT and not _is_simple(marker, content):
            return None
    if frame is None or len(frame) < 6 or not info.reaches_scan or not info.quantisation.whole:
        return None
    mode = _JPEG_MODES.get(frame[5])
    height, width = struct.unpack_from(">HH", frame, 1)
    if mode is None or frame[0] != 8 or len(frame) != 6 + 3 * frame[5] or not width or not height:
        return None
    return JpegHeader(mode, width, height)


def _is_simple(marker: int, content: bytes) -> bool:
    """Check whether an application segment can be skipped: it is long enough for what Pillow reads of it."""
    if marker == 0xE0:
        return not content.startswith(b"JFIF") or len(content) >= 12
    if marker == 0xE2:
        return content.startswith(_ICC) and len(content) > len(_ICC) + 2
    return marker == 0xEE and (not content.startswith(_ADOBE) or len(content) >= 12)


def parse_png_header(data: bytes) -> PngHeader | None:
    """Return the header of a PNG from its chunks; None if the file is truncated or not plain."""
    if not data.startswith(_PNG_START) or len(data) < 33:
        return None
    width, height, depth, colour, _, filtering, interlace, checksum = struct.unpack_from(">IIBBBBBI", data, 16)
    mode = _PNG_MODES.get((depth, colour))
    if mode is None or not width or not height or filtering or zlib.crc32(data[12:29]) != checksum:
        return None
    chunks, position, pixels = [("IHDR", 13)], 33, False
    while position + 12 <= len(data):
        length, label = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            return None
        if label == b"IDAT":
            pixels = True
        elif label == b"IEND":
            chunks.append(("IEND", length))
            return PngHeader(mode, width, height, interlace != 0, chunks) if pixels and end == len(data) else None
        elif pixels or _PNG_SIMPLE.get(label) != length or not _checksum_matches(data, position, length):
            return None
        chunks.append((label.decode(), length))
        position = end
    return None


def _checksum_matches(data: bytes, position: int, length: int) -> bool:
    """Verify the checksum of a chunk."""
    end = position + 8 + length
    return zlib.crc32(data[position + 4 : end]) == int.from_bytes(data[end : end + 4], "big")
