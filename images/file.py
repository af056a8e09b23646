"""Image files: accepted formats, size limits, and the reasons for which a file is rejected.

Nothing here decodes pixels or imports torch, so that scanning a large folder stays cheap. Whatever Pillow raises on a bad
file becomes :class:`ImageRejected` with a short reason.

A file counts as truncated when pixels are missing. One that lacks only its end marker still has them all and is
accepted.
"""

from __future__ import annotations

import hashlib
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import Literal

from ..choices import MAX_PIXELS, MIN_SIDE
from ..errors import DistilCacheError, UsageError
from .sniff import HEAD_BYTES, sniff

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
    "unsupported-format",
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
"""``damaged``: the file is an image, but its data are corrupt. ``truncated``: data of its pixels are missing.
``unsupported-mode``: the file may be sound, but its kind of pixels or of compression is not decoded here.
``unsupported-format``: it is an image in a format that is not decoded here. ``unreadable``: the system refused to read
the file.

``ambiguous`` to ``transparent`` are reasons of an import, see :mod:`..pipeline.importing.loose_files`.
``no-video-support``: the file is a video, and the optional package that reads videos is not installed."""

PILLOW_ERRORS = (Exception,)
"""What a decoder may raise on a damaged file: anything. :func:`rejection` tells what is not the file's fault."""

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


def rejection(data: bytes, error: Exception) -> ImageRejected:
    """Return the rejection for an exception that reading or decoding one file raised; ``data`` may be empty.

    Whatever it is, it costs that file alone. One that is not usual for damage is named by its type. An error that says
    nothing about the file, such as a lack of memory, is raised again.
    """
    if isinstance(error, ImageRejected):
        return error
    if isinstance(error, MemoryError | DistilCacheError):
        raise error
    said = str(error).encode(errors="backslashreplace").decode()
    detail = said if said and isinstance(error, _USUAL) else ": ".join(filter(None, (type(error).__name__, said)))
    kind = sniff(data[:HEAD_BYTES]) or "file"
    if "truncated" in detail.lower() or _ends_early(kind, data):
        return ImageRejected("truncated", f"{kind}, {len(data):,} bytes: the end is missing")
    if any(words in detail for words in _UNSUPPORTED):
        return ImageRejected("unsupported-mode", f"{kind}: {detail}")
    return ImageRejected("damaged", f"{kind}: {detail}")


_USUAL = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error)
"""What Pillow raises for damage in a sentence that says enough."""

_UNSUPPORTED = (
    *("nsupported", "cannot handle", "not supported"),
    *("unknown pixel mode", "unknown raw mode", "unknown data organization"),
)
"""What decoders say of files that are sound, and that they cannot decode."""


def _ends_early(kind: str, data: bytes) -> bool:
    """Check by its length or end marker whether a file that failed to open or to decode is truncated."""
    if kind == "jpeg":
        return b"\xff\xd9" not in data
    if kind == "png":
        return b"IEND" not in data
    if kind == "gif":
        return not data.rstrip(b"\0").endswith(b";")
    if kind == "tiff":
        return _tiff_ends_early(data)
    if kind in ("avif", "heic", "heif"):
        return _boxes_end_early(data)
    if kind == "webp":
        return len(data) < int.from_bytes(data[4:8], "little") + 8
    return kind == "bmp" and data.startswith(b"BM") and len(data) < int.from_bytes(data[2:6], "little")


def _boxes_end_early(data: bytes) -> bool:
    """Check whether a box of the ISO base media file format (ISO/IEC 14496-12, 4.2) reaches past the end."""
    position = 0
    while position + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        if length == 1 and position + 16 <= len(data):
            (length,) = struct.unpack_from(">Q", data, position + 8)
        if length < 8:  # 0: up to the end
            return False
        position += length
    return position != len(data)


def _tiff_ends_early(data: bytes) -> bool:
    """Check whether the first directory of a classic TIFF (TIFF 6.0, section 2) reaches past the end."""
    order = "<" if data.startswith(b"II") else ">"
    if data[2:4] in (b"+\0", b"\0+"):
        return False
    try:
        (directory,) = struct.unpack_from(f"{order}I", data, 4)
        (entries,) = struct.unpack_from(f"{order}H", data, directory)
    except struct.error:
        return True
    return len(data) < int(directory) + 2 + 12 * int(entries)
