"""Parse the header of an image file with Pillow, without what cannot matter for its pixels.

The format is told by the file's first bytes and given to the one plugin of Pillow that reads it. JPEG and PNG files are
first freed of their metadata: Pillow rejects a file for metadata that are damaged or large, although no pixel depends
on them. The orientation is read from EXIF alone.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec

from PIL import Image, ImageFile, features

from ..choices import MAX_PIXELS
from .budget import PIXELS_IN_FLIGHT, decoding_bytes
from .exif import exif_orientation
from .file import PILLOW_ERRORS, ImageRejected, rejection
from .jpeg import exif_block, parse_jpeg, without_metadata
from .jxl import jxl_size
from .png import parse_png, rebuilt
from .sniff import HEAD_BYTES, sniff
from .tiff import open_tiff

_PLUGINS = {
    "jpeg": "PIL.JpegImagePlugin:JpegImageFile",
    "png": "PIL.PngImagePlugin:PngImageFile",
    "webp": "PIL.WebPImagePlugin:WebPImageFile",
    "bmp": "PIL.BmpImagePlugin:BmpImageFile",
    "dib": "PIL.BmpImagePlugin:DibImageFile",
    "gif": "PIL.GifImagePlugin:GifImageFile",
    "jp2": "PIL.Jpeg2KImagePlugin:Jpeg2KImageFile",
    "avif": "PIL.AvifImagePlugin:AvifImageFile",
    "heic": "pillow_heif:HeifImageFile",
    "heif": "pillow_heif:HeifImageFile",
    "jxl": "pillow_jxl.JpegXLImagePlugin:JXLImageFile",
}
"""Format -> module and class of the plugin."""

_EXTRAS = {"heic": "heif", "heif": "heif", "jxl": "jxl"}
_FEATURES = {"avif": "avif", "jp2": "jpg_2000", "webp": "webp"}
"""Format -> the part of Pillow that decodes it, which not every Pillow has."""

_NAMES = {"mpo": "jpeg", "jpeg2000": "jp2", "dib": "bmp", "heif": "heic"}


def open_image(data: bytes) -> Image.Image:
    """Parse the header of an image file, without decoding its pixels.

    Raises
    ------
    ImageRejected
        ``empty``, ``not-an-image``, ``unsupported-format``, ``unsupported-mode``, ``truncated``, ``damaged``, or
        ``too-large`` for more than MAX_PIXELS.
    """
    kind = kind_of(data)
    try:
        image = _open_jxl(data) if kind == "jxl" else _open(kind, data)
    except PILLOW_ERRORS as error:
        raise rejection(data, error) from None
    _check_size(*image.size)
    return image


def kind_of(data: bytes) -> str:
    """Return the format of a file. Raises ImageRejected for one that is empty, no image, or not decoded here."""
    if not data:
        raise ImageRejected("empty", "0 bytes")
    kind = sniff(data[:HEAD_BYTES])
    if kind is None:
        raise ImageRejected("not-an-image", f"starts with {data[:8].hex(' ')}: no image format that is known here")
    if kind == "tiff" or kind in _PLUGINS:
        return kind
    raise ImageRejected("unsupported-format", f"{kind}: is not read; convert it to PNG")


def format_name(image: Image.Image) -> str:
    """Return the file format in lower case. An MPO, which is a JPEG of several images, counts as ``jpeg``."""
    name = (image.format or "").lower()
    return _NAMES.get(name, name)


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1..8, that is still to be applied; 1 if there is none or it cannot be read.

    Other statements of an orientation, such as one in XMP, do not count.
    """
    if image.format in ("TIFF", "HEIF") or (image.format == "JXL" and not getattr(image, "jpeg", False)):
        return 1  # the plugin turns the image itself, and reports the size as turned
    block = image.info.get("exif")
    if isinstance(block, bytes):
        return exif_orientation(block)
    if "xmp" in image.info or "XML:com.adobe.xmp" in image.info:
        return 1
    try:
        value = image.getexif().get(0x0112, 1)  # set on an image in memory
    except PILLOW_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageRejected("too-large", f"{width}x{height} pixels, more than {MAX_PIXELS:,}")


def _open_jxl(data: bytes) -> Image.Image:
    """Open a JPEG XL within the memory budget: the plugin decodes its pixels at once."""
    plugin = _plugin("jxl")
    size = jxl_size(data)
    if size is None:
        raise ImageRejected("truncated" if len(data) < HEAD_BYTES else "damaged", "jxl: the header cannot be read")
    _check_size(*size)
    with PIXELS_IN_FLIGHT.hold(decoding_bytes(*size, "jxl")):
        return plugin(io.BytesIO(data))


def _open(kind: str, data: bytes) -> Image.Image:
    exif = b""
    if kind == "tiff":
        return open_tiff(data)
    if kind == "jpeg":
        info = parse_jpeg(data)
        data, exif = without_metadata(data, info), exif_block(info)
    elif kind == "png":
        png = parse_png(data)
        data, exif = rebuilt(data, png), png.exif
    elif kind == "bmp" and not data.startswith(b"BM"):
        kind = "dib"
    image = _plugin(kind)(io.BytesIO(data))
    if exif:
        image.info["exif"] = exif
    return image


@cache
def _plugin(kind: str) -> Callable[[io.BytesIO], ImageFile.ImageFile]:
    """Return the plugin of a format. Raises ImageRejected (``unsupported-format``) if it is not installed."""
    module, _, name = _PLUGINS[kind].partition(":")
    if kind in _EXTRAS and find_spec(module.partition(".")[0]) is None:
        raise ImageRejected("unsupported-format", f"{kind}: install distil-cache[{_EXTRAS[kind]}]")
    if kind in _FEATURES and not features.check(_FEATURES[kind]):
        raise ImageRejected(
            "unsupported-format", f"{kind}: the installed Pillow is built without it; install a newer one"
        )
    plugin: Callable[[io.BytesIO], ImageFile.ImageFile] = getattr(import_module(module), name)
    return plugin
