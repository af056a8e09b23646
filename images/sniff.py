"""Tell from the first bytes of a file whether it is an image, and in which format.

What a file is called decides nothing: downloads have no extension, or a wrong one. Formats that cannot be decoded here
are recognised too, so that their files are rejected by name rather than passed over.
"""

from __future__ import annotations

import re
import struct

HEAD_BYTES = 64
"""Bytes from the start of a file that :func:`sniff` needs."""

_STARTS = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),  # BigTIFF
    (b"MM\0+", "tiff"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "jp2"),
    (b"\xff\x4f\xff\x51", "jp2"),  # a bare codestream
    (b"\0\0\0\x0cJXL \r\n\x87\n", "jxl"),
    (b"\xff\x0a", "jxl"),  # a bare codestream
    (b"8BPS\0", "psd"),
    (b"\x76\x2f\x31\x01", "exr"),
    (b"#?RADIANCE", "hdr"),
    (b"DDS |\0\0\0", "dds"),
    (b"II\xbc\x01", "jxr"),
    (b"qoif", "qoi"),
    (b"FLIF", "flif"),
)
"""Signatures, and the name of the format."""

_BRANDS = {
    b"avif": "avif",
    b"avis": "avif",
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "heic"),
    b"crx ": "cr3",
}
"""Brands of the ISO base media file format that are images. ``mif1`` and ``msf1`` leave the codec to other brands."""

_DIB_HEADERS = frozenset({12, 16, 40, 52, 56, 64, 108, 124})
_DIB_DEPTHS = frozenset({0, 1, 2, 4, 8, 16, 24, 32})
_NETPBM = re.compile(rb"P[1-7]\s+(?:#|\d+\s|WIDTH\b)")


def sniff(head: bytes) -> str | None:
    """Return the format of an image by the first bytes of its file.

    Parameters
    ----------
    head
        The first :data:`HEAD_BYTES` bytes of a file, or all of a shorter one.

    Returns
    -------
    str or None
        ``jpeg``, ``png``, ``webp``, ``bmp``, ``tiff``, ``gif``, ``avif``, ``jp2``, ``heic``, ``jxl``, or the name of a
        format that cannot be decoded here; None if these bytes are no image.
    """
    for start, name in _STARTS:
        if head.startswith(start):
            return name
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "webp"
    if head[4:8] == b"ftyp":
        return _of_brands(head)
    if _is_bitmap(head):
        return "bmp"
    return "pnm" if _NETPBM.match(head) else None


def _of_brands(head: bytes) -> str | None:
    """Return the image format of a file that begins with a box of brands (ISO/IEC 14496-12, 4.3)."""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    major, others = head[8:12], [head[place : place + 4] for place in range(16, end - 3, 4)]
    if major in _BRANDS:
        return _BRANDS[major]
    if major not in (b"mif1", b"msf1", b"miaf"):
        return None  # a video
    return next((_BRANDS[brand] for brand in others if brand in _BRANDS), "heif")


def _is_bitmap(head: bytes) -> bool:
    """Check for a BMP, or for a bitmap without its file header. ``BM`` alone also begins many a text."""
    body = head[14:] if head.startswith(b"BM") else head
    if len(body) < 16:
        return False
    (size,) = struct.unpack_from("<I", body)
    if size not in _DIB_HEADERS:
        return False
    planes, depth = struct.unpack_from("<HH", body, 8 if size == 12 else 12)
    return planes == 1 and depth in _DIB_DEPTHS
