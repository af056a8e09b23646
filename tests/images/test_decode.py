from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from distil_cache.choices import MAX_PIXELS, StoredPreset
from distil_cache.errors import UsageError
from distil_cache.images.decode import decode
from distil_cache.images.file import ImageRejected, Limits
from distil_cache.images.headers import read_header
from distil_cache.images.spec import ImageSpec
from distil_cache.images.upright import load_rgb
from hypothesis import given, settings
from hypothesis import strategies as st
from image_bytes import bad_files, noise, png_of_size, saved, turned
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import ValidationError
from torchvision.transforms import functional as reference
from torchvision.transforms.functional import InterpolationMode

PRESETS: tuple[StoredPreset, ...] = get_args(StoredPreset)
SIZES = [(24, 32), (33, 20), (40, 40), (7, 64), (90, 61), (16, 31), (200, 150)]


def rgb(data: bytes) -> NDArray[np.uint8]:
    return load_rgb(data, Limits())


def as_float(pixels: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float().div(255)


def rounded(values: torch.Tensor) -> NDArray[np.uint8]:
    return np.floor(values.double().mul(255).clamp(0, 255).numpy() + 0.5).astype(np.uint8)


def assert_equal_but_for_rounding(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> None:
    difference = np.abs(ours.astype(int) - theirs.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001


@pytest.mark.parametrize("shape", SIZES)
def test_distildire_equals_torchvision_resize_and_centre_crop_of_a_float_tensor(shape: tuple[int, int]) -> None:
    pixels = noise(*shape)
    resized = reference.resize(as_float(pixels), [16], InterpolationMode.BILINEAR, antialias=True)
    theirs = rounded(reference.center_crop(resized, [16]))
    assert_equal_but_for_rounding(decode(saved(pixels), ImageSpec(size=16), Limits(min_side=1)), theirs)


@pytest.mark.parametrize("shape", SIZES)
def test_dire_is_halved_while_it_can_be_then_resized_by_pillow_and_cropped_from_the_floor(
    shape: tuple[int, int],
) -> None:
    pixels = noise(*shape)
    image = Image.fromarray(pixels)
    height, width = shape
    while min(height, width) >= 32:
        height, width = height // 2, width // 2
        image = reference.resize(image, [height, width], InterpolationMode.BOX)
    scale = 16 / min(height, width)
    image = reference.resize(image, [round(height * scale), round(width * scale)], InterpolationMode.BICUBIC)
    theirs = reference.crop(image, (image.height - 16) // 2, (image.width - 16) // 2, 16, 16)
    ours = decode(saved(pixels), ImageSpec(size=16, preset="dire-center-crop"))
    np.testing.assert_array_equal(ours, np.asarray(theirs).transpose(2, 0, 1))


def test_the_crop_of_dire_starts_at_the_floor_of_half_the_rest() -> None:
    pixels = noise(32, 37)
    result = decode(saved(pixels), ImageSpec(size=32, preset="dire-center-crop"))
    np.testing.assert_array_equal(result, pixels[:, 2:34].transpose(2, 0, 1))
    wide = noise(32, 39)
    result = decode(saved(wide), ImageSpec(size=32, preset="dire-center-crop"))
    np.testing.assert_array_equal(result, wide[:, 3:35].transpose(2, 0, 1))


@pytest.mark.parametrize("shape", SIZES)
def test_dire_v1_crops_the_centre_square_and_resizes_bicubically_without_antialiasing(shape: tuple[int, int]) -> None:
    pixels = noise(*shape)
    square = reference.center_crop(as_float(pixels), [min(shape)])
    theirs = rounded(reference.resize(square, [16, 16], InterpolationMode.BICUBIC, antialias=False))
    assert_equal_but_for_rounding(decode(saved(pixels), ImageSpec(size=16, preset="dire")), theirs)


@pytest.mark.parametrize("shape", SIZES)
def test_dnf_equals_torchvision_squashing_a_pil_image(shape: tuple[int, int]) -> None:
    pixels = noise(*shape)
    squashed = reference.resize(Image.fromarray(pixels), [16, 16], InterpolationMode.BICUBIC)
    ours = decode(saved(pixels), ImageSpec(size=16, preset="dnf"))
    np.testing.assert_array_equal(ours, np.asarray(squashed).transpose(2, 0, 1))


@pytest.mark.parametrize("preset", PRESETS)
def test_an_image_that_has_the_size_passes_bit_for_bit(preset: StoredPreset) -> None:
    pixels = noise(32, 32)
    result = decode(saved(pixels), ImageSpec(size=32, preset=preset))
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, pixels.transpose(2, 0, 1))


def test_an_image_whose_shorter_side_has_the_size_is_only_cropped() -> None:
    pixels = noise(32, 41)
    result = decode(saved(pixels), ImageSpec(size=32))
    np.testing.assert_array_equal(result, pixels[:, 4:36].transpose(2, 0, 1))


def test_a_flat_image_stays_flat_in_every_preset() -> None:
    data = saved(np.full((50, 70, 3), 201, np.uint8))
    for preset in PRESETS:
        assert np.unique(decode(data, ImageSpec(size=16, preset=preset))).tolist() == [201]


def shape_shown(data: bytes) -> tuple[int, int]:
    """Height and width of a file as it is shown, from its header."""
    facts = read_header(data)
    return (facts.width, facts.height) if facts.turned else (facts.height, facts.width)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_every_format_decodes_to_what_pillow_shows(preset: StoredPreset, format: str) -> None:  # noqa: A002
    options = {"lossless": True} if format == "WEBP" else {}
    data = saved(noise(20, 30), format, **options)
    assert decode(data, ImageSpec(size=16, preset=preset)).shape == (3, 16, 16)
    assert read_header(data).format == format.lower()
    if format in ("PNG", "WEBP", "BMP", "TIFF"):
        np.testing.assert_array_equal(rgb(data), noise(20, 30))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_honoured_and_the_header_gives_the_size_as_shown(orientation: int, format: str) -> None:  # noqa: A002
    options = {"lossless": True} if format == "WEBP" else {}
    picture = Image.fromarray(noise(20, 30))
    data = saved(picture, format, exif=turned(orientation), **options)
    plain = Image.fromarray(rgb(saved(picture, format, **options)))
    plain.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(plain))
    np.testing.assert_array_equal(rgb(data), upright)
    assert shape_shown(data) == upright.shape[:2]


def test_orientation_in_a_png_chunk_after_the_pixels_is_honoured() -> None:
    plain, with_exif = saved(noise(20, 30)), saved(noise(20, 30), exif=turned(6))
    start = with_exif.index(b"eXIf") - 4
    chunk = with_exif[start : start + 12 + int.from_bytes(with_exif[start : start + 4], "big")]
    moved = plain[:-12] + chunk + plain[-12:]
    assert rgb(moved).shape == (30, 20, 3)
    assert shape_shown(moved) == (30, 20)


def test_damaged_exif_data_do_not_make_an_image_unusable() -> None:
    data = saved(noise(20, 30), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert rgb(data).shape == (20, 30, 3)


def test_grey_is_repeated_in_three_channels() -> None:
    grey = noise()[..., 0]
    np.testing.assert_array_equal(rgb(saved(grey)), np.repeat(grey[..., None], 3, axis=2))


def test_16_bit_grey_is_scaled_by_257_and_rounded_not_clipped() -> None:
    values = np.array([0, 128, 129, 257, 32896, 40000, 65406, 65407, 65535, 300, 600, 900], np.uint16).repeat(6)
    expected = np.round(values / 257).astype(np.uint8).reshape(8, 9)
    for format in ("PNG", "TIFF"):  # noqa: A001
        np.testing.assert_array_equal(rgb(saved(values.reshape(8, 9), format))[..., 1], expected)


def test_black_and_white_becomes_0_and_255() -> None:
    bits = noise()[..., 0] > 128
    np.testing.assert_array_equal(rgb(saved(Image.fromarray(bits)))[..., 2], np.where(bits, 255, 0))


def test_a_palette_is_looked_up() -> None:
    picture = Image.fromarray(noise()).quantize(16)
    np.testing.assert_array_equal(rgb(saved(picture)), np.asarray(picture.convert("RGB")))


def test_cmyk_is_converted() -> None:
    data = saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "TIFF")
    assert np.unique(rgb(data).reshape(-1, 3), axis=0).tolist() == [[255, 0, 0]]


def test_transparent_pixels_lie_on_white_and_opaque_ones_are_untouched() -> None:
    pixels = np.dstack([noise(), np.full((24, 32), 255, np.uint8)])
    pixels[:8, :, 3] = 0
    pixels[8:16] = (0, 0, 0, 128)
    result = rgb(saved(pixels))
    assert (result[:8] == 255).all()
    assert (result[8:16] == 127).all()
    np.testing.assert_array_equal(result[16:], pixels[16:, :, :3])


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_composited_on_white(format: str) -> None:  # noqa: A002
    picture = Image.new("P", (16, 16), 3)
    picture.putpalette([10, 20, 30] * 256)
    picture.paste(5, (0, 0, 8, 16))
    result = rgb(saved(picture, format, transparency=5))
    assert (result[:, :8] == 255).all()
    assert (result[:, 8:] == (10, 20, 30)).all()


@pytest.mark.parametrize("format", ["GIF", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(format: str) -> None:  # noqa: A002
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    options = {"lossless": True} if format == "WEBP" else {}
    data = saved(frames[0], format, save_all=True, append_images=frames[1:], duration=50, **options)
    assert (rgb(data) == (255, 0, 0)).all()


@pytest.mark.parametrize("name", list(bad_files()))
def test_a_bad_file_is_refused_for_the_right_reason(name: str) -> None:
    data, reason, _ = bad_files()[name]
    with pytest.raises(ImageRejected) as caught:
        decode(data, ImageSpec(size=16), Limits())
    assert caught.value.reason == reason
    assert caught.value.detail


def test_the_pixel_limit_is_checked_before_anything_is_decoded() -> None:
    with pytest.raises(ImageRejected) as caught:
        decode(png_of_size(1001, 1000), ImageSpec(size=16), Limits(max_pixels=1_000_000))
    assert caught.value.reason == "too-large"


def test_a_strip_whose_resized_form_would_be_huge_is_refused() -> None:
    data = saved(Image.new("L", (200_000, 1)))
    with pytest.raises(ImageRejected, match="too-large"):
        decode(data, ImageSpec(size=1024))
    assert decode(data, ImageSpec(size=1024, preset="dnf")).shape == (3, 1024, 1024)


def test_limits_that_pillow_would_not_keep_are_refused() -> None:
    with pytest.raises(UsageError, match="max-pixels"):
        Limits(max_pixels=MAX_PIXELS + 1)
    with pytest.raises(UsageError, match="min-side"):
        Limits(min_side=0)
    with pytest.raises(UsageError, match="max-pixels"):
        Limits(max_pixels=0)


@settings(max_examples=150)
@given(data=st.data(), name=st.sampled_from(["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"]))
def test_whatever_bytes_are_damaged_the_file_decodes_or_is_refused(data: st.DataObject, name: str) -> None:
    damaged = bytearray(saved(noise(), name))
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    whole = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    try:
        picture = rgb(whole)
    except ImageRejected:
        return
    assert picture.shape == (*shape_shown(whole), 3)


def test_size_and_preset_decide_the_fingerprint_and_are_validated() -> None:
    fingerprints = {ImageSpec(size=size, preset=preset).fingerprint() for size in (32, 256) for preset in PRESETS}
    assert len(fingerprints) == 8
    for bad in ({"size": 15}, {"size": 1025}, {"size": 256, "preset": "other"}):
        with pytest.raises(ValidationError):
            ImageSpec.model_validate(bad)


def test_fingerprints_are_pinned() -> None:
    assert ImageSpec(size=256, algorithm=1).folder == "image-9b0f293d17472dec"
    assert ImageSpec(size=32, preset="dnf", algorithm=1).folder == "image-0b0f971350177a76"
    assert ImageSpec(size=256, preset="dire", algorithm=1).folder == "image-ac530d94e5db1630"
    assert ImageSpec(size=256).folder == "image-14dc86f42e7f85c0"
    assert ImageSpec(size=32, preset="dnf").folder == "image-1a915d8f1352e8a7"
    assert ImageSpec(size=256, preset="dire-center-crop").folder == "image-c16e62aa39be669b"
