"""What a file tells without its pixels: format, encoder settings, size, metadata. All of it could give a label away.

None of these facts depends on what the image shows, with one exception: the number of bytes. It is told, but no
verdict rests on it (see :data:`CONTENT_FEATURES`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from ...images.headers import parse_traits, read_header
from ..scan.conflicts import ScannedRow

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


FeatureValue = str | float | None
"""A number, a category, or None where the question does not arise."""

HEADER_FEATURES = (
    "format", "extension", "JPEG quality", "JPEG tables", "chroma subsampling", "width", "height", "aspect",
    "colour mode", "metadata", "metadata bytes", "structure", "scan",
)  # fmt: skip
"""Names of the features that :func:`header_features` returns and a verdict may rest on."""

CONTENT_FEATURES = ("bytes per pixel",)
"""Features that depend on the content as well: smooth images take fewer bytes with every encoder."""


def header_facts(data: bytes, name: str) -> HeaderFacts:
    """Read a file's facts.

    data : the whole file. name : its name, for the extension. Raises as :func:`...images.file.open_image`.
    """
    found = read_header(data)
    return _with_traits(name, found.format, found.width, found.height, len(data), found.metadata_bytes, found.traits)


def row_facts(row: ScannedRow) -> HeaderFacts | None:
    """Return the facts that a scan gathered of a file; None of a row that comes from elsewhere."""
    if not row.traits:
        return None
    width, height = (row.height, row.width) if row.turned else (row.width, row.height)
    return _with_traits(row.file.path, row.format, width, height, row.bytes, row.metadata_bytes, row.traits)


def header_features(facts: HeaderFacts) -> dict[str, FeatureValue]:
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


def _with_traits(
    name: str, kind: str, width: int, height: int, size: int, metadata_bytes: int, text: str
) -> HeaderFacts:
    traits = parse_traits(text)
    return HeaderFacts(
        format=kind,
        extension=_extension(name, kind),
        mode=traits.mode,
        width=width,
        height=height,
        bytes=size,
        metadata=traits.metadata,
        metadata_bytes=metadata_bytes,
        structure=traits.structure,
        scan=traits.scan,
        jpeg_quality=traits.jpeg_quality,
        jpeg_tables=traits.jpeg_tables,
        subsampling=traits.subsampling,
    )


def _extension(name: str, kind: str) -> str:
    suffix = PurePosixPath(name).suffix.lstrip(".")
    usual = _USUAL.get(kind, (kind,))
    if suffix.lower() not in usual:
        return f"{kind} named .{suffix}"
    return "as it should" if suffix == usual[0] else f".{suffix}"
