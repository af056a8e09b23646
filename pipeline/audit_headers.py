"""What a file tells without its pixels: format, encoder settings, size, metadata. All of it could give a label away.

None of these facts depends on what the picture shows, with one exception: the number of bytes. It is told, but no
verdict rests on it (see :data:`TOLD_ONLY`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from PIL import Image

from .audit_jpeg import JpegFacts, jpeg_facts, nearest_quality
from .image_file import format_name, open_image

_PNG_START = 8
_MOST_CHUNKS = 100_000
_USUAL = {"jpeg": ("jpg", "jpeg"), "tiff": ("tif", "tiff")}


@dataclass(frozen=True, slots=True)
class HeaderFacts:
    """The facts of one file. A field is None where its question does not arise.

    extension : ``as it should``, or what is wrong. mode : Pillow's, with the bits of a channel if they are not 8.
    width, height : pixels, as stored. bytes : of the file; metadata_bytes : of them in what a decoder may skip.
    structure : the kinds of segments or chunks in their order, the signature of an encoder.
    jpeg_tables : name of the quantisation tables. scan : ``plain``, ``progressive`` or ``interlaced``.
    """

    format: str
    extension: str
    mode: str
    width: int
    height: int
    bytes: int
    metadata: str
    metadata_bytes: int
    structure: str
    scan: str
    jpeg_quality: int | None = None
    jpeg_tables: str | None = None
    subsampling: str | None = None


Value = str | float | None

HEADER_FEATURES = (
    "format", "extension", "JPEG quality", "JPEG tables", "chroma subsampling", "width", "height", "aspect",
    "colour mode", "metadata", "metadata bytes", "structure", "scan",
)  # fmt: skip
"""Names of the features that :func:`header_features` returns and a verdict may rest on."""

TOLD_ONLY = ("bytes per pixel",)
"""Features that depend on the content as well: smooth pictures take fewer bytes with every encoder."""


def header_facts(data: bytes, name: str) -> HeaderFacts:
    """Read a file's facts.

    data : the whole file. name : its name, for the extension. Raises as :func:`.image_file.open_image`.
    """
    image = open_image(data)
    kind = format_name(image)
    extension = _extension(name, kind)
    if kind == "jpeg":
        return _of_jpeg(data, image, extension)
    chunks = list(_chunks(data, kind))
    extras = [(label, length) for label, length in chunks if _is_metadata(label, kind)]
    return HeaderFacts(
        format=kind,
        extension=extension,
        mode=_mode(image, data, kind),
        width=image.width,
        height=image.height,
        bytes=len(data),
        metadata=_joined(sorted({label for label, _ in extras} | _named(image, kind))),
        metadata_bytes=sum(length for _, length in extras),
        structure=_joined(_without_repeats([label for label, _ in chunks])),
        scan="interlaced" if image.info.get("interlace") else "plain",
    )


def header_features(facts: HeaderFacts) -> dict[str, Value]:
    """Return the features of one file by name; None where the question does not arise."""
    return {
        "format": facts.format,
        "extension": facts.extension,
        "colour mode": facts.mode,
        "width": facts.width,
        "height": facts.height,
        "aspect": round(facts.width / facts.height, 4),
        "metadata": facts.metadata,
        "metadata bytes": facts.metadata_bytes,
        "structure": facts.structure,
        "scan": facts.scan,
        "JPEG quality": facts.jpeg_quality,
        "JPEG tables": facts.jpeg_tables,
        "chroma subsampling": facts.subsampling,
        "bytes per pixel": facts.bytes / (facts.width * facts.height),
    }


def _of_jpeg(data: bytes, image: Image.Image, extension: str) -> HeaderFacts:
    facts = jpeg_facts(data)
    extras = [segment for segment in facts.segments if segment.is_metadata]
    luminance = facts.tables.get(0)
    return HeaderFacts(
        format="jpeg",
        extension=extension,
        mode=image.mode,
        width=image.width,
        height=image.height,
        bytes=len(data),
        metadata=_joined(sorted({segment.name for segment in extras})),
        metadata_bytes=sum(len(segment.content) for segment in extras),
        structure=_joined(_without_repeats([segment.name for segment in facts.segments])),
        scan="progressive" if facts.progressive else "plain",
        jpeg_quality=None if luminance is None else nearest_quality(dict(enumerate(luminance))),
        jpeg_tables=_tables_name(facts),
        subsampling=facts.sampling,
    )


def _tables_name(facts: JpegFacts) -> str:
    """Name a set of tables by its first steps and a hash."""
    text = repr(sorted(facts.tables.items()))
    first = ",".join(str(step) for step in facts.tables.get(0, ())[:4])
    return f"{first}… #{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _extension(name: str, kind: str) -> str:
    suffix = PurePosixPath(name).suffix.lstrip(".")
    usual = _USUAL.get(kind, (kind,))
    if suffix.lower() not in usual:
        return f"{kind} named .{suffix}"
    return "as it should" if suffix == usual[0] else f".{suffix}"


def _mode(image: Image.Image, data: bytes, kind: str) -> str:
    depth = data[24] if kind == "png" and len(data) > 24 else 8
    return image.mode if depth == 8 else f"{image.mode} {depth}-bit"


def _named(image: Image.Image, kind: str) -> set[str]:
    """Return the metadata that Pillow names, of the formats whose chunks are not walked here."""
    if kind in ("png", "webp"):
        return set()
    return {str(name) for name, value in image.info.items() if isinstance(value, (bytes, str))}


def _chunks(data: bytes, kind: str) -> Iterator[tuple[str, int]]:
    """Yield label and length of the chunks of a PNG or WebP. Ends quietly where the file contradicts itself."""
    big, place = kind == "png", _PNG_START if kind == "png" else 12
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


def _without_repeats(labels: list[str]) -> list[str]:
    return [label for number, label in enumerate(labels) if number == 0 or label != labels[number - 1]]


def _joined(labels: list[str]) -> str:
    return " ".join(labels) if len(labels) <= 40 else " ".join([*labels[:40], "…"])
