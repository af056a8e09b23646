"""What is an image is told by the first bytes of its file, whatever its name."""

from __future__ import annotations

import pytest
from distil_cache.images.sniff import HEAD_BYTES, sniff
from image_bytes import noise, saved
from PIL import Image, features


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("jpeg", "JPEG"),
        ("jpeg", "MPO"),
        ("png", "PNG"),
        ("webp", "WEBP"),
        ("bmp", "BMP"),
        ("bmp", "DIB"),
        ("tiff", "TIFF"),
        ("gif", "GIF"),
        ("avif", "AVIF"),
        ("jp2", "JPEG2000"),
        ("pnm", "PPM"),
        ("dds", "DDS"),
    ],
)
def test_the_first_bytes_of_what_pillow_writes_name_the_format(name: str, written: str) -> None:
    needs = {"AVIF": "avif", "JPEG2000": "jpg_2000"}.get(written)
    if needs is not None and not features.check(needs):
        pytest.skip(f"this Pillow has no {written}")
    assert sniff(saved(noise(), written)[:HEAD_BYTES]) == name


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_a_bitmap_is_recognised_at_every_depth(mode: str) -> None:
    assert sniff(saved(Image.fromarray(noise()).convert(mode), "BMP")[:HEAD_BYTES]) == "bmp"


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
        ("heic", b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf"),
        ("avif", b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf"),
        ("avif", b"\0\0\0\x18ftypavis\0\0\0\0avismsf1"),
        ("heif", b"\0\0\0\x14ftypmif1\0\0\0\0mif1"),
        ("cr3", b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom"),
        ("jxl", b"\xff\x0a" + bytes(60)),
        ("jxl", b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl "),
        ("jp2", b"\xff\x4f\xff\x51\0\x2f"),
        ("tiff", b"MM\0+\0\x08\0\0"),
        ("psd", b"8BPS\0\x01" + bytes(40)),
        ("exr", b"\x76\x2f\x31\x01\x02\0\0\0channels"),
        ("qoi", b"qoif\0\0\0\x20\0\0\0\x20\x03\0"),
    ],
)
def test_formats_that_this_pillow_may_not_write_are_recognised(name: str, head: bytes) -> None:
    assert sniff(head) == name


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\xff",
        b"<html>404 Not Found</html>",
        b"<svg xmlns='http://www.w3.org/2000/svg'>",
        b"BM is how this text begins, and it is none of a bitmap's headers",
        b"P3 was the third plan; it has no numbers after it",
        b"P2P networks",
        b"RIFF\x24\0\0\0WAVEfmt ",
        b"RIFF\x24\0\0\0AVI LIST",
        b"\0\0\0\x18ftypisom\0\0\0\0isommp42",
        b"\0\0\0\x18ftypqt  \0\0\0\0qt  ",
        b"\0\0\0\x20ftypmp42\0\0\0\0isomavc1mif1",
        b"%PDF-1.7",
        b"PK\x03\x04",
        b"path,label\nim/0.png,0\n",
        bytes(64),
        b"\x28\0\0\0" + bytes(60),
    ],
)
def test_what_is_no_image_is_not_taken_for_one(head: bytes) -> None:
    assert sniff(head) is None
