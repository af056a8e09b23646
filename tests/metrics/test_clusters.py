"""Which images are drawn together: source groups where there are enough, or a column by name."""

from __future__ import annotations

import numpy as np
import pytest
from distil_cache.errors import UsageError
from distil_cache.metrics.clusters import Clusters, choose_clusters

KEYS = np.asarray([f"k{number:03}" for number in range(80)])
LABELS = np.repeat([0, 1], 40)


def chosen(choice: str, groups: int = 20, family: tuple[str, ...] = ()) -> Clusters:
    names = np.asarray([f"g{number % groups}" for number in range(80)])
    columns = {"group": names, "generator": names, "family": np.asarray(family, dtype=str)}
    return choose_clusters(choice, KEYS, LABELS, columns)


def test_many_source_groups_are_clusters_by_default() -> None:
    found = chosen("auto")

    assert (found.column, found.number) == ("group", 20)
    assert found.names[0] == found.names[20] != found.names[1]
    assert "20 of the class that has fewer" in found.sentence
    assert "too narrow" not in found.sentence


def test_fewer_than_20_clusters_are_warned_of() -> None:
    assert "fewer than 20 make intervals too narrow" in chosen("auto", 12).sentence


def test_a_few_source_groups_are_left_alone_and_that_is_said() -> None:
    found = chosen("auto", 2)

    assert found.column == "image"
    assert found.names.tolist() == KEYS.tolist()
    assert "2 source groups, too few to be drawn" in found.sentence


@pytest.mark.parametrize("groups", [1, 80])
def test_groups_that_divide_nothing_or_hold_one_image_each_are_no_clusters(groups: int) -> None:
    found = chosen("auto", groups)

    assert (found.column, found.sentence) == ("image", "")


def test_images_and_columns_are_chosen_by_name() -> None:
    assert chosen("image").column == "image"
    assert chosen("group", 2).number == 2
    assert chosen("family", family=tuple(f"f{number % 4}" for number in range(80))).number == 4


def test_an_image_without_a_name_is_its_own_cluster() -> None:
    found = chosen("family", family=("",) * 40 + ("a",) * 20 + ("b",) * 20)

    assert len(set(found.names[:40].tolist())) == 40
    assert len(set(found.names[40:].tolist())) == 2


def test_a_choice_that_cannot_be_made_is_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match="is none of auto, image, group"):
        chosen("scene")
    with pytest.raises(UsageError, match="all images have the same group"):
        chosen("group", 1)
