"""Open image files: accepted formats, size limits, and the reasons for which a file is rejected.

Nothing here decodes pixels or imports torch, so that scanning a large folder stays cheap. Pillow parses the headers,
restricted to the six formats of :data:`FORMATS`. Whatever it raises on a bad file becomes :class:`ImageRejected` with a
short reason.

A file counts as truncated when pixels are missing. One that lacks only its end marker still has them all and is
accepted.
"""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import Literal

from PIL import ExifTags, Image, UnidentifiedImageError

from ..choices import MAX_PIXELS, MIN_SIDE
from ..errors import UsageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""Accepted formats, by Pillow's names. The content decides, not the extension."""

EXTENSIONS = frozenset(
    (
        *("jpg", "jpeg", "jfif", "jpe", "mpo", "png", "apng", "webp", "bmp", "dib", "tif", "tiff", "gif"),
        *("avif", "jp2", "j2k", "j2c", "jpc", "jpf", "jpx", "heic", "heif", "hif", "jxl"),
    )
)
"""Extensions of image files, whether or not they can be decoded. :func:`.sniff.sniff` tells for certain."""

MAX_BYTES = 2 * 1024**3
"""Largest file that is read. An uncompressed 16-bit RGB TIFF of MAX_PIXELS has half of it."""

Reason = Literal[
    "empty",
    "not-an-image",
    "truncated",
    "damaged",
    "unsupported-mode",
    "too-large",
    "too-small",
    "missing",
    "not-a-file",
    "unreadable",
    "unreadable-name",
    "changed-while-reading",
    "changed",
    "label-conflict",
    "leaked",
    "ambiguous",
    "size-differs",
    "lossy",
    "out-of-range",
    "turned",
    "transparent",
    "no-video-support",
]
"""``damaged``: the file is an image, but its data are corrupt. ``unreadable``: the system refused to read the file.

``ambiguous`` to ``transparent`` are reasons of an import, see :mod:`..pipeline.importing.loose_files`.
``no-video-support``: the file is a video, and the optional package that reads videos is not installed."""

PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    AttributeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""Everything that Pillow is known to raise on damaged files."""

# Pillow warns about damaged EXIF blocks and about sizes below its own limit. Neither makes an image unusable, and a
# warning of a worker thread would land in the middle of a progress bar.
warnings.filterwarnings("ignore", module=r"PIL\.")


class ImageRejected(Exception):  # noqa: N818  (a verdict on one file, not a failure of the program)
    """One file cannot be used.

    Parameters
    ----------
    reason
        One of the codes in :data:`Reason`.
    detail
        Short description for the user.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Limits:
    """Size limits for images. They change no pixel value, so they are not part of a spec.

    Parameters
    ----------
    max_pixels
        Largest number of pixels (width x height), at most :data:`MAX_PIXELS`.
    min_side
        Smallest length of the shorter side, in pixels.
    """

    max_pixels: int = MAX_PIXELS
    min_side: int = MIN_SIDE

    def __post_init__(self) -> None:
        """Raise UsageError for limits out of range."""
        if not 1 <= self.max_pixels <= MAX_PIXELS:
            raise UsageError(f"--max-pixels {self.max_pixels}: must be in 1..{MAX_PIXELS:,}.")
        if self.min_side < 1:
            raise UsageError(f"--min-side {self.min_side}: must be at least 1.")

    def check(self, width: int, height: int) -> None:
        """Raise :class:`ImageRejected` (``too-large``, ``too-small``) for a size outside the limits."""
        if width * height > self.max_pixels:
            raise ImageRejected("too-large", f"{width}x{height} pixels, more than {self.max_pixels:,}")
        if min(width, height) < self.min_side:
            raise ImageRejected("too-small", f"{width}x{height} pixels, a side is shorter than {self.min_side}")


DEFAULT_LIMITS = Limits()


def content_key(data: bytes) -> str:
    """Return the key of a sample: the first 32 hex digits of the SHA-256 of the file's bytes."""
    return hashlib.sha256(data).hexdigest()[:32]


def open_image(data: bytes) -> Image.Image:
    """Parse the header of an image file, without decoding its pixels.

    Raises
    ------
    ImageRejected
        ``empty``, ``not-an-image``, ``truncated``, ``damaged``, or ``too-large`` for more than MAX_PIXELS.
    """
    if not data:
        raise ImageRejected("empty", "0 bytes")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except PILLOW_ERRORS as error:
        raise rejection(data, error) from None


def format_name(image: Image.Image) -> str:
    """Return the file format in lower case. An MPO, which is a JPEG of several images, counts as ``jpeg``."""
    name = (image.format or "").lower()
    return "jpeg" if name == "mpo" else name


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1..8, that is still to be applied; 1 if there is none or it cannot be read.

    Pillow rotates a TIFF itself and reports the rotated size, so this is 1 for a TIFF.
    """
    if image.format == "TIFF":
        return 1
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except PILLOW_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def rejection(data: bytes, error: BaseException) -> ImageRejected:
    """Return the rejection for an exception that Pillow raised on ``data``."""
    detail = str(error)
    if isinstance(error, Image.DecompressionBombError):
        return ImageRejected("too-large", f"more than {MAX_PIXELS:,} pixels")
    kind = _signature(data)
    if kind is None:
        return ImageRejected("not-an-image", f"starts with {data[:8].hex(' ')}: none of {', '.join(FORMATS)}")
    if isinstance(error, UnidentifiedImageError):
        detail = "the header cannot be read"
    if "truncated" in detail.lower() or _ends_early(kind, data):
        return ImageRejected("truncated", f"{kind}, {len(data):,} bytes: the end is missing")
    return ImageRejected("damaged", f"{kind}: {detail}")


def may_be_rotated(data: bytes, image: Image.Image) -> bool:
    """Return False for a PNG without a chunk that can hold an orientation: :func:`orientation` would decode it."""
    marks = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
    return image.format != "PNG" or any(mark in data for mark in marks)


def _signature(data: bytes) -> str | None:
    """Return the format by the file's first bytes."""
    if data.startswith(b"RIFF") and data[8:12] in (b"WEBP", b""):
        return "WEBP"
    starts = {
        b"\xff\xd8\xff": "JPEG",
        b"\x89PNG\r\n\x1a\n": "PNG",
        b"BM": "BMP",
        b"II*\0": "TIFF",
        b"MM\0*": "TIFF",
        b"II+\0": "TIFF",
        b"MM\0+": "TIFF",
        b"GIF87a": "GIF",
        b"GIF89a": "GIF",
    }
    return next((name for start, name in starts.items() if data.startswith(start)), None)


def _ends_early(kind: str, data: bytes) -> bool:
    """Check by its length or end marker whether a file that failed to open is truncated."""
    if kind == "JPEG":
        return b"\xff\xd9" not in data
    if kind == "PNG":
        return b"IEND" not in data
    if kind == "GIF":
        return not data.rstrip(b"\0").endswith(b";")
    if kind == "TIFF":
        return _tiff_ends_early(data)
    length = data[2:6] if kind == "BMP" else data[4:8]
    if len(length) < 4:
        return True
    return len(data) < int.from_bytes(length, "little") + (0 if kind == "BMP" else 8)


def _tiff_ends_early(data: bytes) -> bool:
    """Check whether the first directory of a classic TIFF (TIFF 6.0, section 2) reaches past the end."""
    order = "<" if data.startswith(b"II") else ">"
    try:
        (directory,) = struct.unpack_from(f"{order}I", data, 4)
        (entries,) = struct.unpack_from(f"{order}H", data, directory)
    except struct.error:
        return True
    return len(data) < int(directory) + 2 + 12 * int(entries)
