"""Which rows are used for training and validation, and which build supplies their features."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from distil_cache.cache.records.datasets import SCHEMA
from distil_cache.errors import UsageError, UserError
from distil_cache.train.data.select import (
    choose_build,
    column,
    evaluation_rows,
    held_out,
    parse_select,
    select_rows,
    split_rows,
    training_parts,
    with_codes,
    with_texts,
)
from hypothesis import given
from hypothesis import strategies as st
from plain_cache import make_cache, rows

NEEDED = {"train": ("image", "eps", "teacher")}


def as_table(found: list[dict[str, object]]) -> pa.Table:
    return pa.Table.from_pylist(found, schema=SCHEMA)


def counts(table: pa.Table) -> dict[tuple[int, str, str], int]:
    found: dict[tuple[int, str, str], int] = {}
    for label, generator, group in zip(*(column(table, n) for n in ("label", "generator", "group")), strict=True):
        found[int(label), str(generator), str(group)] = found.get((int(label), str(generator), str(group)), 0) + 1
    return found


def test_a_selection_is_read_from_its_text() -> None:
    found = parse_select("generator=adm|sd v1.4, source_group=imagenet")
    assert found.generator == {"adm", "sd v1.4"}
    assert found.group == {"imagenet"}
    assert parse_select(None) == parse_select("")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("colour=red", "unknown field 'colour'; use generator, family, group, source_group"),
        ("generator", "generator needs values, as in generator=a|b"),
        ("generator=|", "generator needs values"),
        ("generator=a,generator=b", "generator is given twice"),
    ],
)
def test_a_selection_that_cannot_be_read_is_a_usage_error(text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=re.escape(sentence)):
        parse_select(text)


def test_choosing_a_generator_keeps_the_reals_of_its_folder_or_else_of_its_source_group() -> None:
    table = as_table(
        rows("train", 5, {"adm": 3}, group="beds")
        + rows("train", 4, {"sd": 2}, group="faces")
        + rows("train", 6, {"progan": 3}, group="cats", real_of="progan")
    )
    adm = select_rows(table, parse_select("generator=adm"), "pictures")
    assert counts(adm) == {(0, "", "beds"): 5, (1, "adm", "beds"): 3}
    progan = select_rows(table, parse_select("generator=progan"), "pictures")
    assert counts(progan) == {(0, "progan", "cats"): 6, (1, "progan", "cats"): 3}
    faces = select_rows(table, parse_select("group=faces"), "pictures")
    assert counts(faces) == {(0, "", "faces"): 4, (1, "sd", "faces"): 2}


def test_a_selection_that_leaves_nothing_names_what_there_is() -> None:
    table = as_table(rows("train", 2, {"adm": 2}))
    with pytest.raises(UserError, match=r"leaves no generated image\. There are generators adm, families diffusion"):
        select_rows(table, parse_select("generator=midjourney"), "pictures, split train")


@pytest.mark.parametrize("splits", [("train",), ("train", "val"), ("train", "test"), ("train", "val", "test")])
def test_selection_never_sees_test(splits: tuple[str, ...]) -> None:
    found = [row for split in splits for row in rows(split, 100, {"adm": 100})]
    table = as_table(found + [row for row in found if row["split"] == "train"][:50])
    parts = training_parts(table, parse_select(None), 0.1, "pictures")
    expected = "val" if "val" in splits else "train"
    assert parts.val_split == expected
    assert set(column(parts.train, "split")) == {"train"}
    assert set(column(parts.val, "split")) == {expected}
    assert not set(column(parts.train, "key")) & set(column(parts.val, "key"))
    if expected == "train":
        assert parts.train.num_rows + parts.val.num_rows == 250
        assert 5 <= len(set(column(parts.val, "key"))) <= 40
        assert list(held_out(column(parts.val, "key"), 0.1)) == [True] * parts.val.num_rows


def test_a_part_of_train_is_held_out_beside_val_where_that_is_wanted() -> None:
    table = as_table(rows("train", 100, {"adm": 100}) + rows("val", 10, {"adm": 10}))
    parts = training_parts(table, parse_select(None), 0.1, "pictures", own_val=False)
    assert parts.val_split == "train"
    assert parts.train.num_rows + parts.val.num_rows == 200


def test_a_dataset_that_cannot_train_says_why() -> None:
    with pytest.raises(UserError, match="has no split 'train', only test, val"):
        split_rows(as_table(rows("val", 1, {"adm": 1}) + rows("test", 1, {"adm": 1})), "train", "pictures")
    with pytest.raises(UserError, match="has no real image"):
        training_parts(as_table(rows("train", 0, {"adm": 5})), parse_select(None), 0.1, "pictures")


def test_a_missing_feature_is_named_with_the_command_that_builds_it(tmp_path: Path) -> None:
    cache, _ = make_cache(tmp_path / "c", rows("train", 3, {"adm": 4}), features={"image": ["train"], "eps": ["train"]})
    with pytest.raises(UserError) as error:
        choose_build(cache, "pictures", None, NEEDED, purpose="method distildire")
    assert str(error.value) == (
        "pictures: method distildire needs feature `teacher` for 7 of 7 samples of split train. Build it with: "
        f"distil-cache build 'pictures folder' --cache {tmp_path / 'c'} --dataset pictures "
        "--features train:eps,image,teacher (and the other options of the build before)"
    )


def test_several_builds_that_fit_are_listed_with_what_tells_them_apart(tmp_path: Path) -> None:
    table = rows("train", 3, {"adm": 3})
    cache, one = make_cache(tmp_path / "cache", table)
    _, two = make_cache(tmp_path / "cache", table, steps="ddim10")
    with pytest.raises(UserError) as error:
        choose_build(cache, "pictures", None, NEEDED, purpose="method distildire")
    assert "several builds serve method distildire" in str(error.value)
    sentence, *lines = str(error.value).splitlines()
    assert sentence.endswith("Choose one:")
    assert re.search(
        rf"^  --build {one.id}  [-0-9]+ [:0-9]+; .*ddim20; .*image \(train\).*dire\.steps=ddim20", lines[0]
    )
    assert re.search(rf"^  --build {two.id}  .*ddim10; .*dire\.steps=ddim10", lines[1])
    assert choose_build(cache, "pictures", two.id, NEEDED, purpose="method distildire") == two


def test_of_builds_that_differ_in_the_algorithm_alone_the_newest_algorithm_counts(tmp_path: Path) -> None:
    table = rows("train", 3, {"adm": 3})
    cache, new = make_cache(tmp_path / "cache", table, image_algorithm=2)
    _, old = make_cache(tmp_path / "cache", table)
    assert choose_build(cache, "pictures", None, NEEDED, purpose="method distildire") == new
    fixed = {name: built.fingerprint for name, built in old.features.items()}
    assert choose_build(cache, "pictures", None, NEEDED, purpose="a run of then", fingerprints=fixed) == old


def test_features_of_another_algorithm_are_refused_in_words(tmp_path: Path) -> None:
    table = rows("train", 3, {"adm": 3})
    cache, _ = make_cache(tmp_path / "cache", table, image_algorithm=2)
    _, old = make_cache(tmp_path / "cache", table, name="old")
    fixed = {name: built.fingerprint for name, built in old.features.items()}
    with pytest.raises(UserError, match=r"were built by the rules of another version \(algorithm\) than"):
        choose_build(cache, "pictures", None, NEEDED, purpose="a run of then", fingerprints=fixed)


def test_builds_whose_needed_features_are_the_same_count_as_one(tmp_path: Path) -> None:
    table = rows("train", 3, {"adm": 3})
    cache, _ = make_cache(tmp_path / "cache", table)
    _, two = make_cache(tmp_path / "cache", table, steps="ddim10")
    found = choose_build(cache, "pictures", None, {"train": ("image", "eps")}, purpose="method eps")
    assert found.features["eps"] == two.features["eps"]


def test_only_builds_of_the_newest_revision_count_unless_one_is_named(tmp_path: Path) -> None:
    table = rows("train", 3, {"adm": 3})
    cache, old = make_cache(tmp_path / "cache", table)
    cache.datasets().write("pictures", as_table(table[1:]))
    with pytest.raises(UserError, match="needs feature `image` for 5 of 5 samples"):
        choose_build(cache, "pictures", None, NEEDED, purpose="method distildire")
    assert choose_build(cache, "pictures", old.id, NEEDED, purpose="method distildire") == old


KINDS = st.builds(
    lambda label, split, generator, group: {"label": label, "split": split, "generator": generator, "group": group},
    st.integers(0, 1),
    st.sampled_from(["train", "val", "test"]),
    st.sampled_from(["adm", "sd", "real"]),
    st.sampled_from(["beds", "cats"]),
)


@given(
    kinds=st.lists(KINDS, min_size=1, max_size=16),
    chosen=st.sampled_from([None, "generator=adm", "generator=adm|sd,group=beds", "family=diffusion"]),
    own_val=st.booleans(),
)
def test_rows_that_are_read_in_pieces_are_selected_as_those_of_a_table_in_memory(
    kinds: list[dict[str, object]], chosen: str | None, own_val: bool
) -> None:
    more = {"source": "s", "path": "p", "family": "diffusion", "width": 1, "height": 1, "format": "png", "bytes": 1}
    keys = [hashlib.sha256(bytes([number])).hexdigest()[:32] for number in range(len(kinds))]
    table = as_table([{**more, **kind, "key": key} for kind, key in zip(kinds, keys, strict=True)])
    selection = parse_select(chosen)

    assert with_texts(with_codes(table)).equals(table, check_metadata=True)
    assert with_texts(with_codes(table)).schema.field("group").nullable == table.schema.field("group").nullable

    def pieces() -> Iterator[pa.Table]:
        return (with_codes(table.slice(start, 3)) for start in range(0, len(table), 3))

    def plain() -> tuple[list[str], list[str]]:
        train = select_rows(split_rows(table, "train", "d"), selection, "d, split train")
        if own_val and "val" in table["split"].to_pylist():
            val = select_rows(split_rows(table, "val", "d"), selection, "d, split val")
        else:
            held = np.array([int(key[:8], 16) < 0.3 * 2**32 for key in train["key"].to_pylist()], bool)
            train, val = train.filter(pa.array(~held)), train.filter(pa.array(held))
        if set(train["label"].to_pylist()) != {0, 1}:
            raise UserError("one class")
        return train["key"].to_pylist(), val["key"].to_pylist()

    def outcome(select: Callable[[], tuple[list[str], list[str]]]) -> tuple[list[str], list[str]] | None:
        try:
            return select()
        except UserError:
            return None

    def in_pieces() -> tuple[list[str], list[str]]:
        parts = training_parts(pieces, selection, 0.3, "d", own_val=own_val)
        assert {*column(parts.train, "split"), *column(parts.val, "split")} <= {"train", parts.val_split}
        return parts.train["key"].to_pylist(), parts.val["key"].to_pylist()

    assert outcome(in_pieces) == outcome(plain)
    tested = outcome(lambda: (evaluation_rows(pieces, "test", selection, "d")["key"].to_pylist(), []))
    whole = outcome(lambda: (select_rows(split_rows(table, "test", "d"), selection, "d")["key"].to_pylist(), []))
    assert tested == whole
