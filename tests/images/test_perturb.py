"""What each perturbation does to the pixel, against slow versions that share no code with it, and what is refused."""

from __future__ import annotations

import hashlib
import io
import math
import statistics

import numpy as np
import pytest
from distil_cache.errors import UsageError
from distil_cache.features.adm import AdmIdentity
from distil_cache.features.builtin.eps import EpsSpec
from distil_cache.images.decode import decode
from distil_cache.images.file import ImageRejected, content_key
from distil_cache.images.perturb import check_perturbation, part_of, perturb, recompress_jpeg, unit_noise
from distil_cache.images.spec import Harmonization, ImageSpec, Perturbation, parse_harmonization, parse_perturbation
from image_bytes import noise, saved
from numpy.typing import NDArray
from PIL import Image

KEY = content_key(b"a picture")
Pixels = NDArray[np.uint8]


def picture(size: int = 20, seed: int = 0) -> Pixels:
    """Return uint8 (3, size, size): grain over a ramp, reaching both ends of the range; no version of numpy changes it."""
    ramp = np.arange(size) * 255 // (size - 1)
    grain = (np.random.PCG64(seed).random_raw(3 * size * size) % np.uint64(121)).astype(int).reshape(3, size, size) - 60
    return np.clip(ramp + grain, 0, 255).astype(np.uint8)


def slow_scaled(plane: list[list[float]], side: int) -> list[list[float]]:
    """Resize a square plane by the bicubic filter with a = -0.5, one axis after the other, rounding after each.

    Written from the definition: each new pixel is a weighted mean of the old ones around its centre, and the filter is
    as much wider as the picture is made smaller.
    """

    def cubic(x: float) -> float:
        x, a = abs(x), -0.5
        if x < 1:
            return ((a + 2) * x - (a + 3)) * x * x + 1
        return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0

    def line(values: list[float]) -> list[float]:
        scale = len(values) / side
        wide = max(scale, 1.0)
        found = []
        for place in range(side):
            centre = (place + 0.5) * scale
            weights = [cubic((old + 0.5 - centre) / wide) for old in range(len(values))]
            mean = sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)
            found.append(float(min(255, max(0, math.floor(mean + 0.5)))))
        return found

    rows = [line(row) for row in plane]
    columns = [line(list(column)) for column in zip(*rows, strict=True)]
    return [list(row) for row in zip(*columns, strict=True)]


def slow_planes(pixels: Pixels) -> list[list[list[float]]]:
    return [[[float(value) for value in row] for row in plane] for plane in pixels]


@pytest.mark.parametrize(("share", "side"), [(0.5, 10), (0.8, 16), (0.33, 7)])
def test_resize_goes_down_and_up_again_by_the_bicubic_filter(share: float, side: int) -> None:
    pixels = picture()
    expected = [slow_scaled(slow_scaled(plane, side), 20) for plane in slow_planes(pixels)]
    got = perturb(pixels, KEY, Perturbation(kind="resize", strength=share)).astype(int)
    # Pillow's weights are fixed-point numbers, so a value that lies between two may round the other way, twice.
    assert np.abs(got - np.array(expected)).max() <= 2
    assert np.mean(got != np.array(expected)) < 0.02


@pytest.mark.parametrize(("share", "corner", "side"), [(0.8, 2, 16), (0.75, 2, 15), (0.5, 5, 10)])
def test_crop_enlarges_the_centre(share: float, corner: int, side: int) -> None:
    pixels = picture()
    centre = [[row[corner : corner + side] for row in plane[corner : corner + side]] for plane in slow_planes(pixels)]
    expected = np.array([slow_scaled(plane, 20) for plane in centre])
    got = perturb(pixels, KEY, Perturbation(kind="crop", strength=share)).astype(int)
    assert np.abs(got - expected).max() <= 1
    assert np.mean(got != expected) < 0.02


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.5, 8.0])
def test_blur_is_a_gaussian_that_goes_on_mirrored(sigma: float) -> None:
    pixels = picture(12)
    radius = int(4 * sigma + 0.5)
    weight = {d: math.exp(-d * d / (2 * sigma * sigma)) for d in range(-radius, radius + 1)}
    total = sum(weight.values())

    def mirrored(place: int) -> int:
        while not 0 <= place < 12:
            place = -1 - place if place < 0 else 23 - place
        return place

    smooth = np.zeros((12, 12))  # what each old pixel of a line gives to each new one
    for place in range(12):
        for d, share in weight.items():
            smooth[place, mirrored(place + d)] += share / total
    expected = np.einsum("ab,cbd,ed->cae", smooth, pixels.astype(float), smooth)
    got = perturb(pixels, KEY, Perturbation(kind="blur", strength=sigma))
    np.testing.assert_array_equal(got, np.floor(expected + 0.5))


def test_jpeg_is_the_file_that_pillow_writes_with_half_the_chroma() -> None:
    pixels = picture(24)
    stream = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(stream, "JPEG", quality=75, subsampling=2, optimize=True)
    expected = np.asarray(Image.open(stream)).transpose(2, 0, 1)
    got = perturb(pixels, KEY, Perturbation(kind="jpeg", strength=75))
    np.testing.assert_array_equal(got, expected)
    assert not np.array_equal(got, pixels)


def test_jpeg_of_a_grey_image_is_the_quantised_cosine_transform_of_its_blocks() -> None:
    plane = picture(16)[0]
    grey = np.repeat(plane[None], 3, 0)
    stream = io.BytesIO()
    Image.fromarray(grey.transpose(1, 2, 0)).save(stream, "JPEG", quality=60)
    table = np.array(Image.open(io.BytesIO(stream.getvalue())).quantization[0]).reshape(8, 8)
    base = [16, 11, 10, 16, 24, 40, 51, 61]  # first row of the luminance table in Annex K of the standard
    assert table[0].tolist() == [(value * (200 - 2 * 60) + 50) // 100 for value in base]
    k, n = np.mgrid[0:8, 0:8]
    basis = np.where(k == 0, math.sqrt(1 / 8), 0.5) * np.cos((2 * n + 1) * k * math.pi / 16)
    expected = np.empty((16, 16))
    for y in (0, 8):
        for x in (0, 8):
            block = basis @ (plane[y : y + 8, x : x + 8].astype(float) - 128) @ basis.T
            expected[y : y + 8, x : x + 8] = basis.T @ (np.round(block / table) * table) @ basis + 128
    got = perturb(grey, KEY, Perturbation(kind="jpeg", strength=60))[0].astype(float)
    off = np.abs(got - np.clip(expected, 0, 255))
    # libjpeg computes with whole numbers; a coefficient half-way between two steps may take the other one.
    assert np.median(off) <= 0.5
    assert off.mean() < 1
    assert np.abs(plane - np.clip(expected, 0, 255)).mean() > 5


def test_noise_comes_from_the_key_by_a_stream_that_is_written_down_here() -> None:
    pixels = picture(6)
    raw = np.random.PCG64(int(KEY, 16)).random_raw(2 * pixels.size).tolist()
    uniform = [((number >> 11) + 0.5) / 2**53 for number in raw]
    expected = pixels.transpose(1, 2, 0).astype(float).copy()
    for place, (y, x, channel) in enumerate(np.ndindex(6, 6, 3)):
        radius, angle = uniform[place], uniform[pixels.size + place]
        expected[y, x, channel] += 5 * math.sqrt(-2 * math.log(radius)) * math.cos(2 * math.pi * angle)
    expected = np.floor(np.clip(expected, 0, 255) + 0.5).transpose(2, 0, 1)
    got = perturb(pixels, KEY, Perturbation(kind="noise", strength=5))
    np.testing.assert_array_equal(got, expected)


def test_noise_is_normal_the_same_for_a_key_and_another_for_another() -> None:
    drawn = unit_noise(KEY, 200_000)
    assert abs(drawn.mean()) < 0.01
    assert abs(drawn.std() - 1) < 0.01
    shares = [np.mean(drawn < statistics.NormalDist().inv_cdf(p)) for p in (0.01, 0.25, 0.5, 0.75, 0.99)]
    np.testing.assert_allclose(shares, (0.01, 0.25, 0.5, 0.75, 0.99), atol=0.005)
    np.testing.assert_array_equal(unit_noise(KEY, 200_000), drawn)
    assert abs(np.corrcoef(drawn, unit_noise(content_key(b"another"), 200_000))[0, 1]) < 0.01


GOLDEN = {
    "resize:0.5": "a20735495e48eadc",
    "blur:1": "07e353422c9c224d",
    "noise:5": "9de227d3ffe1c7ed",
    "crop:0.8": "e257382160a93a81",
}
"""SHA-256 of the perturbed image, first 16 digits. JPEG is left out: it is as Pillow's libjpeg-turbo has it."""


@pytest.mark.parametrize("text", GOLDEN)
def test_the_bytes_stay_what_they_were_released_as(text: str) -> None:
    found = hashlib.sha256(perturb(picture(32), KEY, parse_perturbation(text)).tobytes()).hexdigest()[:16]
    assert found == GOLDEN[text], "raise Perturbation.algorithm if values change"


@pytest.mark.parametrize("text", ["jpeg:30", "resize:0.5", "blur:2", "noise:20", "crop:0.7"])
def test_a_perturbation_keeps_shape_and_type_changes_pixels_and_leaves_its_input_alone(text: str) -> None:
    pixels = picture(32)
    before = pixels.copy()
    got = perturb(pixels, KEY, parse_perturbation(text))
    assert (got.shape, got.dtype, got.flags.c_contiguous) == ((3, 32, 32), np.uint8, True)
    assert not np.array_equal(got, pixels)
    np.testing.assert_array_equal(pixels, before)


def test_a_side_is_rounded_half_up() -> None:
    assert [part_of(size, share) for size, share in ((5, 0.5), (7, 0.5), (16, 0.05), (256, 0.8))] == [3, 4, 1, 205]


@pytest.mark.parametrize(
    ("text", "shown"),
    [("jpeg:75", "jpeg:75"), ("blur:1.0", "blur:1"), (" noise:05 ", "noise:5"), ("resize:0.50", "resize:0.5")],
)
def test_equal_strengths_are_one_perturbation_however_they_are_written(text: str, shown: str) -> None:
    parsed = parse_perturbation(text)
    assert str(parsed) == shown
    assert parse_perturbation(shown) == parsed


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("sharpen:1", "no such perturbation"),
        ("", "no such perturbation"),
        ("jpeg", "needs a strength"),
        ("jpeg:", "needs a strength"),
        ("blur:one", "needs a strength"),
        ("blur:-1", "needs a strength"),
        ("blur:nan", "needs a strength"),
        ("blur:0.12345", "needs a strength"),
        ("blur:1:2", "needs a strength"),
        ("blur:٣", "needs a strength"),
        ("jpeg:0", "must be 1 to 100"),
        ("jpeg:101", "must be 1 to 100"),
        ("jpeg:75.5", "must be an integer"),
        ("resize:1", "must be 0.05 to 0.95"),
        ("crop:1.2", "must be 0.05 to 0.95"),
        ("noise:0", "must be 0.1 to 128"),
        ("blur:33", "must be 0.1 to 32"),
    ],
)
def test_a_wrong_perturbation_is_refused_with_a_sentence_that_quotes_it(text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as refused:
        parse_perturbation(text)
    assert str(refused.value).startswith(f"--perturb {text}:")


def test_a_share_that_would_change_nothing_is_refused() -> None:
    check_perturbation(Perturbation(kind="crop", strength=0.95), 32)
    with pytest.raises(UsageError, match="leaves images of 8 pixels unchanged"):
        check_perturbation(Perturbation(kind="crop", strength=0.95), 8)


def test_fields_of_the_spec_at_their_default_leave_the_fingerprint_alone_and_any_value_changes_it() -> None:
    plain = ImageSpec(size=256, algorithm=1)
    assert plain.folder == "image-9b0f293d17472dec"  # as released, before there were such fields
    assert plain.canonical() == {"feature": "image", "algorithm": 1, "size": 256, "preset": "distildire"}
    others = [
        plain.model_copy(update={"perturb": parse_perturbation(text)})
        for text in ("jpeg:75", "jpeg:74", "blur:1", "noise:1", "resize:0.5", "crop:0.5")
    ]
    others += [plain.model_copy(update={"harmonize": Harmonization(quality=quality)}) for quality in (95, 75)]
    assert len({spec.fingerprint() for spec in [plain, *others]}) == 9
    assert {spec.unperturbed.fingerprint() for spec in others[:6]} == {plain.fingerprint()}
    adm = AdmIdentity(weights="ab" * 32, flags={})
    assert EpsSpec(image=others[0], adm=adm).fingerprint() != EpsSpec(image=plain, adm=adm).fingerprint()


def test_the_new_fingerprints_stay_what_they_were_released_as() -> None:
    jpeg = ImageSpec(size=256, algorithm=1, perturb=parse_perturbation("jpeg:75"))
    assert jpeg.folder == "image-bb51340e98310a76"
    assert ImageSpec(size=256, algorithm=1, harmonize=Harmonization(quality=95)).folder == "image-8f62c8c40f02903d"


def test_the_fingerprints_of_algorithm_2_stay_what_they_were_released_as() -> None:
    assert ImageSpec(size=256, perturb=parse_perturbation("jpeg:75")).folder == "image-1a34f8ac0c8f57c0"


def test_decoding_by_a_perturbed_spec_is_perturbing_the_decoded_image() -> None:
    data = saved(noise(40, 52))
    spec = ImageSpec(size=16, perturb=parse_perturbation("noise:9"))
    np.testing.assert_array_equal(
        decode(data, spec), perturb(decode(data, spec.unperturbed), content_key(data), spec.perturb)
    )


def test_harmonize_is_decoding_a_file_that_was_saved_as_jpeg_before() -> None:
    pixels = noise(40, 52)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95, subsampling="4:2:0")
    plain = ImageSpec(size=16)
    harmonized = plain.model_copy(update={"harmonize": Harmonization(quality=95)})
    np.testing.assert_array_equal(decode(saved(pixels), harmonized), decode(stream.getvalue(), plain))
    assert not np.array_equal(decode(saved(pixels), harmonized), decode(saved(pixels), plain))


def test_harmonize_sees_the_image_upright_and_without_transparency() -> None:
    pixels = noise(24, 32)
    exif = Image.Exif()
    exif[0x0112] = 6
    spec = ImageSpec(size=16, harmonize=Harmonization(quality=50))
    turned = np.ascontiguousarray(np.rot90(pixels, -1))
    np.testing.assert_array_equal(decode(saved(pixels, exif=exif), spec), decode(saved(turned), spec))


def test_a_side_that_no_jpeg_holds_is_rejected_as_too_large() -> None:
    wide = saved(np.zeros((1, 65_501, 3), np.uint8))
    with pytest.raises(ImageRejected, match="too-large"):
        decode(wide, ImageSpec(size=16, preset="dnf", harmonize=Harmonization(quality=95)))


def test_harmonize_is_read_as_jpeg_alone() -> None:
    assert parse_harmonization("jpeg:95") == Harmonization(quality=95)
    assert parse_harmonization(None) is None
    for text in ("jpeg", "jpeg:0", "jpeg:101", "jpeg:9.5", "webp:80", "jpeg:095", ""):
        with pytest.raises(UsageError, match="write jpeg:QUALITY"):
            parse_harmonization(text)
    with pytest.raises(UsageError, match="--harmonize png: was removed because it changed no pixel"):
        parse_harmonization("png")


def test_recompression_is_not_idempotent_but_settles() -> None:
    once = recompress_jpeg(noise(32, 32), 60)
    twice = recompress_jpeg(once, 60)
    assert np.abs(once.astype(int) - twice.astype(int)).mean() < np.abs(once.astype(int) - noise(32, 32)).mean() / 4
