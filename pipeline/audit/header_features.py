"""Features of a file's header: format, encoder settings, size, metadata. Any of them could give the label away.

Only the number of bytes depends on the image's content. It is reported, but does not affect the verdict (see
:data:`CONTENT_FEATURES`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from ...images.headers import parse_traits, read_header
from ..scan.rows import ScannedRow

_USUAL = {"jpeg": ("jpg", "jpeg"), "tiff": ("tif", "tiff")}


@dataclass(frozen=True, slots=True)
class HeaderFacts:
    """What a file's header says. A field is None where it does not apply.

    Attributes
    ----------
    format
        File format in lower case.
    extension
        ``as it should``, or how it differs from the usual one.
    mode, metadata, structure, scan, jpeg_quality, jpeg_tables, subsampling
        See :class:`...images.headers.HeaderTraits`.
    width, height
        Size in pixels as stored.
    bytes
        Size of the file.
    metadata_bytes
        Bytes that a decoder may skip.
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
"""A number, a category, or None where the feature does not apply."""

HEADER_FEATURES = (
    "format", "extension", "JPEG quality", "JPEG tables", "chroma subsampling", "width", "height", "aspect",
    "colour mode", "metadata", "metadata bytes", "structure", "scan",
)  # fmt: skip
"""Names of the features of :func:`header_features` that the verdict uses."""

OUTLIVING_FEATURES = ("width", "height", "aspect", "colour mode")
"""Those of them that can show in an image that was decoded, compressed as all others were, and resized."""

CONTENT_FEATURES = ("bytes per pixel",)
"""Features that also depend on the content: smooth images take fewer bytes with any encoder."""


def header_facts(data: bytes, name: str) -> HeaderFacts:
    """Read the header of a file.

    Parameters
    ----------
    data
        Bytes of the whole file.
    name
        Name of the file, for its extension.

    Raises
    ------
    ImageRejected
        As :func:`...images.file.open_image`.
    """
    found = read_header(data)
    return _with_traits(name, found.format, found.width, found.height, len(data), found.metadata_bytes, found.traits)


def row_facts(row: ScannedRow) -> HeaderFacts | None:
    """Return the header facts of a scanned row; None for a row that was not scanned."""
    if not row.traits:
        return None
    width, height = (row.height, row.width) if row.turned else (row.width, row.height)
    return _with_traits(row.file.path, row.format, width, height, row.bytes, row.metadata_bytes, row.traits)


def header_features(facts: HeaderFacts) -> dict[str, FeatureValue]:
    """Return the features of one file by name; None where a feature does not apply."""
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
