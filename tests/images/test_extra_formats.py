"""HEIC and JPEG XL, which need the extras ``heif`` and ``jxl``: decoded with them, named without."""

from __future__ import annotations

import io

import numpy as np
import pytest
from distil_cache.images import opening
from distil_cache.images.file import ImageRejected, Limits
from distil_cache.images.headers import read_header
from distil_cache.images.jxl import jxl_size
from distil_cache.images.upright import load_rgb
from image_bytes import turned
from numpy.typing import NDArray
from PIL import Image
from pixel_files import smooth

PIXELS = smooth(40, 64)


def rgb(data: bytes) -> NDArray[np.uint8]:
    return load_rgb(data, Limits(min_side=1))


def heic(pixels: NDArray[np.uint8], orientation: int = 1) -> bytes:
    heif = pytest.importorskip("pillow_heif", reason="needs distil-cache[heif]")
    buffer = io.BytesIO()
    image = heif.from_pillow(Image.fromarray(pixels))
    image.save(buffer, quality=-1, chroma=444, exif=turned(orientation).tobytes())
    return buffer.getvalue()


def jxl(pixels: NDArray[np.uint8], **options: object) -> bytes:
    pytest.importorskip("pillow_jxl", reason="needs distil-cache[jxl]")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JXL", **options)
    return buffer.getvalue()


def test_a_heic_is_decoded() -> None:
    data = heic(PIXELS)
    header = read_header(data)
    assert (header.format, header.width, header.height) == ("heic", 64, 40)
    assert np.abs(rgb(data).astype(int) - PIXELS).max() <= 4


def test_a_heic_is_turned_once() -> None:
    data = heic(PIXELS, 6)
    found = rgb(data)
    header = read_header(data)
    shown = (header.height, header.width)[:: -1 if header.turned else 1]
    assert found.shape[:2] == shown
    expected = PIXELS if found.shape[0] == 40 else np.rot90(PIXELS, -1)
    assert np.abs(found.astype(int) - expected).max() <= 4


def test_a_jpeg_xl_is_decoded() -> None:
    data = jxl(PIXELS, lossless=True)
    header = read_header(data)
    assert (header.format, header.width, header.height) == ("jxl", 64, 40)
    np.testing.assert_array_equal(rgb(data), PIXELS)


@pytest.mark.parametrize(
    "size", [(1, 1), (8, 8), (64, 40), (40, 64), (300, 200), (257, 1031), (160, 90), (9000, 3), (3, 9000), (256, 256)]
)
def test_the_size_of_a_jpeg_xl_is_read_without_decoding_it(size: tuple[int, int]) -> None:
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    assert jxl_size(jxl(pixels)) == size
    assert jxl_size(jxl(pixels, use_container=True)) == size


def test_a_jpeg_xl_that_claims_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    pytest.importorskip("pillow_jxl", reason="needs distil-cache[jxl]")
    bits = 0 | 2 << 1 | (200_000 - 1) << 3 | 1 << 21  # a height of 18 bits, and a square
    assert jxl_size(b"\xff\x0a" + bits.to_bytes(12, "little")) == (200_000, 200_000)
    with pytest.raises(ImageRejected, match="too-large: 200000x200000"):
        rgb(b"\xff\x0a" + bits.to_bytes(12, "little") + bytes(50))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_part_of_such_a_file_is_refused(share: float) -> None:
    for data in (heic(PIXELS), jxl(PIXELS, lossless=True)):
        with pytest.raises(ImageRejected) as caught:
            rgb(data[: int(len(data) * share)])
        assert caught.value.reason in ("truncated", "damaged")


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", r"unsupported-format: heic: install distil-cache\[heif\]"),
        (b"\xff\x0a", r"unsupported-format: jxl: install distil-cache\[jxl\]"),
    ],
)
def test_without_the_extra_the_reason_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, head: bytes, says: str
) -> None:
    opening._plugin.cache_clear()
    monkeypatch.setattr(opening, "find_spec", lambda name: None)
    try:
        with pytest.raises(ImageRejected, match=says):
            rgb(head + bytes(60))
    finally:
        opening._plugin.cache_clear()
