"""Images whose data hold only some of their rows are refused, whatever format; metadata decide nothing."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import PIL
import pytest
from distil_cache.images.file import ImageRejected, Limits
from distil_cache.images.headers import read_header
from distil_cache.images.tiff import libtiff_messages
from distil_cache.images.upright import load_rgb
from image_bytes import noise, saved, turned
from numpy.typing import NDArray
from PIL import Image, features
from pixel_files import PNG_SIGNATURE, chunk, png, samples_of, smooth, tiff

SAMPLES = samples_of(40, 30, 3, 8)


def rgb(data: bytes) -> NDArray[np.uint8]:
    return load_rgb(data, Limits(min_side=1))


def reason(data: bytes) -> str:
    with pytest.raises(ImageRejected) as caught:
        rgb(data)
    return caught.value.reason


# rows


@pytest.mark.parametrize("colour", [0, 2, 4, 6])
@pytest.mark.parametrize("interlaced", [False, True])
def test_a_png_that_unpacks_to_some_of_its_rows_is_refused(colour: int, interlaced: bool) -> None:
    for value in (None, 0):
        samples = samples_of(40, 30, {0: 1, 2: 3, 4: 2, 6: 4}[colour], 8)
        if value is not None:
            samples[:] = value
        assert rgb(png(samples, 8, colour, interlaced=interlaced)).shape == (40, 30, 3)
        for lacking in (1, 30):
            assert reason(png(samples, 8, colour, interlaced=interlaced, lacking=lacking)) == "truncated"


def test_a_png_of_black_rows_that_are_there_is_accepted() -> None:
    assert not rgb(saved(np.zeros((50, 50, 3), np.uint8))).any()
    assert not rgb(saved(np.zeros((50, 50), np.uint8))).any()


@pytest.mark.parametrize("cut", [1, 4, 8, 12, 16])
def test_a_png_that_lacks_only_what_follows_its_pixels_is_accepted(cut: int) -> None:
    data = saved(noise())
    np.testing.assert_array_equal(rgb(data[:-cut]), noise())
    np.testing.assert_array_equal(rgb(data + b"appended"), noise())


@pytest.mark.parametrize("interlaced", [False, True])
def test_a_gif_whose_frame_lacks_rows_is_refused(interlaced: bool) -> None:
    for pixels in (noise(40, 30)[..., 0], np.zeros((40, 30), np.uint8)):
        whole = saved(pixels, "GIF", interlace=interlaced, optimize=False)
        taller = bytearray(whole)
        frame = taller.index(b"\x2c\0\0\0\0")
        struct.pack_into("<H", taller, 8, 60)
        struct.pack_into("<H", taller, frame + 7, 60)
        assert rgb(whole).shape == (40, 30, 3)
        assert reason(bytes(taller)) == "truncated"
        assert reason(whole[: len(whole) // 2]) == "truncated"
        np.testing.assert_array_equal(rgb(whole[:-1]), rgb(whole))


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("name", ["PNG", "WEBP", "BMP", "GIF", "TIFF", "JPEG2000", "AVIF"])
def test_a_file_that_is_cut_off_is_truncated(name: str, cut: float) -> None:
    if name in ("JPEG2000", "AVIF") and not features.check({"JPEG2000": "jpg_2000", "AVIF": "avif"}[name]):
        pytest.skip(f"this Pillow has no {name}")
    data = saved(noise(60, 60), name)
    assert reason(data[: int(len(data) * cut)]) == "truncated"


def test_a_webp_whose_lengths_were_put_right_after_a_cut_is_refused() -> None:
    for lossless in (False, True):
        data = saved(noise(60, 60), "WEBP", lossless=lossless)
        cut = bytearray(data[: len(data) // 2 // 2 * 2])
        struct.pack_into("<I", cut, 4, len(cut) - 8)
        struct.pack_into("<I", cut, 16, len(cut) - 20)
        assert reason(bytes(cut)) in ("truncated", "damaged")


def test_a_tiff_with_some_of_its_strips_is_refused() -> None:
    data = bytearray(tiff(SAMPLES, 8, 2, "<", 64))
    where = data.index(struct.pack("<HHII", 278, 4, 1, 64)) + 8
    np.testing.assert_array_equal(rgb(bytes(data)), SAMPLES)
    struct.pack_into("<I", data, where, 4)  # 4 rows a strip, and one strip
    assert reason(bytes(data)) == "truncated"
    data = bytearray(tiff(SAMPLES, 8, 2, "<", 64))
    where = data.index(struct.pack("<HHII", 279, 4, 1, 3600)) + 8
    struct.pack_into("<I", data, where, 1000)
    assert reason(bytes(data)) == "truncated"


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_a_compressed_strip_that_ends_early_is_refused_in_the_words_of_its_decoder(compression: str) -> None:
    data = saved(noise(60, 60), "TIFF", compression=compression)
    image = Image.open(io.BytesIO(data))
    assert len(image.tag_v2[273]) == 1  # type: ignore[attr-defined]
    short = data.replace(struct.pack("<HHII", 279, 4, 1, image.tag_v2[279][0]), struct.pack("<HHII", 279, 4, 1, 900))  # type: ignore[attr-defined]
    assert short != data
    with pytest.raises(ImageRejected) as caught:
        rgb(short)
    assert caught.value.reason in ("damaged", "truncated")


def test_rows_missing_from_ccitt_data_are_noticed_by_its_end() -> None:
    bits = Image.fromarray(noise(60, 60)).convert("1")
    data = saved(bits, "TIFF", compression="group4")
    np.testing.assert_array_equal(rgb(data)[..., 0], np.asarray(bits) * 255)
    length = Image.open(io.BytesIO(data)).tag_v2[279][0]  # type: ignore[attr-defined]
    entry = struct.pack("<HHI", 279, 4, 1)
    short = data.replace(entry + struct.pack("<I", length), entry + struct.pack("<I", length // 2))
    assert reason(short) == "truncated"
    assert reason(saved(bits, "TIFF", compression="group3")) == "unsupported-mode"


def test_a_jpeg_2000_that_lacks_tiles_is_refused() -> None:
    if not features.check("jpg_2000"):
        pytest.skip("this Pillow has no JPEG 2000")
    data = saved(noise(60, 60), "JPEG2000", tile_size=(32, 32), no_jp2=True)
    tiles = [i for i in range(len(data) - 1) if data[i : i + 4] == b"\xff\x90\0\x0a"]
    assert len(tiles) == 4
    np.testing.assert_array_equal(rgb(data), noise(60, 60))
    for tile in tiles[1:]:
        assert reason(data[:tile] + b"\xff\xd9") == "truncated"
    assert reason(data[: tiles[3] + 40] + b"\xff\xd9") == "truncated"


@pytest.mark.parametrize("cut", [1, 2])
def test_a_jpeg_2000_that_lacks_only_its_end_marker_is_accepted(cut: int) -> None:
    data = saved(noise(40, 30), "JPEG2000")
    codestream = data[data.index(b"\xff\x4f\xff\x51") :]
    for whole in (data, codestream):
        np.testing.assert_array_equal(rgb(whole[:-cut]), rgb(data))
    assert reason(codestream[: -cut - 2]) == "truncated"


def test_grey_with_alpha_as_jpeg_in_a_tiff_is_checked_and_decoded() -> None:
    grey = smooth(48, 64, 1)
    image = Image.fromarray(np.concatenate([grey, np.full_like(grey, 255)], axis=2), "LA")
    data = saved(image, "TIFF", compression="jpeg")
    np.testing.assert_allclose(rgb(data)[..., :1].astype(int), grey, atol=12)
    start = data.index(b"\xff\xda") + 40
    assert reason(data[:start] + bytes(200) + data[start + 200 :]) in ("truncated", "damaged")


def test_values_of_12_bits_are_scaled_to_the_whole_range() -> None:
    samples = samples_of(10, 12, 1, 12)
    expected = np.round(samples * 255.0 / 4095)
    np.testing.assert_array_equal(rgb(tiff(samples, 12, 1, "<", 10)), np.repeat(expected, 3, 2))


def test_a_transparent_colour_that_is_too_short_is_damage() -> None:
    assert reason(png(SAMPLES, 8, 2, chunk(b"tRNS", b"\0\0"))) == "damaged"


def test_what_libtiff_reports_belongs_to_the_file_and_not_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(saved(noise(60, 60), "TIFF", compression="tiff_lzw"))
    data[3000:3200] = bytes(200)
    with pytest.raises(ImageRejected, match="LZW"):
        rgb(bytes(data))
    assert capfd.readouterr() == ("", "")
    with libtiff_messages() as messages:
        pass
    assert messages == []


# metadata


@pytest.mark.parametrize("good", [True, False])
def test_no_chunk_that_a_decoder_may_skip_decides_whether_a_png_is_used(good: bool) -> None:
    long = zlib.compress(b"{" + b" " * 3_000_000 + b"}")
    chunks = [
        chunk(b"zTXt", b"workflow\0\0" + long, good=good),
        chunk(b"iTXt", b"workflow\0\1\0\0\0" + long, good=good),
        chunk(b"iTXt", b"no end of its keyword", good=good),
        chunk(b"tEXt", b"parameters\0" + b"a castle, " * 200_000, good=good) * 3,
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(3_000_000)), good=good),
        chunk(b"iCCP", b"profile\0\7no deflate", good=good),
        chunk(b"sRGB", b"", good=good),
        chunk(b"pHYs", b"\0", good=good),
        chunk(b"gAMA", b"", good=good),
        chunk(b"cHRM", b"\1", good=good),
        chunk(b"acTL", bytes(3), good=good),
        chunk(b"fcTL", bytes(3), good=good),
        chunk(b"eXIf", b"II*\0\xff\xff\xff\xff", good=good),
        chunk(b"tIME", b"", good=good),
        chunk(b"zzZz", b"private", good=good),
    ]
    for extra in chunks:
        for data in (png(SAMPLES, 8, 2, extra), png(SAMPLES, 8, 2, b"", extra)):
            np.testing.assert_array_equal(rgb(data), SAMPLES)
            assert (read_header(data).width, read_header(data).height) == (30, 40)


@pytest.mark.parametrize("label", [b"IHDR", b"PLTE", b"IDAT"])
def test_a_wrong_checksum_of_a_critical_chunk_is_damage(label: bytes) -> None:
    data = bytearray(png(samples_of(8, 8, 1, 8), 8, 3, chunk(b"PLTE", bytes(768))))
    place = data.index(label) - 4
    end = place + 8 + int.from_bytes(data[place : place + 4], "big")
    data[end] ^= 0x55
    assert reason(bytes(data)) == "damaged"


def test_an_unknown_critical_chunk_is_named() -> None:
    with pytest.raises(ImageRejected, match="CgBI"):
        rgb(png(SAMPLES, 8, 2, chunk(b"CgBI", bytes(4))))


@pytest.mark.parametrize("name", ["PNG", "WEBP", "TIFF"])
def test_an_orientation_in_xmp_alone_does_not_count(name: str) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    pixels = noise(20, 30)
    if name == "PNG":
        data = png(pixels.astype(np.uint16), 8, 2, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp))
    elif name == "WEBP":
        data = saved(pixels, "WEBP", lossless=True, xmp=xmp)
    else:
        data = saved(pixels, "TIFF", tiffinfo={700: xmp})
    assert b"tiff:Orientation" in data
    np.testing.assert_array_equal(rgb(data), pixels)
    assert not read_header(data).turned
    assert (read_header(data).width, read_header(data).height) == (30, 20)


def test_exif_as_imagemagick_writes_it_into_a_png_is_read() -> None:
    block = turned(6).tobytes()
    text = b"\nexif\n%8d\n" % len(block) + block.hex().encode() + b"\n"
    pixels = noise(20, 30)
    for extra in (
        chunk(b"tEXt", b"Raw profile type exif\0" + text),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)),
    ):
        np.testing.assert_array_equal(rgb(png(pixels.astype(np.uint16), 8, 2, extra)), np.rot90(pixels, -1))


# values


def on_white(grey: NDArray[np.integer], alpha: NDArray[np.integer]) -> NDArray[np.float64]:
    return np.asarray(grey, float) * alpha / 255 + 255 - alpha


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_transparent_grey_of_any_depth_becomes_white_and_no_other_does(bits: int) -> None:
    samples = samples_of(20, 20, 1, bits)
    clear = int(samples[3, 4, 0])
    found = rgb(png(samples, bits, 0, chunk(b"tRNS", struct.pack(">H", clear))))
    expected = np.round(samples[..., 0] * 255.0 / ((1 << bits) - 1))
    expected[samples[..., 0] == clear] = 255
    np.testing.assert_array_equal(found, np.repeat(expected[..., None], 3, 2))


def test_a_transparent_colour_of_16_bits_is_compared_in_all_of_them() -> None:
    samples = np.full((8, 8, 3), 0x0410, np.uint16)
    samples[:, :4] = 0x0400
    samples[0] = 0x0310
    found = rgb(png(samples, 16, 2, chunk(b"tRNS", struct.pack(">HHH", 0x0400, 0x0400, 0x0400))))
    assert (found[1:, :4] == 255).all()
    assert (found[1:, 4:] == 4).all()
    assert (found[0] == 3).all()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_tiffs_of_16_bits_and_inverted_ones_have_their_values_or_are_refused(order: str, rows: int) -> None:
    levels = samples_of(20, 30, 3, 8)
    deep = levels * 257
    np.testing.assert_array_equal(rgb(tiff(deep, 16, 2, order, rows)), levels)
    np.testing.assert_array_equal(rgb(tiff(deep[..., :1], 16, 1, order, rows)), np.repeat(levels[..., :1], 3, 2))
    np.testing.assert_array_equal(rgb(tiff(levels, 8, 2, order, rows, planar=True)), levels)
    assert reason(tiff(deep, 16, 2, order, rows, planar=True)) == "unsupported-mode"
    inverted = tiff(deep[..., :1], 16, 0, order, rows)
    if order == "<":
        np.testing.assert_array_equal(rgb(inverted), 255 - np.repeat(levels[..., :1], 3, 2))
    else:
        assert reason(inverted) == "unsupported-mode"


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_alpha_in_a_plane_of_its_own_has_its_values_or_is_refused(extra: int) -> None:
    alpha = samples_of(20, 30, 1, 8)
    levels = samples_of(20, 30, 3, 8, 1) * (alpha if extra == 1 else 255) // 255
    for colours, photometric in ((levels, 2), (levels[..., :1], 1)):
        data = tiff(np.concatenate([colours, alpha], 2), 8, photometric, "<", 20, planar=True, extra=extra)
        if extra == 2 and photometric == 2:
            over_white = (colours * alpha.astype(float) + 255.0 * (255 - alpha)) / 255
            np.testing.assert_allclose(rgb(data), over_white, atol=1)
        else:
            assert reason(data) == "unsupported-mode"


def test_premultiplied_grey_is_laid_on_white() -> None:
    alpha = samples_of(20, 20, 1, 8)
    grey = samples_of(20, 20, 1, 8, 1) * alpha // 255
    data = tiff(np.concatenate([grey, alpha], 2), 8, 1, "<", 20, extra=1)
    if int(PIL.__version__.partition(".")[0]) < 13:  # which do not know this mode, and say so
        with pytest.raises(ImageRejected, match="unsupported-mode"):
            rgb(data)
        return
    found = rgb(data)
    np.testing.assert_array_equal(found, np.repeat(grey + 255 - alpha, 3, 2))


@pytest.mark.parametrize(
    "data",
    [
        saved(np.zeros((24, 24), np.float32), "TIFF"),
        saved(np.zeros((24, 24), np.int32), "TIFF"),
        saved(Image.new("LAB", (24, 24)), "TIFF"),
        tiff(samples_of(9, 9, 2, 16), 16, 1, "<", 9, extra=2),
        b"MM\0+\0\x08\0\0" + bytes(60),
    ],
    ids=["float", "int32", "Lab", "16-bit grey with alpha", "big-endian BigTIFF"],
)
def test_kinds_of_pixels_that_are_not_decoded_are_unsupported_and_not_damaged(data: bytes) -> None:
    assert reason(data) == "unsupported-mode"


@pytest.mark.parametrize("clear", [None, 5])
def test_what_a_gif_frame_does_not_cover_is_transparent(clear: int | None) -> None:
    indices = samples_of(6, 8, 1, 4)[..., 0].astype(np.uint8)
    image = Image.fromarray(indices, "P")
    palette = samples_of(16, 1, 3, 8, 2)[:, 0].astype(np.uint8)
    image.putpalette(palette.tobytes())
    data = bytearray(saved(image, "GIF", optimize=False, **({} if clear is None else {"transparency": clear})))
    frame = data.index(b"\x2c\0\0\0\0")
    struct.pack_into("<HH", data, 6, 20, 16)
    struct.pack_into("<HH", data, frame + 1, 7, 5)
    expected = np.full((16, 20, 3), 255, np.uint8)
    expected[5:11, 7:15] = palette[indices]
    if clear is not None:
        expected[5:11, 7:15][indices == clear] = 255
    np.testing.assert_array_equal(rgb(bytes(data)), expected)
    assert (read_header(bytes(data)).width, read_header(bytes(data)).height) == (20, 16)


# formats


@pytest.mark.parametrize(("name", "written"), [("jp2", "JPEG2000"), ("avif", "AVIF"), ("bmp", "DIB"), ("jpeg", "MPO")])
def test_more_formats_are_decoded_and_named(name: str, written: str) -> None:
    needs = {"JPEG2000": "jpg_2000", "AVIF": "avif"}.get(written)
    if needs is not None and not features.check(needs):
        pytest.skip(f"this Pillow has no {written}")
    pixels = smooth(30, 40)
    data = saved(pixels, written)
    assert read_header(data).format == name
    assert np.abs(rgb(data).astype(int) - pixels).mean() < 5


def test_of_an_animated_png_the_default_image_is_taken() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    data = saved(Image.new("RGB", (16, 16), (0, 255, 0)), save_all=True, append_images=frames, default_image=True)
    assert b"acTL" in data
    assert (rgb(data) == (0, 255, 0)).all()


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "heic"),
        (b"\xff\x0a\0\0", "jxl"),
        (b"8BPS\0\x01", "psd: is not read"),
        (b"P6\n24 24\n255\n", "pnm: is not read"),
    ],
)
def test_an_image_that_is_not_decoded_here_is_named_and_never_called_no_image(head: bytes, words: str) -> None:
    with pytest.raises(ImageRejected, match=words) as caught:
        rgb(head + bytes(100))
    assert caught.value.reason != "not-an-image"


def test_a_png_signature_alone_is_a_truncated_png() -> None:
    assert reason(PNG_SIGNATURE) == "truncated"
