"""Damaged files move to the trash and are never deleted; the next build computes only their rows again."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from distil_cache.cache.maintenance.compact import compact
from distil_cache.cache.maintenance.gc import collect
from distil_cache.cache.maintenance.repair import repair
from distil_cache.cache.maintenance.verify import verify
from distil_cache.cache.records.builds import BuildRecord
from distil_cache.cache.store import Cache
from distil_cache.cli import app
from distil_cache.errors import TemporaryFolderError
from distil_cache.storage import disk_array
from distil_cache.storage.disk_array import DiskArray
from maintained_cache import NAME, SPECS, build, keys_of, rows_lacking, values_of
from typer.testing import CliRunner

SPLITS = dict.fromkeys(keys_of(range(12)), "train")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BuildRecord]:
    root = tmp_path_factory.mktemp("whole") / "cache"
    return root, build(root, SPLITS, shard_rows=4)[0]


@pytest.fixture
def cache(whole: tuple[Path, BuildRecord], tmp_path: Path) -> Cache:
    return Cache.open(shutil.copytree(whole[0], tmp_path / "cache"))


@pytest.fixture
def record(whole: tuple[Path, BuildRecord]) -> BuildRecord:
    return whole[1]


def damage(cache: Cache, feature: str, number: int = 0) -> str:
    """Flip a bit of one shard and return its id."""
    store = cache.feature(SPECS[feature])
    marker = store.markers()[number]
    data = next(path for path in (store.shards / marker.data).glob("c/**/*") if path.is_file())
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    return marker.shard


def sizes(root: Path) -> list[tuple[str, int]]:
    """Names and sizes of all files of the cache, without their folders."""
    return sorted((path.name, path.stat().st_size) for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize("feature", ["image", "eps", "teacher"])
def test_the_next_build_makes_just_the_damaged_shard_again(cache: Cache, record: BuildRecord, feature: str) -> None:
    shard = damage(cache, feature)
    before = sizes(cache.root)
    result = repair(cache)
    assert result["problems"] == []
    assert [task["dataset"] for task in result["to_build"]] == [NAME]
    assert "distil-cache build /pictures --cache" in result["to_build"][0]["command"]
    assert sizes(cache.root) == before, "nothing is deleted"
    folder = cache.feature(SPECS[feature]).folder
    assert sorted(path.name[:32] for path in (folder / "damaged").iterdir()) == [shard, shard]
    again, computed = build(cache.root, SPLITS, shard_rows=4)
    assert computed == dict.fromkeys(SPECS, 0) | {feature: 4}
    assert again.id == record.id
    assert verify(cache) == []
    assert rows_lacking(cache.root, record) == 0


def test_a_full_temporary_folder_is_no_damage_of_a_sound_table(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(data: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def array(dtype: object) -> DiskArray:
        made = DiskArray(dtype)
        monkeypatch.setattr(made._file, "write", full)
        return made

    before = sizes(cache.root)
    monkeypatch.setattr(disk_array, "DiskArray", array)
    with pytest.raises(TemporaryFolderError, match="No space left on device"):
        repair(cache)
    assert sizes(cache.root) == before


@pytest.mark.parametrize("text", ["", "{"])
def test_a_damaged_marker_is_moved_to_the_trash_and_its_data_are_left_to_gc(cache: Cache, text: str) -> None:
    store = cache.feature(SPECS["eps"])
    shard = store.marker_ids()[0]
    (store.shards / f"{shard}.json").write_text(text)
    result = repair(cache)
    assert result["problems"] == []
    assert [path.split("/")[-1][:32] for path in result["garbage"]] == [shard]
    assert build(cache.root, SPLITS, shard_rows=4)[1]["eps"] == 4


def test_missing_data_are_no_longer_a_problem_once_the_marker_is_in_the_trash(cache: Cache) -> None:
    store = cache.feature(SPECS["eps"])
    shutil.rmtree(store.shards / store.markers()[0].data)
    assert len(verify(cache)) == 1
    assert repair(cache)["problems"] == []
    assert build(cache.root, SPLITS, shard_rows=4)[1] == {"image": 0, "eps": 4, "teacher": 0}


def test_rows_made_again_in_other_shards_satisfy_the_old_record_and_are_kept_for_it(
    cache: Cache, record: BuildRecord
) -> None:
    cache.builds().add_ref("run", record.id, "/run")
    for number in range(3):
        damage(cache, "eps", number)
    repair(cache)
    store = cache.feature(SPECS["eps"])
    assert store.marker_ids() == []
    keys = sorted(SPLITS)
    for start in range(0, 12, 6):
        store.commit(keys[start : start + 6], values_of("eps", keys[start : start + 6]))
    build(cache.root, dict.fromkeys(keys_of(range(50, 53)), "train"))
    assert verify(cache) == []
    collect(cache, delete_them=True, grace_hours=0)
    assert rows_lacking(cache.root, record) == 0


def test_a_merged_shard_that_is_damaged_gives_way_to_what_it_merged(cache: Cache, record: BuildRecord) -> None:
    compact(cache)
    store = cache.feature(SPECS["eps"])
    merged = [number for number, marker in enumerate(store.markers()) if marker.merged]
    assert len(merged) == 1
    damage(cache, "eps", merged[0])
    result = repair(cache)
    assert (result["problems"], result["to_build"]) == ([], [])
    assert rows_lacking(cache.root, record) == 0
    assert build(cache.root, SPLITS, shard_rows=4)[1] == dict.fromkeys(SPECS, 0)


def test_a_merged_shard_stands_for_what_is_gone(cache: Cache) -> None:
    compact(cache)
    collect(cache, delete_them=True, grace_hours=0)
    assert verify(cache) == []
    damage(cache, "eps")
    repair(cache)
    assert build(cache.root, SPLITS)[1] == {"image": 0, "eps": 12, "teacher": 0}


def test_what_gc_removed_and_a_record_still_names_is_restored(cache: Cache, record: BuildRecord) -> None:
    store = cache.feature(SPECS["eps"])
    (store.folder / "removed").mkdir()
    shard = store.marker_ids()[1]
    (store.shards / f"{shard}.json").rename(store.removed / f"{shard}.json")
    assert "4 of 12 rows" in verify(cache)[0].what
    result = repair(cache)
    assert (result["problems"], result["to_build"]) == ([], [])
    assert "is restored" in result["repaired"][0]
    assert rows_lacking(cache.root, record) == 0


def test_a_merged_shard_that_gc_removed_is_restored_when_what_it_replaced_is_gone(
    cache: Cache, record: BuildRecord
) -> None:
    compact(cache)
    collect(cache, delete_them=True, grace_hours=0)
    store = cache.feature(SPECS["eps"])
    (merged,) = [marker.shard for marker in store.markers() if marker.merged]
    store.removed.mkdir(exist_ok=True)
    (store.shards / f"{merged}.json").rename(store.removed / f"{merged}.json")
    assert "12 of 12 rows" in verify(cache)[0].what
    result = repair(cache)
    assert (result["problems"], result["to_build"]) == ([], [])
    assert rows_lacking(cache.root, record) == 0


def test_a_damaged_table_or_record_is_moved_to_the_trash_and_rebuilt(cache: Cache, record: BuildRecord) -> None:
    table = cache.root / "datasets" / NAME / f"{record.revision}.parquet"
    table.write_bytes(table.read_bytes()[:-10])
    (cache.root / "builds" / f"{record.id}.json").write_text("{")
    cache.root.joinpath("refs").mkdir()
    (cache.root / "refs" / "run.json").write_text("[]")
    assert len(verify(cache)) == 3
    result = repair(cache)
    assert result["problems"] == []
    assert len(result["repaired"]) == 3
    again, computed = build(cache.root, SPLITS, shard_rows=4)
    assert again.id == record.id
    assert computed == dict.fromkeys(SPECS, 0)
    assert verify(cache) == []


def test_a_damaged_spec_is_written_again_by_the_next_build(cache: Cache) -> None:
    (cache.feature(SPECS["eps"]).folder / "spec.json").write_text("{}")
    result = repair(cache)
    assert result["problems"] == []
    assert "no spec.json" in result["to_build"][0]["why"]
    assert build(cache.root, SPLITS, shard_rows=4)[1] == dict.fromkeys(SPECS, 0)
    assert verify(cache) == []


def test_a_damaged_head_gives_way_to_the_one_before_and_damaged_rejects_to_a_note(
    cache: Cache, record: BuildRecord
) -> None:
    newer, _ = build(cache.root, SPLITS | {keys_of([30])[0]: "train"}, shard_rows=4)
    folder = cache.root / "datasets" / NAME
    (folder / "HEAD-000002.json").write_text("{}")
    (folder / f"{newer.revision}.rejects.jsonl").write_bytes(b"\xff")
    result = repair(cache)
    assert result["problems"] == []
    assert any(f"newest revision of {NAME} is now {record.revision}" in what for what in result["repaired"])
    assert cache.datasets().head(NAME) == record.revision
    assert next(cache.datasets().rejects(NAME, newer.revision))["reason"] == "lost"


def test_a_reference_to_a_build_that_gc_removed_brings_it_back(cache: Cache, record: BuildRecord) -> None:
    build(cache.root, dict.fromkeys(keys_of(range(3)), "train"))
    collect(cache, delete_them=True)
    assert record.id not in cache.builds().ids()
    (cache.root / "refs").mkdir()
    (cache.root / "refs" / "run.json").write_text(json.dumps({"run": "run", "build": record.id, "path": "/run"}))
    repair(cache)
    result = repair(cache)
    assert (result["problems"], result["to_build"]) == ([], [])
    assert rows_lacking(cache.root, record) == 0


def test_the_command_ends_with_4_for_damage_and_with_0_when_all_of_it_was_repaired(cache: Cache) -> None:
    runner = CliRunner()
    damage(cache, "eps")
    assert runner.invoke(app, ["cache", "verify", str(cache.root)]).exit_code == 4
    done = runner.invoke(app, ["cache", "verify", "--repair", str(cache.root)])
    assert done.exit_code == 0
    assert "Run: distil-cache build /pictures" in done.stdout
    assert "sound after these builds" in done.stdout
    build(cache.root, SPLITS, shard_rows=4)
    clean = runner.invoke(app, ["cache", "verify", str(cache.root), "--json"])
    assert clean.exit_code == 0
    assert json.loads(clean.stdout)["problems"] == []
