"""The plan: what is missing, in which pieces, and what it costs."""

from __future__ import annotations

import numpy as np
import pytest
from distil_cache.cache.index import KEY_DTYPE, Index
from distil_cache.errors import UsageError
from distil_cache.pipeline.plan import Plan, make_plan, routes
from distil_cache.pipeline.wanted import parse_features, wanted_features


def keys(count: int, start: int = 0) -> list[str]:
    return [f"{number:032x}" for number in range(start, start + count)]


def index(*shards: list[str], rejected: dict[str, str] | None = None) -> Index:
    held = {f"{number:032x}": np.array(shard, KEY_DTYPE) for number, shard in enumerate(shards)}
    return Index(held, {"0" * 32: rejected or {}})


def plan(split_of: dict[str, str], wanted: dict[str, frozenset[str]], size: int = 3, **indexes: Index) -> Plan:
    return make_plan(split_of, wanted, {feature: indexes.get(feature, Index.empty()) for feature in wanted}, size)


TRAIN = frozenset({"train"})
BOTH = frozenset({"train", "test"})


def test_new_images_are_cut_into_shards_by_split_in_the_order_of_their_keys() -> None:
    split_of = dict.fromkeys(keys(4), "train") | dict.fromkeys(keys(2, 100), "test")
    tasks = plan(split_of, {"image": BOTH, "eps": BOTH}).tasks
    assert [task.keys for task in tasks] == [tuple(keys(2, 100)), tuple(keys(3)), tuple(keys(1, 3))]
    assert all(task.image_shard is None for task in tasks)
    assert all(task.missing == {"image": task.keys, "eps": task.keys} for task in tasks)


def test_only_the_rows_that_are_missing_are_asked_for_in_the_order_of_the_image_shard() -> None:
    image = index([keys(4)[number] for number in (2, 0, 3, 1)])
    made = plan(dict.fromkeys(keys(4), "train"), {"image": TRAIN, "eps": TRAIN}, image=image, eps=index(keys(1)))
    assert [task.missing for task in made.tasks] == [{"eps": (keys(4)[2], keys(4)[3], keys(4)[1])}]
    assert (made.wanted["eps"], made.missing["eps"], made.missing["image"]) == (4, 3, 0)


def test_a_plan_of_what_is_there_already_has_no_task() -> None:
    held = index(keys(4))
    made = plan(dict.fromkeys(keys(4), "train"), {"image": TRAIN, "eps": TRAIN}, image=held, eps=held)
    assert made.tasks == ()


def test_the_rest_of_an_interrupted_build_is_cut_at_the_same_places() -> None:
    split_of = dict.fromkeys(keys(10), "train")
    whole = [task.keys for task in plan(split_of, {"image": TRAIN}).tasks]
    rest = [task.keys for task in plan(split_of, {"image": TRAIN}, image=index(keys(3, 3))).tasks]
    assert rest == [whole[0], *whole[2:]]


def test_a_key_that_was_found_undecodable_is_wanted_by_nobody_and_moves_no_cut() -> None:
    split_of = dict.fromkeys(keys(6), "train")
    held = index([keys(3)[0], keys(3)[2]], rejected={keys(3)[1]: "truncated"})
    made = plan(split_of, {"image": TRAIN, "eps": TRAIN}, image=held)
    assert [task.keys for task in made.tasks] == [(keys(3)[0], keys(3)[2]), tuple(keys(3, 3))]
    assert made.wanted["image"] == 5


def test_each_row_takes_the_shortest_route_that_makes_all_that_it_lacks() -> None:
    a, b, c, d = keys(4)
    missing = {"eps": (a, b, c), "noise": (b,), "dire": (c,), "teacher": (d,)}
    assert routes((a, b, c, d), missing, {"eps"}) == {"first": [a], "inversion": [b], "path": [c]}
    assert routes((a, b, c, d), missing, {"eps", "noise"}) == {"first": [a, b], "path": [c]}


def test_without_a_list_train_gets_dire_and_teacher_and_every_split_image_and_eps() -> None:
    wanted = wanted_features(parse_features([]), ["train", "val", "test"])
    every = frozenset({"train", "val", "test"})
    assert wanted == {"image": every, "eps": every, "dire": TRAIN, "teacher": TRAIN}


def test_a_list_for_one_split_replaces_the_general_one_there() -> None:
    wanted = wanted_features(parse_features(["image,eps,dire,teacher", "test:image,eps"]), ["train", "test"])
    assert wanted == {"image": BOTH, "eps": BOTH, "dire": TRAIN, "teacher": TRAIN}


def test_the_teacher_brings_dire_along_and_every_feature_its_image() -> None:
    assert wanted_features(parse_features(["teacher"]), ["train"]) == {"image": TRAIN, "dire": TRAIN, "teacher": TRAIN}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["image,epsilon"], "unknown feature 'epsilon'"),
        ([""], "write a list"),
        ([":eps"], "write a list"),
        (["eps", "dire"], "has a list already"),
    ],
)
def test_a_bad_list_of_features_is_refused(options: list[str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        parse_features(options)


def test_a_list_for_a_split_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="no split 'val', only test, train"):
        wanted_features(parse_features(["val:eps"]), ["train", "test"])
