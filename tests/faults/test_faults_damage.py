"""Damage to what lies in a cache: found by reading and by ``verify``, set aside by ``verify --repair``, made again by a build."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from distil_cache.cache.maintenance.repair import repair
from distil_cache.cache.maintenance.verify import verify
from distil_cache.cache.store import Cache, FeatureStore
from distil_cache.errors import IntegrityError
from fault_builder import Order, build, write_images
from fault_checks import differences, problems, snapshot

Whole = tuple[Order, dict[str, Any]]


@pytest.fixture(scope="module", params=["zarr", pytest.param("webdataset", marks=pytest.mark.slow)])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    order = Order(folder / "cache", (write_images(folder / "images", {"train": 6}),), form=request.param)
    build(order)
    return order, snapshot(order.cache)


@pytest.fixture
def copy(whole: Whole, tmp_path: Path) -> Order:
    return replace(whole[0], cache=Path(shutil.copytree(whole[0].cache, tmp_path / "cache")))


def store(order: Order, feature: str = "dire") -> FeatureStore:
    return next(store for store in Cache.open(order.cache).features() if store.feature == feature)


def first_shard(order: Order) -> tuple[Path, Path]:
    """The marker and the largest data file of a shard."""
    held = store(order)
    marker = held.markers()[0]
    data = held.shards / marker.data
    files = [path for path in (data, *data.rglob("*")) if path.is_file()]
    return held.shards / f"{marker.shard}.json", max(files, key=lambda path: path.stat().st_size)


def truncate(marker: Path, data: Path) -> None:
    os.truncate(data, data.stat().st_size // 2)


def flip_a_bit(marker: Path, data: Path) -> None:
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 4
    data.write_bytes(content)


def lose_the_data(marker: Path, data: Path) -> None:
    whole = next(path for path in (data, *data.parents) if path.parent.name == "shards")
    shutil.rmtree(whole) if whole.is_dir() else whole.unlink()


def cut_the_marker(marker: Path, data: Path) -> None:
    os.truncate(marker, marker.stat().st_size // 2)


def empty_the_marker(marker: Path, data: Path) -> None:
    os.truncate(marker, 0)


DAMAGES = (truncate, flip_a_bit, lose_the_data, cut_the_marker, empty_the_marker)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_shard_is_found_set_aside_and_made_again_with_the_same_bytes(
    whole: Whole, copy: Order, damage: Callable[[Path, Path], None]
) -> None:
    marker, data = first_shard(copy)
    rows = store(copy).markers()[0].rows
    damage(marker, data)
    found = [problem for problem in verify(Cache.open(copy.cache)) if problem.kind == "damage"]
    assert [problem.shard for problem in found] == [marker.stem]
    result = repair(Cache.open(copy.cache))
    assert result["problems"] == []
    assert [entry["dataset"] for entry in result["to_build"]] == ["d"]
    made = build(copy)["computed"]
    assert (made["image"], made["eps"], made["dire"]) == (0, 0, rows)
    assert problems(copy.cache) == []
    assert differences(snapshot(copy.cache), whole[1]) == []


@pytest.mark.parametrize("damage", [truncate, lose_the_data, cut_the_marker], ids=lambda damage: damage.__name__)
def test_a_reader_never_takes_a_short_or_absent_shard_for_values(
    copy: Order, damage: Callable[[Path, Path], None]
) -> None:
    marker, data = first_shard(copy)
    damage(marker, data)
    with pytest.raises(IntegrityError, match=r"distil-cache cache verify"):
        store(copy).read(marker.stem)


def test_data_without_a_marker_do_not_exist_and_the_next_build_makes_the_same_bytes(whole: Whole, copy: Order) -> None:
    marker, _ = first_shard(copy)
    rows = store(copy).markers()[0].rows
    marker.unlink()
    assert {problem.kind for problem in verify(Cache.open(copy.cache))} == {"missing"}
    assert build(copy)["computed"]["dire"] == rows
    assert problems(copy.cache) == []
    assert differences(snapshot(copy.cache), whole[1]) == []


def index_files(order: Order) -> list[Path]:
    files = sorted(order.cache.glob("features/*/index/*.index"))
    assert files
    return files


def delete_indexes(order: Order) -> None:
    for path in index_files(order):
        shutil.rmtree(path.parent)


def cut_indexes(order: Order) -> None:
    for path in index_files(order):
        os.truncate(path, path.stat().st_size - 8)


def flip_in_indexes(order: Order) -> None:
    for path in index_files(order):
        flip_a_bit(path, path)


def swap_indexes(order: Order) -> None:
    first, second, *_ = index_files(order)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def keep_an_old_index(order: Order) -> None:
    """An index from before a shard was removed."""
    marker, _ = first_shard(order)
    marker.unlink()


@pytest.mark.parametrize(
    "damage",
    [delete_indexes, cut_indexes, flip_in_indexes, swap_indexes, keep_an_old_index],
    ids=lambda one: one.__name__,
)
def test_an_index_that_is_gone_damaged_or_old_changes_no_value(
    whole: Whole, copy: Order, damage: Callable[[Order], None]
) -> None:
    damage(copy)
    if damage is not keep_an_old_index:
        assert differences(snapshot(copy.cache), whole[1]) == []
    made = build(copy)["computed"]
    assert (made["dire"] > 0) == (damage is keep_an_old_index)
    assert problems(copy.cache) == []
    assert differences(snapshot(copy.cache), whole[1]) == []


@pytest.mark.parametrize("what", ["delete", "cut", "flip", "rename"])
def test_a_scan_memory_that_is_gone_or_damaged_only_costs_the_time_to_look_again(
    whole: Whole, copy: Order, what: str
) -> None:
    memory = copy.cache / "datasets" / "d" / "scan.parquet"
    if what == "delete":
        memory.unlink()
    elif what == "rename":
        rename_a_column(memory, b"reason")
    else:
        (truncate if what == "cut" else flip_a_bit)(memory, memory)
    result = build(copy)
    assert sum(result["computed"].values()) == 0
    assert problems(copy.cache) == []
    assert differences(snapshot(copy.cache), whole[1]) == []


def test_no_flipped_bit_of_a_table_s_values_changes_what_is_read(whole: Whole, copy: Order) -> None:
    datasets = Cache.open(copy.cache).datasets()
    path = copy.cache / "datasets" / "d" / f"{datasets.head('d')}.parquet"
    content = path.read_bytes()
    sound = datasets.read("d")
    values = int.from_bytes(content[-8:-4], "little") + 8  # the footer's length stands at the end
    for place in range(4, len(content) - values, 41):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        try:
            found = datasets.read("d")
        except IntegrityError:
            continue
        assert found.equals(sound)


def test_a_table_whose_column_has_another_name_in_one_place_is_one_sentence(copy: Order) -> None:
    datasets = Cache.open(copy.cache).datasets()
    rename_a_column(copy.cache / "datasets" / "d" / f"{datasets.head('d')}.parquet", b"generator")
    with pytest.raises(IntegrityError, match="cannot be used"):
        datasets.read("d")


def rename_a_column(path: Path, name: bytes) -> None:
    """Change one letter of a column's name in the first place of the footer where it stands."""
    content = path.read_bytes()
    place = content.index(name, len(content) - 8 - int.from_bytes(content[-8:-4], "little"))
    path.write_bytes(content[:place] + b"Q" + content[place + 1 :])
