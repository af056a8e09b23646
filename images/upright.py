"""Decode an image file to the whole upright image in RGB, without torch.

These are steps 1 to 4 of :mod:`.decode`, which lists all of them.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import GifImagePlugin, Image, ImageFile, Jpeg2KImagePlugin, PngImagePlugin, TiffImagePlugin

from .budget import PIXELS_IN_FLIGHT, decoding_bytes
from .file import PILLOW_ERRORS, ImageRejected, Limits, rejection
from .gif import GifFrame, first_frame
from .jp2 import check_tile_parts
from .jpeg_decode import check_jpeg, decode_jpeg
from .opening import format_name, open_image, orientation
from .png import PngFile, check_pixel_sums, holds_all_rows, parse_png, rebuilt
from .tiff import check_strips, jpeg_parts, libtiff_messages

_PLAIN_MODES = frozenset({"1", "L", "P", "RGB", "RGBA", "RGBX", "LA", "PA", "La", "RGBa", "CMYK", "YCbCr"})

_WHITE = (255, 255, 255, 255)
_BAND_PIXELS = 1 << 20
_PHOTOMETRIC, _WHITE_IS_ZERO, _BITS = 262, 0, 258


def load_rgb(data: bytes, limits: Limits) -> NDArray[np.uint8]:
    """Decode an image file to its whole upright image.

    Parameters
    ----------
    data
        Bytes of the whole file.
    limits
        Images outside these limits are rejected.

    Returns
    -------
    uint8 array of shape (height, width, 3)
        RGB.

    Raises
    ------
    ImageRejected
        With the reasons of :func:`.decode.decode`.
    """
    image = open_image(data)
    limits.check(*image.size)
    with PIXELS_IN_FLIGHT.hold(decoding_bytes(*image.size, format_name(image))):
        return upright_file(image, data)


def upright_file(image: Image.Image, data: bytes) -> NDArray[np.uint8]:
    """Decode as :func:`load_rgb` does a file whose header :func:`.opening.open_image` has parsed; close the image."""
    try:
        return turned(_DECODERS.get(image.format or "", _load_other)(image, data), orientation(image))
    except PILLOW_ERRORS as error:
        raise rejection(data, error) from None
    finally:
        image.close()  # its pixels need not wait for the caller to let go of the image


def upright_rgb(image: Image.Image, limits: Limits) -> NDArray[np.uint8]:
    """Decode as :func:`load_rgb` does an image that is in memory, or that Pillow has opened."""
    limits.check(*image.size)
    try:
        with libtiff_messages():
            image.load()
        return turned(_to_rgb(image), orientation(image))
    except PILLOW_ERRORS as error:
        raise rejection(b"", error) from None


def turned(pixels: NDArray[np.uint8], exif: int) -> NDArray[np.uint8]:
    """Undo an EXIF orientation, 1..8."""
    if exif >= 5:
        pixels = pixels.transpose(1, 0, 2)
    across, down = exif in (2, 3, 6, 7), exif in (3, 4, 7, 8)
    return np.ascontiguousarray(pixels[:: -1 if down else 1, :: -1 if across else 1])


def _load_jpeg(image: Image.Image, data: bytes) -> NDArray[np.uint8]:
    return decode_jpeg(data)


def _load_png(image: Image.Image, data: bytes) -> NDArray[np.uint8]:
    png = parse_png(data)
    check_pixel_sums(data, png)
    if png.colour == 3 and not png.palette:
        raise ImageRejected("damaged", "png: it has no palette")
    if png.transparency and png.colour in (0, 2):  # one transparent colour
        image = PngImagePlugin.PngImageFile(io.BytesIO(rebuilt(data, png, transparency=False)))
    image.load()
    if _is_blank(image, _last_png_row(png, image)) and not holds_all_rows(data, png):
        raise ImageRejected("truncated", f"png, {len(data):,} bytes: it does not hold all rows")
    pixels = _to_rgb(image)
    if png.transparency and png.colour in (0, 2):
        pixels[_has_colour(image, data, png)] = 255
    return pixels


def _last_png_row(png: PngFile, image: Image.Image) -> int | None:
    """Return the row that is decoded last; None if there is none that only the last pass fills."""
    if not png.interlaced:
        return image.height - 1
    return image.height // 2 * 2 - 1 if image.height > 1 else None


def _has_colour(image: Image.Image, data: bytes, png: PngFile) -> NDArray[np.bool_]:
    """Return where a PNG has its transparent colour, comparing all bits of each channel."""
    count = 1 if png.colour == 0 else 3
    colour = [int.from_bytes(png.transparency[2 * i : 2 * i + 2], "big") & ((1 << png.depth) - 1) for i in range(count)]
    if png.depth < 8:
        colour = [colour[0] * 255 // ((1 << png.depth) - 1)]
    if png.depth == 16 and count == 3:
        high, low = [value >> 8 for value in colour], [value & 255 for value in colour]
        return _equals(image, high) & _equals(_low_bytes(data, png), low)
    return _equals(image, colour)


def _low_bytes(data: bytes, png: PngFile) -> Image.Image:
    """Decode the low bytes of a 16-bit RGB PNG: what Pillow takes for the high ones in the other byte order."""
    image = PngImagePlugin.PngImageFile(io.BytesIO(rebuilt(data, png, transparency=False)))
    name, extents, offset, _ = image.tile[0]
    image.tile = [ImageFile._Tile(name, extents, offset, "RGB;16L")]
    image.load()
    return image


def _equals(image: Image.Image, colour: list[int]) -> NDArray[np.bool_]:
    found = np.empty((image.height, image.width), np.bool_)
    for top, band in _bands(image):
        values = np.asarray(band.convert("L") if band.mode == "1" else band)
        same = values.reshape(band.height, band.width, -1) == np.array(colour)
        found[top : top + band.height] = same.all(axis=2)
    return found


def _load_gif(image: Image.Image, data: bytes) -> NDArray[np.uint8]:
    frame = first_frame(data)
    if frame is None or not frame.width or not frame.height:
        raise ImageRejected("truncated" if not data.rstrip(b"\0").endswith(b";") else "damaged", "gif: it has no frame")
    alone = _loaded_gif(frame)
    if _is_blank(alone, frame.last_row) and not _fills_last_row(frame):
        raise ImageRejected("truncated", f"gif, {len(data):,} bytes: its first frame lacks rows")
    pixels = _to_rgb(alone)
    if frame.transparent is not None:
        pixels[_equals(alone, [frame.transparent])] = 255
    if (frame.left, frame.top, *alone.size) == (0, 0, *image.size):
        return pixels
    canvas = np.full((image.height, image.width, 3), 255, np.uint8)
    canvas[frame.top : frame.top + frame.height, frame.left : frame.left + frame.width] = pixels
    return canvas


def _loaded_gif(frame: GifFrame, behind: int | None = None) -> Image.Image:
    """Decode a frame; pixels that it lacks have the index ``behind``, else 0."""
    image = GifImagePlugin.GifImageFile(io.BytesIO(frame.alone(behind)))
    image.load()
    return image


def _fills_last_row(frame: GifFrame) -> bool:
    """Check by another index behind the frame whether its last row, which is all 0, was decoded."""
    return _is_blank(_loaded_gif(frame, 1), frame.last_row)


def _load_tiff(image: Image.Image, data: bytes) -> NDArray[np.uint8]:
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    check_strips(image, data)
    for part in jpeg_parts(image, data):
        check_jpeg(part)
    with libtiff_messages() as messages:
        try:
            image.load()
        except PILLOW_ERRORS as error:
            raise rejection(data, OSError("; ".join(messages)) if messages else error) from None
    if messages:
        raise ImageRejected("damaged", f"tiff: {'; '.join(messages)}")
    bits = image.tag_v2.get(_BITS, (1,))[0]
    return _to_rgb(image, bits, white_is_zero=image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO)


def _load_other(image: Image.Image, data: bytes) -> NDArray[np.uint8]:
    if image.format == "JPEG2000":
        whole = check_tile_parts(data)
        image = image if whole is data else Jpeg2KImagePlugin.Jpeg2KImageFile(io.BytesIO(whole))
    image.load()
    return _to_rgb(image)


_DECODERS = {"JPEG": _load_jpeg, "PNG": _load_png, "GIF": _load_gif, "TIFF": _load_tiff}


def _to_rgb(image: Image.Image, bits: int = 16, *, white_is_zero: bool = False) -> NDArray[np.uint8]:
    """Convert a decoded image to RGB, transparent pixels on white, a band of rows at a time.

    Parameters
    ----------
    image
        Decoded image.
    bits
        Bits per pixel of an image with more than 8.
    white_is_zero
        Whether Pillow has left such an image inverted.
    """
    if image.mode not in _PLAIN_MODES and not image.mode.startswith("I;16"):
        raise ImageRejected("unsupported-mode", f"Pillow's mode {image.mode}: convert it to 8-bit RGB or 16-bit grey")
    transparent = image.has_transparency_data
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top, band in _bands(image):
        target = pixels[top : top + band.height]
        if band.mode.startswith("I;16"):
            grey = _scaled(np.asarray(band), (1 << bits) - 1)
            target[:] = (255 - grey if white_is_zero else grey)[..., None]
        elif band.mode == "La":  # premultiplied: white adds what the pixel lets through
            values = np.asarray(band).astype(np.int16)
            target[:] = (values[..., :1] + 255 - values[..., 1:]).clip(0, 255)
        elif transparent:
            white = Image.new("RGBA", band.size, _WHITE)
            target[:] = np.asarray(Image.alpha_composite(white, band.convert("RGBA")).convert("RGB"))
        else:
            target[:] = np.asarray(band if band.mode == "RGB" else band.convert("RGB"))
    return pixels


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield an image in bands of rows, each with the number of its first row."""
    rows = max(1, _BAND_PIXELS // image.width)
    if rows >= image.height:
        yield 0, image
        return
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _scaled(values: NDArray[np.uint16], most: int) -> NDArray[np.uint8]:
    """Scale 0..most to 0..255 and round: 65535 / 255 is 257."""
    return ((values.astype(np.uint32) * 255 + most // 2) // most).astype(np.uint8)


def _is_blank(image: Image.Image, row: int | None) -> bool:
    """Check whether a row holds nothing but zeros, as one that was never decoded does."""
    if row is None:
        return True
    line = image.crop((0, row, image.width, row + 1))
    # A decoded row of RGB has 255 in Pillow's fourth byte, a new image 0.
    return not any(line.tobytes("raw", "RGBX") if image.mode == "RGB" else line.tobytes())
