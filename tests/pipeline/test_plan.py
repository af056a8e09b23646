"""The plan: what is missing, in which pieces, and what it costs."""

from __future__ import annotations

from typing import Any

import pytest
from distil_cache.cache.index.index import Index, IndexSegment, ShardRows
from distil_cache.cache.shards.keys import binary_keys
from distil_cache.errors import UsageError
from distil_cache.pipeline.planning.plan import Plan, Samples, make_plan
from distil_cache.pipeline.planning.wanted import parse_features, wanted_features
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_plan import plain_plan
from tiny_runs import tiny_runs


def keys(count: int, start: int = 0) -> list[str]:
    return [f"{number:032x}" for number in range(start, start + count)]


def index(*shards: list[str], rejected: dict[str, str] | None = None) -> Index:
    refused = [rejected or {}, *({} for _ in shards[1:])]
    return Index(
        IndexSegment.build(
            ShardRows(f"{number:032x}", binary_keys(shard), 1, why, ())
            for number, (shard, why) in enumerate(zip(shards, refused, strict=True))
        )
    )


def plan(split_of: dict[str, str], wanted: dict[str, frozenset[str]], size: int = 3, **indexes: Index) -> Plan:
    samples = Samples.of(list(split_of), list(split_of.values()))
    return make_plan(samples, wanted, {feature: indexes.get(feature, Index.empty()) for feature in wanted}, size)


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


def test_a_key_that_was_found_undecodable_is_not_planned_and_moves_no_cut() -> None:
    split_of = dict.fromkeys(keys(6), "train")
    held = index([keys(3)[0], keys(3)[2]], rejected={keys(3)[1]: "truncated"})
    made = plan(split_of, {"image": TRAIN, "eps": TRAIN}, image=held)
    assert [task.keys for task in made.tasks] == [(keys(3)[0], keys(3)[2]), tuple(keys(3, 3))]
    assert made.wanted["image"] == 5


@st.composite
def situations(draw: st.DrawFn) -> tuple[dict[str, str], dict[str, frozenset[str]], dict[str, Index], int]:
    """A dataset, wanted features, and shards of any of its samples in any order, some of them in several shards."""
    names = [f"{number * 2**100:032x}" for number in draw(st.lists(st.integers(0, 60), min_size=1, unique=True))]
    split_of = {name: draw(st.sampled_from(["train", "val", "test"])) for name in names}
    some_splits = st.frozensets(st.sampled_from(["train", "val", "test"]), min_size=1)
    others = {feature: draw(some_splits) for feature in draw(st.sets(st.sampled_from(["eps", "dire", "teacher"])))}
    wanted = {"image": frozenset().union(draw(some_splits), *others.values()), **others}
    shards = st.lists(st.lists(st.sampled_from([*names, "f" * 32]), unique=True, max_size=8), min_size=1, max_size=5)
    indexes = {feature: index(*draw(shards)) for feature in wanted}
    if draw(st.booleans()):
        indexes["image"] = index(*draw(shards), rejected=dict.fromkeys(draw(st.sets(st.sampled_from(names))), "bad"))
    return split_of, wanted, indexes, draw(st.integers(1, 7))


@settings(max_examples=150)
@given(situations())
def test_the_plan_is_that_of_the_plain_procedure(situation: Any) -> None:
    split_of, wanted, indexes, size = situation
    expected = plain_plan(split_of, wanted, indexes, size)
    with tiny_runs():
        made = make_plan(Samples.of(list(split_of), list(split_of.values())), wanted, indexes, size)
        assert made.tasks == expected.tasks
    assert (made.wanted, made.missing) == (expected.wanted, expected.missing)


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
