"""A JPEG whose pixels lack data is refused; one that only lacks its end is not. Whole files have Pillow's pixels."""

from __future__ import annotations

import base64
import io
import itertools

import numpy as np
import pytest
from distil_cache.images.file import ImageRejected, Limits
from distil_cache.images.huffman import lacks_blocks
from distil_cache.images.jpeg import parse_jpeg
from distil_cache.images.upright import load_rgb
from image_bytes import noise, saved, turned
from numpy.typing import NDArray
from PIL import Image
from pixel_files import smooth

END = b"\xff\xd9"
SCAN = b"\xff\xda"
KINDS: dict[str, dict[str, object]] = {
    "sequential": {"quality": 90},
    "progressive": {"quality": 90, "progressive": True},
    "with own tables": {"quality": 90, "optimize": True},
    "with restarts": {"quality": 90, "restart_marker_rows": 1},
}


THREE_BLOCKS_OF_LUMA = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxOUlNSMj5a"
    "YVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT0//wAAR"
    "CAAQADADATEAAhEBAxEB/8QAFgABAQEAAAAAAAAAAAAAAAAAAwUG/8QAGBAAAwEBAAAAAAAAAAAAAAAAAAIFYmH/xAAXAQEAAwAAAAAAAAAA"
    "AAAAAAAGAwUH/8QAFxEBAQEBAAAAAAAAAAAAAAAABAADMf/aAAwDAQACEQMRAD8Ay6z+CrPyIs/gpbv2iIiVZ+RFn5FWfwIt37KCIqiz8irP"
    "4Ks/Jbt27Z0REiz8irP4Is/IRbv2UERf/9k="
)
"""48x16 pixels with the sampling factors 3x1, 1x1, 1x1, which simplejpeg does not take."""


def rgb(data: bytes) -> NDArray[np.uint8]:
    return load_rgb(data, Limits(min_side=1))


def pillow(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def reason(data: bytes) -> str:
    with pytest.raises(ImageRejected) as caught:
        rgb(data)
    return caught.value.reason


@pytest.mark.parametrize("kind", KINDS)
def test_half_of_the_data_is_refused_whatever_stands_in_for_the_rest(kind: str) -> None:
    data = saved(noise(96, 96), "JPEG", **KINDS[kind])
    half = len(data) // 2
    assert reason(data[:half]) == "truncated"
    assert reason(data[:half] + END) == "truncated"
    assert reason(data[:half] + bytes(len(data) - half - 2) + END) in ("truncated", "damaged")
    assert reason(data[:half] + b"\x5a" * (len(data) - half - 2) + END) in ("truncated", "damaged")


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_end_marker_and_bytes_after_it_change_nothing(kind: str) -> None:
    data = saved(smooth(70, 90), "JPEG", **KINDS[kind])
    assert data.endswith(END)
    for whole in (data[:-1], data[:-2], data + b"appended by a camera", data + data, data + bytes(3000)):
        np.testing.assert_array_equal(rgb(whole), pillow(data))


def test_a_gap_in_the_middle_is_refused() -> None:
    data = saved(noise(200, 200), "JPEG", quality=85)
    middle = len(data) // 2
    for gap in (bytes(100), bytes(512), b"\xff" * 100, noise(10, 10).tobytes()):
        assert reason(data[:middle] + gap + data[middle + len(gap) :]) in ("damaged", "truncated")


def test_damaged_restart_markers_are_refused() -> None:
    data = saved(noise(96, 96), "JPEG", restart_marker_rows=1)
    start = data.index(SCAN)
    places = [i for i in range(start, len(data) - 1) if data[i] == 0xFF and 0xD0 <= data[i + 1] <= 0xD7]
    assert len(places) == 5
    other, removed = bytearray(data), data[: places[2]] + data[places[2] + 2 :]
    other[places[2] + 1] = 0xD0 + (data[places[2] + 1] + 3) % 8
    assert reason(bytes(other)) == "damaged"
    assert reason(removed) in ("damaged", "truncated")
    assert reason(data[: places[1]] + data[places[2] :]) in ("damaged", "truncated")


def test_a_progressive_file_that_ends_between_two_scans_is_refused() -> None:
    data = saved(smooth(60, 60), "JPEG", progressive=True)
    scans = [i for i in range(len(data) - 1) if data[i : i + 2] == SCAN]
    assert len(scans) > 5
    for scan in scans[1:]:
        assert reason(data[:scan] + END) == "truncated"


def test_whole_files_of_every_kind_have_the_pixels_of_pillow() -> None:
    sizes = ((1, 1), (7, 9), (33, 47), (64, 64))
    for (height, width), quality, sampling, progressive in itertools.product(sizes, (5, 75, 100), (0, 1, 2), (0, 1)):
        for pixels in (noise(height, width), smooth(height, width)):
            options = {"quality": quality, "subsampling": sampling, "progressive": bool(progressive)}
            data = saved(pixels, "JPEG", **options)
            np.testing.assert_array_equal(rgb(data), pillow(data), err_msg=f"{options} {width}x{height}")


@pytest.mark.parametrize("mode", ["L", "CMYK", "YCbCr"])
@pytest.mark.parametrize("progressive", [False, True])
def test_grey_cmyk_and_ycbcr_have_the_pixels_of_pillow(mode: str, progressive: bool) -> None:
    data = saved(Image.fromarray(smooth(45, 61)).convert(mode), "JPEG", progressive=progressive)
    np.testing.assert_array_equal(rgb(data), pillow(data))


@pytest.mark.parametrize("keep_rgb", [False, True])
def test_a_marker_of_adobe_still_names_the_colours(keep_rgb: bool) -> None:
    data = saved(smooth(40, 40), "JPEG", keep_rgb=keep_rgb, subsampling=0)
    for marker in (b"", b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([0 if keep_rgb else 1])):
        marked = data[:2] + marker + data[2:]
        np.testing.assert_array_equal(rgb(marked), pillow(marked))


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
@pytest.mark.parametrize("transform", [0, 1, 2, 3])
def test_a_transform_of_adobe_that_there_is_not_for_so_many_channels_is_read_as_by_pillow(
    mode: str, transform: int
) -> None:
    data = saved(Image.fromarray(smooth(70, 90)).convert(mode), "JPEG")
    adobe = b"\xff\xee\0\x0eAdobe\0d\0\0\0\0" + bytes((transform,))
    info = parse_jpeg(data)
    kept = [(marker, content) for marker, content in info.segments if marker not in (0xE0, 0xEE)]
    body = b"".join(bytes((0xFF, marker)) + (len(c) + 2).to_bytes(2, "big") + c for marker, c in kept)
    altered = data[:2] + adobe + body + data[info.scan_at :]
    np.testing.assert_array_equal(rgb(altered), pillow(altered))


def test_a_cut_between_restart_markers_is_missing_data() -> None:
    data = saved(noise(96, 96), "JPEG", restart_marker_blocks=1)
    marks = [at for at in range(len(data) - 1) if data[at] == 0xFF and 0xD0 <= data[at + 1] <= 0xD7]
    for at in (marks[3], marks[len(marks) // 2], marks[-2]):
        for cut in range(at - 4, at + 4):
            assert reason(data[:cut]) == "truncated"
            assert reason(data[:cut] + END) == "truncated"


def test_unusual_sampling_factors_are_decoded_to_the_pixels_of_pillow() -> None:
    data = base64.b64decode(THREE_BLOCKS_OF_LUMA)
    assert rgb(data).shape == (16, 48, 3)
    np.testing.assert_array_equal(rgb(data), pillow(data))
    np.testing.assert_array_equal(rgb(data[:-2]), pillow(data))


def test_unusual_sampling_factors_do_not_hide_missing_data() -> None:
    data = base64.b64decode(THREE_BLOCKS_OF_LUMA)
    start = data.index(SCAN) + 14
    for place in range(start, len(data) - 3, 5):
        assert reason(data[:place] + END) == "truncated"
    for place in range(start, len(data) - 20, 5):
        assert reason(data[:place] + data[place + 12 :]) in ("truncated", "damaged")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "progressive"])
def test_the_walk_over_huffman_codes_knows_whole_files_from_others(kind: str) -> None:
    for pixels, sampling in itertools.product((noise(40, 56), smooth(61, 47), smooth(8, 8)), (0, 1, 2)):
        data = saved(pixels, "JPEG", subsampling=sampling, **KINDS[kind])
        frame = frame_of(data)
        assert lacks_blocks(data, frame, 2) is None
        scan = data.index(SCAN) + 14
        cut = data[: scan + (len(data) - scan) * 2 // 3] + END
        assert lacks_blocks(cut, frame, 2) is not None
        assert lacks_blocks(data[:-2] + b"\x12\x34\x56" + END, frame, 2) is not None


def frame_of(data: bytes) -> bytes:
    return next(content for marker, content in parse_jpeg(data).segments if marker in (0xC0, 0xC1))


@pytest.mark.parametrize(
    ("marker", "precision", "words"),
    [(0xC9, 8, "arithmetic"), (0xC3, 8, "SOF3"), (0xC7, 8, "SOF7"), (0xC1, 12, "12-bit")],
)
def test_processes_that_are_not_decoded_here_are_named(marker: int, precision: int, words: str) -> None:
    data = bytearray(saved(noise(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 1], data[frame + 4] = marker, precision
    with pytest.raises(ImageRejected, match=words) as caught:
        rgb(bytes(data))
    assert caught.value.reason == "unsupported-mode"


def test_metadata_do_not_decide_whether_a_jpeg_is_used() -> None:
    data = saved(noise(40, 40), "JPEG")
    expected = rgb(data)

    def segment(marker: int, content: bytes) -> bytes:
        return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2, "big") + content

    for extra in (
        segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\x7f"),
        segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(60_000)),
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<tiff:Orientation>6</tiff:Orientation>"),
        segment(0xE2, b"MPF\0II*\0\xff\xff\xff\xff"),
        segment(0xE2, b"ICC_PROFILE\0\x05\x01damaged"),
        segment(0xED, b"Photoshop 3.0\x008BIM\x04"),
        segment(0xE0, b"JFIF\0\x09\x09\x09" + bytes(6)),
        segment(0xEE, b"Adobe\0\x64\0\0\0\0\x07"),
        segment(0xFE, b"\xff\xd9 a comment with markers \xff\xda") * 2000,
        segment(0xE5, bytes(65_000)) * 40,
    ):
        np.testing.assert_array_equal(rgb(data[:2] + extra + data[2:]), expected)


def test_the_orientation_of_exif_is_applied_beside_xmp_that_says_otherwise() -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    pixels = noise(20, 30)
    plain = rgb(saved(pixels, "JPEG"))
    np.testing.assert_array_equal(rgb(saved(pixels, "JPEG", xmp=xmp)), plain)
    np.testing.assert_array_equal(rgb(saved(pixels, "JPEG", xmp=xmp, exif=turned(6))), np.rot90(plain, -1))
