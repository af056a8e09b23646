"""The class that a class-conditional model is told for each image."""

from __future__ import annotations

from collections import Counter

import pytest
from distil_cache.errors import UsageError
from distil_cache.models.class_label import NUM_CLASSES, ClassLabel

KEYS = [f"{number:032x}" for number in range(20_000)]


def test_the_draw_depends_on_seed_and_key_alone() -> None:
    drawn = dict(zip(KEYS, ClassLabel.parse("random:0").classes(KEYS), strict=True))
    some = KEYS[777:13:-7]
    assert ClassLabel.parse("random:00").classes(some) == [drawn[key] for key in some]
    assert ClassLabel.parse("random:1").classes(some) != [drawn[key] for key in some]
    assert ClassLabel.parse("random:0").classes(KEYS[:3]) == [158, 696, 740]


def test_all_classes_are_drawn_about_equally_often() -> None:
    counts = Counter(ClassLabel.parse("random:3").classes(KEYS))
    assert set(counts) == set(range(NUM_CLASSES))
    expected = len(KEYS) / NUM_CLASSES
    chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
    assert 850 < chi_squared < 1150  # 999 degrees of freedom: mean 999, standard deviation 45


def test_a_number_is_the_class_of_every_image() -> None:
    assert ClassLabel.parse("0207").text == "207"
    assert ClassLabel.parse("207").classes(["a", "b"]) == [207, 207]


@pytest.mark.parametrize("text", ["", "random", "random:", "random:x", "random:-1", "-1", "1000", "1.5", "cat", "²"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(
        UsageError, match=f"--class-label {text}: give random:SEED, such as random:0, or a class from 0 to 999"
    ):
        ClassLabel.parse(text)
