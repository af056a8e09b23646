"""What gc removes, what it never touches, and that a build beside it never names rows that are gone."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from distil_cache.cache.lease import lease
from distil_cache.cache.maintenance import gc
from distil_cache.cache.maintenance.compact import compact
from distil_cache.cache.maintenance.gc import collect
from distil_cache.cache.maintenance.trash import ensure_shards
from distil_cache.cache.maintenance.verify import list_garbage, verify
from distil_cache.cache.records.builds import BuildRecord
from distil_cache.cache.store import Cache
from distil_cache.errors import IntegrityError
from maintained_cache import NAME, SPECS, build, keys_of, rows_lacking, train, values_of
from patience import PATIENCE

FOLDERS = [spec.folder for spec in SPECS.values()]
HOUR = 3600


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[BuildRecord]]:
    """Three revisions: images 0 to 3, then 2 to 5, then 4 to 7; each build made its own shard of what was new."""
    root = tmp_path_factory.mktemp("grown") / "cache"
    return root, [build(root, train(*range(n, n + 4)))[0] for n in (0, 2, 4)]


@pytest.fixture
def cache(grown: tuple[Path, list[BuildRecord]], tmp_path: Path) -> Cache:
    return Cache.open(shutil.copytree(grown[0], tmp_path / "cache"))


@pytest.fixture
def records(grown: tuple[Path, list[BuildRecord]]) -> list[BuildRecord]:
    return grown[1]


def files(root: Path) -> dict[str, int]:
    return {path.relative_to(root).as_posix(): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def shards(cache: Cache) -> dict[str, int]:
    return {store.feature: len(store.marker_ids()) for store in cache.features()}


def make_older(path: Path, hours: float) -> None:
    for item in (path, *path.rglob("*")):
        old = item.stat().st_mtime - hours * HOUR
        os.utime(item, (old, old))


def kinds(result: dict[str, Any]) -> dict[str, int]:
    return {
        kind: sum(item["kind"] == kind for item in result["items"]) for kind in ("build", "revision", "shard", "data")
    }


def test_a_dry_run_says_what_would_go_and_why_and_touches_nothing(cache: Cache) -> None:
    before = files(cache.root)
    result = collect(cache)
    assert result["dry_run"]
    assert kinds(result) == {"build": 2, "revision": 4, "shard": 3, "data": 0}
    assert {item["why"] for item in result["items"]} == {
        "no run and no new revision of pictures needs it",
        "an older revision of pictures that no run needs",
        "only builds that are not needed name it",
    }
    assert result["later"] == sum(item["bytes"] for item in result["items"]) > 0
    assert files(cache.root) == before


def test_markers_go_first_and_data_when_the_grace_period_is_over(cache: Cache, records: list[BuildRecord]) -> None:
    first = collect(cache, delete_them=True)
    assert kinds(first)["shard"] == 3
    assert kinds(first)["data"] == 0
    assert first["waiting"] == first["bytes"] == 0
    assert shards(cache) == {"image": 2, "eps": 2, "teacher": 2}
    assert [len(list((store.shards).glob("*.zarr"))) for store in cache.features()] == [3, 3, 3]
    second = collect(cache, delete_them=True)
    assert kinds(second) == {"build": 0, "revision": 0, "shard": 0, "data": 0}
    assert second["waiting"] == first["later"]
    for folder in cache.root.rglob("removed"):
        make_older(folder, 25)
    third = collect(cache, delete_them=True)
    assert kinds(third) == {"build": 0, "revision": 0, "shard": 0, "data": 2 + 4 + 3}
    assert third["bytes"] == first["later"]
    assert [len(list((store.shards).glob("*.zarr"))) for store in cache.features()] == [2, 2, 2]
    assert verify(cache) == []
    assert list_garbage(cache) == []
    assert rows_lacking(cache.root, records[-1]) == 0


def test_the_grace_period_counts_from_the_removal_of_the_marker_and_not_from_the_writing_of_the_data(
    cache: Cache,
) -> None:
    for store in cache.features():
        make_older(store.shards, 1000)
    collect(cache, delete_them=True)
    assert kinds(collect(cache, delete_them=True))["data"] == 0


def test_what_a_run_uses_stays_with_its_revision_and_record(cache: Cache, records: list[BuildRecord]) -> None:
    cache.builds().add_ref("run", records[0].id, "/runs/run")
    result = collect(cache, delete_them=True, grace_hours=0)
    assert kinds(result)["build"] == 1
    assert rows_lacking(cache.root, records[0]) == rows_lacking(cache.root, records[2]) == 0
    assert cache.builds().ids() == sorted([records[0].id, records[2].id])
    assert verify(cache) == []


def test_what_an_interrupted_gc_left_of_a_revision_goes_with_the_next(cache: Cache, records: list[BuildRecord]) -> None:
    folder = cache.datasets().folder / NAME
    table = folder / f"{records[0].revision}.parquet"
    table.rename(folder / "gone")
    (folder / "gone").unlink()
    rejects = folder / f"{records[0].revision}.rejects.jsonl"
    assert rejects.exists()
    collect(cache, delete_them=True, grace_hours=0)
    assert not rejects.exists()


def test_more_revisions_can_be_kept(cache: Cache, records: list[BuildRecord]) -> None:
    collect(cache, delete_them=True, grace_hours=0, keep_revisions=2)
    assert cache.builds().ids() == sorted([records[1].id, records[2].id])
    assert rows_lacking(cache.root, records[1]) == 0
    assert cache.datasets().history(NAME)[:2] == [records[2].revision, records[1].revision]


def test_another_dataset_that_shares_images_keeps_them(cache: Cache) -> None:
    record, computed = build(cache.root, train(0, 1, 7), name="others")
    assert computed == {"image": 0, "eps": 0, "teacher": 0}
    assert kinds(collect(cache, delete_them=True, grace_hours=0))["shard"] == 0
    assert rows_lacking(cache.root, record) == 0


def test_the_work_of_an_interrupted_build_stays_until_it_is_old(cache: Cache) -> None:
    store = cache.feature(SPECS["eps"])
    keys = sorted(keys_of(range(90, 95)))
    marker = store.commit(keys, values_of("eps", keys))
    result = collect(cache, delete_them=True)
    assert store.has(marker.shard)
    assert any("interrupted build" in what for what in result["kept"])
    make_older(store.shards / f"{marker.shard}.json", 25)
    collect(cache, delete_them=True)
    assert not store.has(marker.shard)


def test_shards_without_rows_stay_as_they_remember_what_cannot_be_decoded(tmp_path: Path) -> None:
    bad = dict.fromkeys(keys_of([50]), "truncated: it ends early")
    build(tmp_path / "c", train(1, 2))
    build(tmp_path / "c", {**train(1, 2)}, rejected=bad)
    collect(Cache.open(tmp_path / "c"), delete_them=True, grace_hours=0)
    assert dict(Cache.open(tmp_path / "c").feature(SPECS["image"]).index().rejected) == bad


def test_data_without_a_marker_and_temporary_files_go_when_they_are_old(cache: Cache) -> None:
    store = cache.feature(SPECS["eps"])
    left = store.shards / f"{'0' * 32}-{'1' * 16}.zarr"
    shutil.copytree(store.shards / store.markers()[0].data, left)
    temporary = cache.root / "builds" / ".tmp-x-0123456789abcdef"
    temporary.touch()
    collect(cache, delete_them=True)
    assert left.exists()
    collect(cache, delete_them=True, grace_hours=0)
    assert not left.exists()
    assert temporary.exists(), "a writer may be about to link it"
    make_older(left.parent, 0)
    os.utime(temporary, (0, 0))
    collect(cache, delete_them=True)
    assert not temporary.exists()


def test_a_feature_or_dataset_in_use_is_left_alone(cache: Cache) -> None:
    with lease(cache.root, "build", FOLDERS[:2], NAME):
        result = collect(cache, delete_them=True, grace_hours=0)
    assert kinds(result) == {"build": 0, "revision": 0, "shard": 1, "data": 1}
    assert shards(cache) == {"image": 3, "eps": 3, "teacher": 2}
    assert sum("in use by a running process" in what for what in result["kept"]) == 2


@pytest.mark.parametrize("path", ["builds/*.json", "datasets/*/HEAD-000003.json", "refs/run.json"])
def test_nothing_is_removed_while_it_cannot_be_known_what_is_needed(
    cache: Cache, records: list[BuildRecord], path: str
) -> None:
    cache.builds().add_ref("run", records[0].id, "/runs/run")
    next(cache.root.glob(path)).write_text("{")
    before = files(cache.root)
    with pytest.raises(IntegrityError):
        collect(cache, delete_them=True, grace_hours=0)
    assert files(cache.root) == before


def test_a_feature_with_a_damaged_marker_is_left_alone(cache: Cache) -> None:
    store = cache.feature(SPECS["eps"])
    (store.shards / f"{store.marker_ids()[0]}.json").write_text("{")
    result = collect(cache, delete_them=True, grace_hours=0)
    assert len(store.marker_ids()) == 3
    assert any("not a valid marker" in what for what in result["kept"])
    assert shards(cache) == {"image": 2, "eps": 3, "teacher": 2}


def test_what_a_damaged_merged_shard_replaces_stays(cache: Cache, records: list[BuildRecord]) -> None:
    collect(cache, delete_them=True, grace_hours=0)
    compact(cache)
    store = cache.feature(SPECS["eps"])
    (merged,) = [marker for marker in store.markers() if marker.merged]
    data = next(path for path in (store.shards / merged.data).glob("c/**/*") if path.is_file())
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    result = collect(cache, delete_them=True, grace_hours=0)
    assert any("damaged, so what it replaces stays" in what for what in result["kept"])
    assert shards(cache) == {"image": 1, "eps": 3, "teacher": 1}


def test_a_reader_that_was_there_before_reads_on_for_the_grace_period(cache: Cache, records: list[BuildRecord]) -> None:
    reader = cache.open_feature(FOLDERS[1])
    shard = next(iter(set(records[0].features["eps"].shards) - set(records[2].features["eps"].shards)))
    reader.index()
    collect(cache, delete_them=True)
    assert not reader.has(shard)
    assert len(reader.read(shard)) == 4


def test_what_was_removed_and_is_needed_again_is_rebuilt_or_restored(cache: Cache) -> None:
    collect(cache, delete_them=True)
    record, computed = build(cache.root, train(0, 1, 2, 3))
    assert computed == {"image": 4, "eps": 4, "teacher": 4}
    assert rows_lacking(cache.root, record) == 0
    for folder in cache.root.rglob("removed"):
        make_older(folder, 25)
    collect(cache, delete_them=True)
    assert rows_lacking(cache.root, record) == 0
    for feature, built in record.features.items():
        data = [path.name for path in cache.feature(SPECS[feature]).shards.glob("*.zarr")]
        assert [sum(name.startswith(shard) for name in data) for shard in built.shards] == [1] * len(built.shards)


def items_found(cache: Cache) -> list[gc.CollectedItem]:
    """What a gc has decided to remove, that has not begun to do so."""
    return gc._scan(cache, 0, 1, thorough=True).items


def test_a_build_that_begins_after_the_scan_of_gc_keeps_what_it_relies_on(cache: Cache) -> None:
    items = items_found(cache)
    before = files(cache.root).keys()
    with lease(cache.root, "build", FOLDERS, NAME):
        moved = gc._move_items(cache, items)
        returned = gc._restore_needed(cache, 1, moved)
    assert returned == {item.path for item in items}
    assert {name for name in files(cache.root) if "/removed/" not in name} == before


def test_a_whole_build_between_scan_and_removal_keeps_what_it_names(cache: Cache) -> None:
    items = items_found(cache)
    record, computed = build(cache.root, train(0, 1, 2, 3))
    assert computed == {"image": 0, "eps": 0, "teacher": 0}
    gc._restore_needed(cache, 1, gc._move_items(cache, items))
    assert rows_lacking(cache.root, record) == 0
    assert verify(cache) == []


def test_what_a_killed_gc_did_not_restore_is_restored_by_the_build_or_the_next_gc(
    cache: Cache, records: list[BuildRecord]
) -> None:
    store = cache.open_feature(FOLDERS[1])
    named = records[0].features["eps"].shards
    gc._move_items(cache, items_found(cache))  # killed here
    assert not all(store.has(shard) for shard in named)
    ensure_shards(store, named)
    assert all(store.has(shard) for shard in named)

    gc._move_items(cache, items_found(cache))
    shutil.move(cache.root / "builds" / "removed" / f"{records[0].id}.json", cache.root / "builds")
    cache.builds().add_ref("run", records[0].id, "/runs/run")
    collect(cache, delete_them=True, grace_hours=0)
    assert rows_lacking(cache.root, records[0]) == 0
    assert verify(cache) == []


def merged_alone(cache: Cache) -> dict[str, list[str]]:
    """Merge, and remove for good what was merged: only the merged shards hold the rows. Returns them by feature."""
    compact(cache)
    collect(cache, delete_them=True, grace_hours=0)
    merged = {store.feature: [one.shard for one in store.markers() if one.merged] for store in cache.features()}
    assert all(merged.values())
    return merged


def move_away(cache: Cache, merged: dict[str, list[str]]) -> None:
    for store in cache.features():
        store.removed.mkdir(exist_ok=True)
        for shard in merged[store.feature]:
            (store.shards / f"{shard}.json").rename(store.removed / f"{shard}.json")


def test_a_merged_shard_in_the_trash_is_restored_when_its_parts_are_needed(
    cache: Cache, records: list[BuildRecord]
) -> None:
    cache.builds().add_ref("run", records[-1].id, "/runs/run")
    merged = merged_alone(cache)
    move_away(cache, merged)
    assert rows_lacking(cache.root, records[-1]) > 0
    collect(cache, delete_them=True, grace_hours=0)
    assert rows_lacking(cache.root, records[-1]) == 0
    assert verify(cache) == []


def test_a_merged_shard_that_gc_removed_is_restored_once_a_run_needs_its_parts(
    cache: Cache, records: list[BuildRecord]
) -> None:
    cache.builds().add_ref("run", records[-1].id, "/runs/run")
    merged = merged_alone(cache)
    build(cache.root, train(20, 21))
    ref = cache.root / "refs" / "run.json"
    text = ref.read_bytes()
    ref.unlink()
    make_older(cache.root, 48)
    collect(cache, delete_them=True)
    assert not any((cache.feature(SPECS["eps"]).shards / f"{shard}.json").exists() for shard in merged["eps"])
    ref.write_bytes(text)
    collect(cache, delete_them=True)
    assert rows_lacking(cache.root, records[-1]) == 0


def test_shards_made_again_in_another_cut_come_back_for_the_rows_that_a_build_needs(
    cache: Cache, records: list[BuildRecord]
) -> None:
    """The shard that the build names is deleted; another shard, neither named nor merged, holds its rows."""
    store = cache.feature(SPECS["eps"])
    for shard in records[-1].features["eps"].shards:
        shutil.rmtree(store.shards / store.marker(shard).data)
        (store.shards / f"{shard}.json").unlink()
    keys = sorted(keys_of(range(8)))
    other = store.commit(keys, values_of("eps", keys))
    store.removed.mkdir(exist_ok=True)
    (store.shards / f"{other.shard}.json").rename(store.removed / f"{other.shard}.json")
    assert rows_lacking(cache.root, records[-1]) > 0
    collect(cache, delete_them=True)
    assert rows_lacking(cache.root, records[-1]) == 0


def test_a_build_whose_rows_are_gone_for_good_is_not_recorded(cache: Cache, records: list[BuildRecord]) -> None:
    store = cache.open_feature(FOLDERS[1])
    collect(cache, delete_them=True, grace_hours=0)
    with pytest.raises(IntegrityError, match="Run the build again"):
        ensure_shards(store, records[0].features["eps"].shards)


def build_in_a_loop(root: Path, seed: int, times: int, answers: Any) -> None:
    """Build overlapping windows of images, so that most rows exist already and no build names them."""
    rng = random.Random(seed)
    name = f"dataset{seed}"
    failures = []
    for _ in range(times):
        start = rng.randrange(6)
        record, computed = build(root, train(*range(start, start + 5)), name=name, shard_rows=2)
        with lease(root, "build", FOLDERS, name):
            # A gc that decided before this build's record and lease were there may remove a shard for a moment, until it scans again.
            end = time.monotonic() + PATIENCE
            while (lacking := rows_lacking(root, record)) and time.monotonic() < end:
                time.sleep(0.1)
        if lacking:
            failures.append(f"{record.id}: {lacking} rows")
        answers.put((computed["eps"], failures))
        time.sleep(rng.choice([0, 0.01, 0.1]))  # now and then gc finds no lease


def collect_in_a_loop(root: Path, ended: Any) -> None:
    while not ended.is_set():
        collect(Cache.open(root), delete_them=True, grace_hours=0)
        time.sleep(0.01)


def test_builders_that_rely_on_unreferenced_shards_never_record_rows_that_gc_removes(tmp_path: Path) -> None:
    root, times, builders = tmp_path / "c", 14, 1
    build(root, train(0))
    context = multiprocessing.get_context("fork")
    ended, answers = context.Event(), context.Queue()
    collectors = [context.Process(target=collect_in_a_loop, args=(root, ended)) for _ in range(2)]
    working = [context.Process(target=build_in_a_loop, args=(root, seed, times, answers)) for seed in range(builders)]
    for process in (*collectors, *working):
        process.start()
    told = [answers.get(timeout=PATIENCE) for _ in range(times * builders)]
    for process in working:
        process.join()
        assert process.exitcode == 0
    ended.set()
    for process in collectors:
        process.join()
        assert process.exitcode == 0
    assert [failures for _, failures in told if failures] == []
    cache = Cache.open(root)
    newest = [record for record in cache.builds().all() if record.revision == cache.datasets().head(record.dataset)]
    assert len(newest) >= builders
    assert all(rows_lacking(root, record) == 0 for record in newest)
    assert verify(cache) == []
    assert sum(count for count, _ in told) < times * builders * 5, "builds found rows of earlier ones"


def test_compaction_gc_and_builds_at_once_lose_nothing(tmp_path: Path) -> None:
    root, times = tmp_path / "c", 8
    build(root, train(0))
    context = multiprocessing.get_context("fork")
    ended, answers = context.Event(), context.Queue()
    beside = [
        context.Process(target=collect_in_a_loop, args=(root, ended)),
        context.Process(target=compact_in_a_loop, args=(root, ended)),
    ]
    builder = context.Process(target=build_in_a_loop, args=(root, 0, times, answers))
    for process in (*beside, builder):
        process.start()
    told = [answers.get(timeout=PATIENCE) for _ in range(times)]
    builder.join()
    ended.set()
    for process in beside:
        process.join()
        assert process.exitcode == 0
    assert [failures for _, failures in told if failures] == []
    assert verify(Cache.open(root)) == []


def compact_in_a_loop(root: Path, ended: Any) -> None:
    while not ended.is_set():
        compact(Cache.open(root), 8)
        time.sleep(0.02)


def test_the_result_is_plain_json(cache: Cache) -> None:
    assert json.loads(json.dumps(collect(cache)))["keep_revisions"] == 1
