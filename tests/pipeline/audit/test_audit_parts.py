"""What the audit measures: headers, JPEG tables, traces in pixels, near duplicates."""

from __future__ import annotations

import io
from itertools import combinations

import numpy as np
import pytest
from audit_pictures import picture, through_jpeg
from distil_cache.images.jpeg import nearest_quality, parse_jpeg, standard_table
from distil_cache.pipeline.audit.checks import describe_check
from distil_cache.pipeline.audit.classify import measure_separability
from distil_cache.pipeline.audit.duplicates import MOST_BITS, groups, near_pairs, perceptual_hash
from distil_cache.pipeline.audit.header_features import header_facts
from distil_cache.pipeline.audit.pixel_features import earlier_quality, pixel_facts, window
from image_bytes import noise, saved
from PIL import Image
from PIL.PngImagePlugin import PngInfo

GREY = np.array([0.299, 0.587, 0.114])


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 75, 90, 95, 100])
def test_the_tables_of_a_jpeg_are_read_as_the_library_wrote_them(quality: int) -> None:
    data = saved(noise(), "JPEG", quality=quality)
    table = parse_jpeg(data).tables[0]
    assert table == standard_table(quality)
    assert list(table) == Image.open(io.BytesIO(data)).quantization[0]  # type: ignore[attr-defined]
    assert nearest_quality(dict(enumerate(table))) == quality


@pytest.mark.parametrize(("option", "name"), [(0, "4:4:4"), (1, "4:2:2"), (2, "4:2:0")])
def test_chroma_subsampling_is_named(option: int, name: str) -> None:
    assert header_facts(saved(noise(), "JPEG", subsampling=option), "a.jpg").subsampling == name


def test_what_an_encoder_wrote_besides_the_pixels_is_reported() -> None:
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    data = saved(noise(), "JPEG", progressive=True, exif=exif, comment="c", icc_profile=b"x" * 50)
    facts = header_facts(data, "photo.JPG")
    assert facts.scan == "progressive"
    assert facts.metadata == "APP0(JFIF) APP1(Exif) APP2(ICC_PROFILE) COM"
    assert facts.metadata_bytes > 50
    assert facts.extension == ".JPG"
    text = PngInfo()
    text.add_text("parameters", "a castle, steps 20")
    facts = header_facts(saved(noise(), pnginfo=text), "photo.jpg")
    assert (facts.format, facts.extension) == ("png", "png named .jpg")
    assert facts.metadata == "tEXt(parameters)"
    assert facts.structure == "IHDR tEXt(parameters) IDAT IEND"
    facts = header_facts(saved(noise(), "WEBP", exif=exif), "a.webp")
    assert facts.metadata == "EXIF"
    assert facts.jpeg_quality is None


def test_a_grey_jpeg_and_a_16_bit_png_are_distinguished_from_others() -> None:
    assert header_facts(saved(noise()[..., 0], "JPEG"), "a.jpg").subsampling == "grey"
    assert header_facts(saved(np.full((16, 16), 1000, np.uint16)), "a.png").mode == "I;16 16-bit"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_damaged_headers_give_facts_or_a_rejection_but_never_an_error(format: str) -> None:  # noqa: A002
    from distil_cache.images.file import ImageRejected

    data, rng = saved(noise(16, 16), format), np.random.default_rng(0)
    told = 0
    for _ in range(200):
        damaged = bytearray(data)
        for place in rng.integers(0, min(len(data), 300), 3):
            damaged[place] = rng.integers(256)
        try:
            told += header_facts(bytes(damaged[: rng.integers(20, len(data) + 1)]), "a").format == format.lower()
        except ImageRejected:
            continue
    assert told > 0


@pytest.mark.parametrize("quality", [50, 75, 90, 95])
@pytest.mark.parametrize("side", [32, 128])
def test_the_quality_of_a_former_jpeg_is_read_off_its_pixels(quality: int, side: int) -> None:
    for seed in range(4):
        found = earlier_quality(through_jpeg(picture(seed, side), quality) @ GREY)
        assert found is not None
        assert abs(found - quality) <= 2


def test_images_that_were_no_jpeg_have_no_quality() -> None:
    for smooth in (0.0, 0.5, 1.0):
        assert [earlier_quality(picture(seed, 128, smooth) @ GREY) for seed in range(8)] == [None] * 8
    assert earlier_quality(np.full((64, 64), 7.0)) is None
    assert earlier_quality(noise(64, 64) @ GREY) is None


def test_tables_of_another_make_are_recognised_as_a_former_jpeg() -> None:
    table = [[5 + place // 8 + place % 8 for place in range(64)]] * 2
    data = saved(picture(0, 128), "JPEG", qtables=table, subsampling=0)
    assert earlier_quality(np.asarray(Image.open(io.BytesIO(data))) @ GREY) is not None


def test_a_jpeg_shows_a_stronger_compression_before_its_own_and_nothing_if_there_was_none() -> None:
    twice = saved(through_jpeg(picture(0, 128), 70), "JPEG", quality=95)
    once = saved(picture(0, 128), "JPEG", quality=95)
    found = pixel_facts(twice)
    assert found.own_quality == 95
    assert found.earlier_quality is not None
    assert abs(found.earlier_quality - 70) <= 2
    assert pixel_facts(once).earlier_quality is None


def test_a_grid_that_a_crop_has_moved_still_shows() -> None:
    moved = [pixel_facts(saved(through_jpeg(picture(seed, 136), 60)[3:131, 5:133])) for seed in range(6)]
    never = [pixel_facts(saved(picture(seed, 136)[3:131, 5:133])) for seed in range(6)]
    assert min(facts.grid or 0 for facts in moved) > max(facts.grid or 0 for facts in never)
    assert all(facts.earlier_quality is None for facts in moved + never)


def test_an_enlarged_image_has_a_peak_that_others_lack() -> None:
    enlarged = [Image.fromarray(picture(s, 128)).resize((166, 166), Image.Resampling.BILINEAR) for s in range(6)]
    peaks = [pixel_facts(saved(image)).peak or 0 for image in enlarged]
    others = [pixel_facts(saved(picture(seed, 166))).peak or 0 for seed in range(6)]
    assert min(peaks) > 3 * max(others)


def test_a_small_image_has_no_spectrum_and_a_large_one_is_examined_in_its_middle() -> None:
    facts = pixel_facts(saved(picture(0, 40)))
    assert (facts.grid, facts.peak) == (None, None)
    pixels = np.zeros((1000, 700, 3), np.uint8)
    pixels[240:752, 88:600] = 1
    assert window(pixels).shape == (512, 512, 3)
    assert window(pixels).all()


def test_near_duplicates_are_those_that_comparing_every_pair_finds() -> None:
    hashes = []
    for seed in range(40):
        image = Image.fromarray(picture(seed, 64, smooth=0.7))
        hashes.append(perceptual_hash(saved(image)))
        if seed % 4 == 0:
            hashes.append(perceptual_hash(saved(image.resize((90, 90)), "JPEG", quality=70)))
    known = [found for found in hashes if found is not None]
    assert len(known) == 50
    pairs = near_pairs(known)
    assert pairs == [
        (one, other)
        for one, other in combinations(range(len(known)), 2)
        if (known[one].hash ^ known[other].hash).bit_count() <= MOST_BITS
        and float(known[one].thumbnail @ known[other].thumbnail) >= 0.98
    ]
    assert len(pairs) == 10


def test_an_image_of_one_colour_resembles_nothing() -> None:
    assert perceptual_hash(saved(np.full((50, 50, 3), 90, np.uint8))) is None
    assert near_pairs([]) == []


def test_pairs_join_into_groups() -> None:
    assert groups(6, [(1, 4), (4, 5), (0, 2)]) == [0, 1, 0, 3, 1, 1]


def test_a_higher_level_gives_a_wider_interval_around_the_same_auc() -> None:
    rng = np.random.default_rng(0)
    labels = [0, 1] * 60
    rows = [{"a": float(rng.normal() + label)} for label in labels]
    narrow, wide = (
        measure_separability(rows, labels, range(120), 0.8),
        measure_separability(rows, labels, range(120), 0.99),
    )
    assert narrow is not None
    assert wide is not None
    assert narrow.auc == wide.auc
    assert wide.interval[0] < narrow.interval[0] < narrow.auc < narrow.interval[1] < wide.interval[1]


def test_a_feature_that_is_missing_on_one_side_predicts_the_label_and_one_without_variation_nothing() -> None:
    rng = np.random.default_rng(0)
    labels = [0, 1] * 40
    rows = [{"a": None if label else float(rng.normal()), "b": "same"} for label in labels]
    found = measure_separability(rows, labels, range(80))
    assert found is not None
    assert found.auc == 1.0
    assert dict(found.alone) == {"a": 1.0}
    same = measure_separability([{"b": "same"}] * 80, labels, range(80))
    assert same is not None
    assert (same.auc, same.interval, same.alone) == (0.5, (0.5, 0.5), ())


def test_a_feature_is_described() -> None:
    assert (
        describe_check("JPEG quality", [90, 95, 92], [None])
        == "JPEG quality: real 90 to 95 (median 92), generated none"
    )
    assert describe_check("width", [256, 256], [None, 64]) == "width: real 256, generated 64 [none in 1 of 2]"
    assert (
        describe_check("mode", ["L", "RGB", "RGB", "RGB"], [""])
        == "mode: real RGB 75 %; L 25 %, generated (nothing) 100 %"
    )
