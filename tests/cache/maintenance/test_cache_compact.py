"""Many small increments become few shards: nothing is lost, nothing is computed again, earlier revisions stay readable."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distil_cache.cache.gather import gather
from distil_cache.cache.index import file as index_file
from distil_cache.cache.maintenance.compact import compact
from distil_cache.cache.maintenance.gc import collect
from distil_cache.cache.maintenance.verify import list_garbage, verify
from distil_cache.cache.store import Cache
from maintained_cache import SPECS, build, key_of, keys_of, rows_lacking, values_of
from recorded_progress import Recorded

MANY, FEW = 50, 8


def splits(numbers: range) -> dict[str, str]:
    return {key_of(number): "val" if number % 10 == 0 else "train" for number in numbers}


def increments(root: Path, times: int) -> Path:
    """Builds of ten more images each, every second of which also meets a file that cannot be decoded."""
    for n in range(1, times + 1):
        bad = {key_of(f"bad {n}"): "truncated: it ends early"} if n % 2 else {}
        _, computed = build(root, splits(range(10 * n)), rejected=bad)
        assert computed == {"image": 10, "eps": 10, "teacher": 9}
    return root


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return increments(tmp_path_factory.mktemp("few") / "cache", FEW)


@pytest.fixture
def root(few: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(few, tmp_path / "cache"))


def shard_counts(root: Path) -> dict[str, int]:
    return {store.feature: len(store.marker_ids()) for store in Cache.open(root).features()}


@pytest.mark.slow
def test_fifty_increments_are_usable_and_after_compaction_and_gc_few_shards_hold_the_same_values(
    tmp_path: Path,
) -> None:
    root = increments(tmp_path / "cache", MANY)
    builds = Cache.open(root).builds().all()
    assert len(builds) == MANY
    assert rows_lacking(root, builds[-1]) == 0
    assert shard_counts(root) == {"image": 2 * MANY, "eps": 2 * MANY, "teacher": MANY}

    done = compact(Cache.open(root), 512)["features"]
    assert {name.partition("-")[0]: (row["shards"], row["into"]) for name, row in done.items()} == {
        "image": (100, 2), "eps": (100, 2), "teacher": (50, 1),
    }  # fmt: skip
    collect(Cache.open(root), delete_them=True, grace_hours=0, keep_revisions=MANY)
    assert shard_counts(root) == {"image": 2, "eps": 2, "teacher": 1}
    assert all(rows_lacking(root, record) == 0 for record in builds[::12])
    assert verify(Cache.open(root)) == []
    assert list_garbage(Cache.open(root)) == []
    _, computed = build(root, splits(range(10 * MANY)))
    assert computed == {"image": 0, "eps": 0, "teacher": 0}


def test_merged_features_follow_the_rows_of_the_merged_image(root: Path) -> None:
    compact(Cache.open(root))
    stores = {store.feature: store for store in Cache.open(root).features()}
    images = {shard: stores["image"].marker(shard) for shard in stores["image"].index().shards}
    for feature in ("eps", "teacher"):
        for shard in stores[feature].index().shards:
            keys = stores[feature].marker(shard).keys
            (order,) = [marker.keys for marker in images.values() if set(keys) <= set(marker.keys)]
            assert list(keys) == [key for key in order if key in set(keys)]
    splits_of_shards = [{splits(range(10 * FEW))[key] for key in marker.keys} for marker in images.values()]
    assert sorted(splits_of_shards, key=str) == [{"train"}, {"val"}]


def test_each_feature_is_a_stage_whose_rows_are_all_done_at_its_end(root: Path) -> None:
    progress = Recorded()
    done = compact(Cache.open(root), 512, progress)["features"]
    assert progress.totals == {name: row["rows"] for name, row in done.items()}
    assert progress.done == Counter(progress.totals)


def test_a_compaction_whose_index_would_be_too_large_says_so_and_merges_all_features(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_file, "_MAX_HEADER", 64)
    progress = Recorded()
    merged: Any = compact(Cache.open(root), rows=64, progress=progress)
    assert len(merged["features"]) == len(progress.said) == 3
    assert all("from its markers" in text for text in progress.said)


def test_keys_that_cannot_be_decoded_are_remembered(root: Path) -> None:
    store = Cache.open(root).feature(SPECS["image"])
    rejected = dict(store.index().rejected)
    assert len(rejected) == FEW // 2
    compact(Cache.open(root))
    collect(Cache.open(root), delete_them=True, grace_hours=0)
    after = Cache.open(root).feature(SPECS["image"])
    assert after.index().rejected == rejected
    assert verify(Cache.open(root)) == []


def test_compacting_again_merges_nothing_and_the_next_increment_joins_only_small_shards(root: Path) -> None:
    compact(Cache.open(root), 100)
    assert all(row["into"] == 0 for row in compact(Cache.open(root), 100)["features"].values())
    build(root, splits(range(10 * FEW + 20)))
    done = {name.partition("-")[0]: row for name, row in compact(Cache.open(root), 100)["features"].items()}
    # 72 training rows are no small shard: only the 8 of val, and the 2 that came, are merged
    assert {name: (row["shards"], row["rows"]) for name, row in done.items()} == {
        "image": (2, 10), "eps": (2, 10), "teacher": (0, 0),
    }  # fmt: skip


def test_a_merged_shard_names_also_what_its_parts_had_merged(root: Path) -> None:
    compact(Cache.open(root), 20)
    small = shard_counts(root)
    compact(Cache.open(root), 512)
    collect(Cache.open(root), delete_them=True, grace_hours=0, keep_revisions=FEW)
    assert shard_counts(root)["image"] < small["image"]
    assert all(rows_lacking(root, record) == 0 for record in Cache.open(root).builds().all()[::3])
    assert verify(Cache.open(root)) == []


def test_compaction_keeps_the_format(tmp_path: Path) -> None:
    for n in (1, 2, 3):
        build(tmp_path / "c", splits(range(10 * n)), form="webdataset")
    compact(Cache.open(tmp_path / "c"))
    for store in Cache.open(tmp_path / "c").features():
        assert {store.marker(shard).format for shard in store.index().shards} == {"webdataset"}
    assert rows_lacking(tmp_path / "c", Cache.open(tmp_path / "c").builds().all()[-1]) == 0


def test_a_damaged_shard_is_not_merged(root: Path) -> None:
    store = Cache.open(root).feature(SPECS["eps"])
    marker = store.markers()[3]
    data = next(path for path in (store.shards / marker.data).glob("c/**/*") if path.is_file())
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    row = compact(Cache.open(root))["features"][store.folder.name]
    assert len(row["damaged"]) == 1
    assert marker.shard in row["damaged"][0]
    assert store.index(refresh=True).shards.count(marker.shard) == 1


def test_shards_that_no_newest_revision_uses_are_left_alone(tmp_path: Path) -> None:
    root = tmp_path / "c"
    build(root, splits(range(10)))
    build(root, splits(range(10, 20)))
    build(root, splits(range(10, 30)))
    unused = {key_of(number) for number in range(10)}
    compact(Cache.open(root))
    store = Cache.open(root).feature(SPECS["image"])
    merged = [marker for marker in store.markers() if marker.merged]
    assert merged
    assert all(unused.isdisjoint(marker.keys) for marker in merged)


def test_a_key_in_two_small_shards_is_one_row_of_the_merged_shard(tmp_path: Path) -> None:
    root = tmp_path / "c"
    store = Cache.create(root).feature(SPECS["image"])
    for numbers in (range(6), range(4, 10), range(10, 14)):
        keys = sorted(keys_of(numbers))
        store.commit(keys, values_of("image", keys))
    build(root, dict.fromkeys(keys_of(range(14)), "train"))
    compact(Cache.open(root))
    (shard,) = Cache.open(root).feature(SPECS["image"]).index().shards
    assert store.marker(shard).rows == 14
    keys = keys_of(range(14))
    np.testing.assert_array_equal(gather(Cache.open(root).feature(SPECS["image"]), keys), values_of("image", keys))


def compact_there(root: Path) -> None:
    compact(Cache.open(root))


def test_two_compactions_at_once_and_one_that_is_killed_leave_what_one_would(root: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(root, tmp_path / "alone"))
    compact(Cache.open(alone))
    context = multiprocessing.get_context("fork")
    killed = context.Process(target=compact_there, args=(root,))
    killed.start()
    while killed.is_alive() and shard_counts(root)["image"] == 2 * FEW:
        pass
    killed.kill()
    killed.join()
    for path in (root / "builders").iterdir():  # its lease, ten minutes later
        os.utime(path, (0, 0))
    both = [context.Process(target=compact_there, args=(root,)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert verify(Cache.open(root)) == []
    for one, two in zip(Cache.open(root).features(), Cache.open(alone).features(), strict=True):
        assert one.index().shards == two.index().shards
        assert {m.shard: m.sha256 for m in one.markers()} == {m.shard: m.sha256 for m in two.markers()}
    collect(Cache.open(root), delete_them=True, grace_hours=0)
    assert shard_counts(root) == {"image": 2, "eps": 2, "teacher": 1}


def test_training_reads_the_same_values_from_a_compacted_cache(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from distil_cache.train.data.dataset import FeatureDataset
    from small_cache import make_cache, rows

    table = rows("train", 12, {"adm": 12})
    for n in (8, 16, 24):
        cache, record = make_cache(tmp_path / "c", table[:n], shard_rows=3)
    before = FeatureDataset(
        cache, record, cache.datasets().read("pictures"), ["image", "eps", "teacher"], split="train", purpose="x"
    )
    names = before.table.column("key").to_pylist()
    values = {name: before.read(name, np.arange(24)) for name in ("image", "eps", "teacher")}
    compact(cache)
    collect(cache, delete_them=True, grace_hours=0)
    cache = Cache.open(tmp_path / "c")
    after = FeatureDataset(
        cache, record, cache.datasets().read("pictures"), ["image", "eps", "teacher"], split="train", purpose="x"
    )
    assert len(after.stores["image"].marker_ids()) == 1
    assert after.table.column("key").to_pylist() == names
    for name, old in values.items():
        np.testing.assert_array_equal(after.read(name, np.arange(24)), old)
    assert sum(len(batch.rows) for batch in after.epoch(0, 0, 8)) == 24
