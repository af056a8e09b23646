"""Small image files for tests, made with Pillow, and files that are broken in a known way."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def noise(height: int = 24, width: int = 32, seed: int = 0) -> NDArray[np.uint8]:
    """Return uint8 (height, width, 3) noise."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(image: Image.Image | NDArray[np.generic], format: str = "PNG", **options: object) -> bytes:  # noqa: A002
    """Return an image as the bytes of a file."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    """Return EXIF data with this orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def png_of_size(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and holds almost no data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def bad_files() -> dict[str, tuple[bytes, str, str]]:
    """Return name -> (bytes, reason, who finds out: ``scan`` or ``decode``): one of each kind of file that is refused."""
    jpeg, png = saved(noise(64, 64), "JPEG"), saved(noise(64, 64))
    corrupt = bytearray(png)
    corrupt[len(png) // 2 : len(png) // 2 + 40] = bytes(40)
    return {
        "empty.jpg": (b"", "empty", "scan"),
        "text.jpg": (b"<html>404 Not Found</html>", "not-an-image", "scan"),
        "cut-header.jpg": (jpeg[:100], "truncated", "scan"),
        "cut.webp": (saved(noise(), "WEBP")[:-50], "truncated", "scan"),
        "cut-directory.tif": (saved(noise(), "TIFF", compression="tiff_lzw")[:-100], "truncated", "scan"),
        "bomb.png": (png_of_size(50_000, 50_000), "too-large", "scan"),
        "tiny.png": (saved(noise(7, 40)), "too-small", "scan"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "truncated", "decode"),
        "cut.png": (png[: len(png) // 2], "truncated", "decode"),
        "cut.gif": (saved(noise(), "GIF")[:1000], "truncated", "decode"),
        "cut.bmp": (saved(noise(), "BMP")[:-500], "truncated", "decode"),
        "cut.tif": (saved(noise(), "TIFF")[:-500], "truncated", "decode"),
        "corrupt.png": (bytes(corrupt), "damaged", "decode"),
        "float.tif": (saved(np.zeros((24, 24), np.float32), "TIFF"), "unsupported-mode", "decode"),
    }
