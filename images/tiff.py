"""Open and decode TIFF files with Pillow, and refuse what Pillow reads wrongly or in part (TIFF 6.0).

Pillow takes strips that are missing for black ones, and libtiff reads on where a JPEG inside a strip ends early. What a
file says of its strips is compared with its size first.
"""

from __future__ import annotations

import ctypes
import io
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from PIL import Image, TiffImagePlugin, _imaging

from .file import ImageRejected

_WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIP_OFFSETS, _SAMPLES, _ROWS, _STRIP_BYTES, _PLANAR = 273, 277, 278, 279, 284
_TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_BYTES = 322, 323, 324, 325
_SAMPLE_FORMAT, _JPEG_TABLES, _YCBCR_SUBSAMPLING, _XMP = 339, 347, 530, "xmp"
_FILL_ORDER, _REVERSED = 266, 2
_RAW, _FAX, _FAX4, _JPEG = 1, (2, 3, 32771), 4, 7
_END_OF_BLOCK = "000000000001000000000001"
_SEPARATE = 2
_YCBCR = 6
_SIGNED = 2
_NO_LAYER = "string index"
"""What Pillow says of a plane whose channel it does not know."""


def open_tiff(data: bytes) -> Image.Image:
    """Parse the header of a TIFF without decoding its pixels.

    Raises
    ------
    ImageRejected
        ``unsupported-mode`` for kinds of pixels that Pillow cannot decode, or decodes wrongly.
    """
    if data.startswith(b"MM\0+"):
        raise ImageRejected("unsupported-mode", "tiff: a BigTIFF in big-endian order; save it as a classic TIFF")
    try:
        image = TiffImagePlugin.TiffImageFile(io.BytesIO(data))
    except SyntaxError as error:
        if isinstance(error.__cause__, IndexError) and _NO_LAYER in str(error):
            raise ImageRejected("unsupported-mode", "tiff: more planes than its colours have") from None
        if isinstance(error.__cause__, KeyError) and not isinstance(error.__cause__.args[0], tuple):
            raise ImageRejected("unsupported-mode", f"tiff: its compression {error} is not decoded here") from None
        raise
    image.info.pop(_XMP, None)  # Pillow would turn the image by it
    _refuse_what_pillow_misreads(image)
    return image


def _refuse_what_pillow_misreads(image: TiffImagePlugin.TiffImageFile) -> None:
    tags = image.tag_v2
    bits = _numbers(tags.get(_BITS, 1))
    if tags.get(_PLANAR) == _SEPARATE and len(bits) > 1 and max(bits) > 8:
        raise ImageRejected("unsupported-mode", f"tiff: planes of {max(bits)} bits stored one after the other")
    if tags.get(_PLANAR) == _SEPARATE and image.mode in ("LA", "La"):
        raise ImageRejected("unsupported-mode", "tiff: grey and alpha stored one after the other")
    if max(_numbers(tags.get(_SAMPLE_FORMAT, 1))) == _SIGNED:
        raise ImageRejected("unsupported-mode", "tiff: signed values, whose range nothing states")
    compression = tags.get(_COMPRESSION, _RAW)
    if compression in _FAX:
        raise ImageRejected(
            "unsupported-mode", f"tiff: CCITT compression {compression}, which does not show missing rows"
        )
    subsampled = _numbers(tags.get(_YCBCR_SUBSAMPLING, (2, 2))) != (1, 1)
    if compression == _RAW and tags.get(_PHOTOMETRIC) == _YCBCR and subsampled and len(bits) == 3:
        raise ImageRejected("unsupported-mode", "tiff: uncompressed YCbCr with subsampled chroma")


def check_strips(image: TiffImagePlugin.TiffImageFile, data: bytes) -> None:
    """Raise ImageRejected (``truncated``) if strips or tiles are fewer than the size asks for, or beyond the end."""
    tags = image.tag_v2
    width, height = int(tags[_WIDTH]), int(tags[_LENGTH])
    tiled = _TILE_OFFSETS in tags
    offsets = _numbers(tags.get(_TILE_OFFSETS if tiled else _STRIP_OFFSETS, ()))
    lengths = _numbers(tags.get(_TILE_BYTES if tiled else _STRIP_BYTES, ()))
    planes = int(tags.get(_SAMPLES, 1)) if tags.get(_PLANAR) == _SEPARATE else 1
    if tiled:
        across, down = int(tags.get(_TILE_WIDTH, width)), int(tags.get(_TILE_LENGTH, height))
    else:
        across, down = width, min(int(tags.get(_ROWS, height)), height)
    if across < 1 or down < 1:
        raise ImageRejected("damaged", "tiff: strips or tiles of no size")
    wanted = -(-width // across) * -(-height // down) * planes
    if len(offsets) < wanted:
        raise ImageRejected("truncated", f"tiff: {len(offsets)} strips or tiles of {wanted}")
    if any(offset + length > len(data) for offset, length in zip(offsets, lengths, strict=False)):
        raise ImageRejected("truncated", f"tiff, {len(data):,} bytes: a strip or tile reaches past the end")
    if tags.get(_COMPRESSION, _RAW) == _RAW and len(lengths) >= wanted:
        _check_raw_lengths(tags, lengths[:wanted], across, down, None if tiled else height)
    if tags.get(_COMPRESSION) == _FAX4:
        _check_fax_ends(data, offsets, lengths, reversed_bits=tags.get(_FILL_ORDER) == _REVERSED)


def _check_raw_lengths(tags: Any, lengths: Sequence[int], across: int, down: int, height: int | None) -> None:
    """Compare the bytes of uncompressed strips or tiles with their rows; a length of 0 says nothing."""
    bits = _numbers(tags.get(_BITS, 1))
    samples = int(tags.get(_SAMPLES, 1))
    depth = bits[0] if tags.get(_PLANAR) == _SEPARATE else sum(bits) if len(bits) == samples else bits[0] * samples
    row = (across * depth + 7) // 8
    in_plane = len(lengths) if height is None else -(-height // down)
    for number, length in enumerate(lengths):
        rows = down if height is None else min(down, height - number % in_plane * down)
        if 0 < length < rows * row:
            raise ImageRejected("truncated", f"tiff: a strip or tile of {length:,} bytes, not {rows * row:,}")


def _check_fax_ends(data: bytes, offsets: Sequence[int], lengths: Sequence[int], *, reversed_bits: bool) -> None:
    """Look for the end-of-block code of CCITT Group 4: libtiff fills rows that are missing (ITU-T T.6, 2.4.1.1)."""
    for offset, length in zip(offsets, lengths, strict=False):
        end = data[offset : offset + length].rstrip(b"\0")[-6:]
        if reversed_bits:
            end = bytes(int(f"{byte:08b}"[::-1], 2) for byte in end)
        bits = f"{int.from_bytes(end, 'big'):b}".rstrip("0")
        if not bits.endswith(_END_OF_BLOCK):
            raise ImageRejected("truncated", "tiff: its CCITT data have no end, so rows may be missing")


def jpeg_parts(image: TiffImagePlugin.TiffImageFile, data: bytes) -> Iterator[bytes]:
    """Yield the strips or tiles of a TIFF compressed as JPEG, each as a JPEG file; nothing for others."""
    tags = image.tag_v2
    if tags.get(_COMPRESSION) != _JPEG:
        return
    tables = bytes(tags.get(_JPEG_TABLES, b""))
    tiled = _TILE_OFFSETS in tags
    offsets = _numbers(tags.get(_TILE_OFFSETS if tiled else _STRIP_OFFSETS, ()))
    lengths = _numbers(tags.get(_TILE_BYTES if tiled else _STRIP_BYTES, ()))
    for offset, length in zip(offsets, lengths, strict=False):
        part = data[offset : offset + length]
        yield tables.removesuffix(b"\xff\xd9") + part[2:] if tables else part


def _numbers(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple) else (int(value),)


_messages = threading.local()
_handler: Any = None
_installing = threading.Lock()


@contextmanager
def libtiff_messages() -> Iterator[list[str]]:
    """Collect what libtiff reports on this thread, which it would print on the standard error stream."""
    _install()
    found: list[str] = []
    _messages.found = found
    try:
        yield found
    finally:
        del _messages.found


def _install() -> None:
    """Set libtiff's error handler, once. Without the function (a Pillow built otherwise), libtiff prints as before."""
    global _handler
    with _installing:
        if _handler is not None:
            return
        kind = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
        _handler = kind(_take)  # kept, since libtiff keeps its address
        try:
            ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(_handler)
        except (AttributeError, OSError):
            return


def _take(module: bytes | None, pattern: bytes, values: int) -> None:
    """Format a message as C's vprintf, and add it to those of this thread."""
    buffer = ctypes.create_string_buffer(1024)
    ctypes.pythonapi.PyOS_vsnprintf(buffer, ctypes.c_size_t(len(buffer)), pattern, ctypes.c_void_p(values))
    text = (f"{module.decode(errors='replace')}: " if module else "") + buffer.value.decode(errors="replace")
    found = getattr(_messages, "found", None)
    if found is None:
        print(text, file=sys.stderr)
    elif len(found) < 3:
        found.append(text)
