"""What one look at a file's bytes tells, its pixels undecoded: size and format, and the traits that its encoder left.

Pillow reads the header. Most files of most data sets are of two plain kinds, a JPEG without EXIF and a PNG without
metadata that changes its meaning; those are read off by :mod:`.fast_headers`, several times faster, with the same
result.
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
from .file import format_name, may_be_rotated, open_image, orientation
from .jpeg import DQT, JpegInfo, is_metadata, parse_jpeg, segment_names

_MOST_CHUNKS = 100_000
_MOST_LABELS = 40
_PNG_SIGNATURE_BYTES = 8


class HeaderTraits(NamedTuple):
    """What an encoder leaves in a header beside the size. A field is None where its question does not arise.

    mode : Pillow's, with the bits of a channel if they are not 8. metadata : kinds of segments or chunks that a decoder
    may skip. structure : the kinds of all of them in their order, the signature of an encoder.
    scan : ``plain``, ``progressive`` or ``interlaced``. jpeg_quality : 1..100. jpeg_tables : name of the quantisation
    tables. subsampling : as in ``4:2:0``.
    """

    mode: str
    metadata: str
    structure: str
    scan: str
    jpeg_quality: int | None = None
    jpeg_tables: str | None = None
    subsampling: str | None = None

    def as_text(self) -> str:
        """Return the traits as a JSON list; files of one origin share it."""
        return _traits_text(self)


class FileHeader(NamedTuple):
    """Size in pixels as stored and whether it is shown turned by 90 degrees, format in lower case, and traits.

    metadata_bytes : bytes of what a decoder may skip. traits : see :meth:`HeaderTraits.as_text`.
    """

    width: int
    height: int
    turned: bool
    format: str
    metadata_bytes: int
    traits: str


@lru_cache(maxsize=4096)
def parse_traits(text: str) -> HeaderTraits:
    """Return the traits that :meth:`HeaderTraits.as_text` wrote. ValueError for anything else."""
    values = json.loads(text)
    if not isinstance(values, list) or len(values) != len(HeaderTraits._fields):
        raise ValueError("not the traits of a file")
    words = [*values[:4], *values[5:]]
    if not all(isinstance(word, str) for word in words[:4]) or not isinstance(values[4], int | None):
        raise ValueError("not the traits of a file")
    if not all(isinstance(word, str | None) for word in words):
        raise ValueError("not the traits of a file")
    return HeaderTraits(*values)


def read_header(data: bytes) -> FileHeader:
    """Return what the bytes of an image file tell. Raises as :func:`.file.open_image`."""
    if data.startswith(b"\xff\xd8\xff"):
        found = parse_jpeg(data)
        jpeg = parse_jpeg_header(found)
        if jpeg is not None and jpeg.width * jpeg.height <= MAX_PIXELS:
            return _of_jpeg(found, jpeg.mode, jpeg.width, jpeg.height, turned=False)
    else:
        png = parse_png_header(data)
        if png is not None and png.width * png.height <= MAX_PIXELS:
            return _of_chunks("png", png.mode, png.width, png.height, png.chunks, interlaced=png.interlaced)
    return read_header_with_pillow(data)


def read_header_with_pillow(data: bytes) -> FileHeader:
    """Do what :func:`read_header` does, whatever the file is."""
    image = open_image(data)
    kind = format_name(image)
    # The exception to "undecoded": Pillow decodes a PNG before it looks for EXIF, which may follow the pixels.
    turned = may_be_rotated(data, image) and orientation(image) >= 5
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


def _of_jpeg(facts: JpegInfo, mode: str, width: int, height: int, *, turned: bool) -> FileHeader:
    names = tuple(segment_names(facts.segments))
    metadata, structure = _known_kinds(names) if len(names) <= _MOST_LABELS else _kinds(names)
    traits = HeaderTraits(
        mode,
        metadata,
        structure,
        "progressive" if facts.progressive else "plain",
        facts.quantisation.quality,
        facts.quantisation.name,
        facts.sampling,
    )
    extra = sum([len(content) for marker, content in facts.segments if 0xE0 <= marker <= 0xEF or marker == 0xFE])
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
    """Put together the facts of a file that is no JPEG; ``named`` is metadata that its chunks do not tell."""
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
    """Return the metadata that Pillow names, of the formats whose chunks are not walked."""
    if kind in ("png", "webp"):
        return set()
    return {str(name) for name, value in image.info.items() if isinstance(value, (bytes, str))}


def _chunks(data: bytes, kind: str) -> Iterator[tuple[str, int]]:
    """Yield label and length of the chunks of a PNG or WebP. Ends quietly where the file contradicts itself."""
    big, place = kind == "png", _PNG_SIGNATURE_BYTES if kind == "png" else 12
    if kind not in ("png", "webp"):
        return
    for _ in range(_MOST_CHUNKS):
        if place + 8 > len(data):
            return
        first, second = data[place : place + 4], data[place + 4 : place + 8]
        label, length = (second, int.from_bytes(first, "big")) if big else (first, int.from_bytes(second, "little"))
        if not (label.isascii() and label.decode().isprintable()):
            return
        yield _label(label.decode().strip(), data[place + 8 : place + 8 + 40]), min(length, len(data) - place)
        place += 12 + length if big else 8 + length + length % 2


def _label(label: str, start: bytes) -> str:
    """Add to a PNG's text its keyword: generators leave their prompt and settings under a name of their own."""
    if label not in ("tEXt", "zTXt", "iTXt"):
        return label
    word = start.split(b"\0", 1)[0].decode("latin-1")
    return f"{label}({word[:20]})" if word.isprintable() else label


def _is_metadata(label: str, kind: str) -> bool:
    """Say whether a decoder may skip a chunk: a PNG says so itself by a small first letter."""
    return label[:1].islower() if kind == "png" else label in ("EXIF", "XMP", "ICCP")


def _without_repeats(labels: Sequence[str]) -> list[str]:
    return [label for number, label in enumerate(labels) if number == 0 or label != labels[number - 1]]


def _joined(labels: list[str]) -> str:
    return " ".join(labels if len(labels) <= _MOST_LABELS else [*labels[:_MOST_LABELS], "…"])


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
