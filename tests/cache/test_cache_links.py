"""Nothing is moved or deleted through a symbolic link, and only names of the cache's own forms are touched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from distil_cache.cache.index import file as index_file
from distil_cache.cache.maintenance.compact import compact
from distil_cache.cache.maintenance.garbage import Garbage, delete_garbage
from distil_cache.cache.maintenance.gc import collect
from distil_cache.cache.maintenance.repair import repair
from distil_cache.cache.maintenance.trash import SymlinkError, move_to_trash, restore
from distil_cache.cache.store import Cache
from maintained_cache import NAME, SPECS, build, keys_of

EPS = f"features/{SPECS['eps'].folder}"
LINKS = [
    f"{EPS}/shards", f"{EPS}/damaged", f"{EPS}/removed", f"{EPS}/index", EPS, "features", "builders", "builds", "builds/removed",
    "builds/damaged", "refs", "refs/damaged", "datasets", f"datasets/{NAME}", f"datasets/{NAME}/removed", f"datasets/{NAME}/damaged",
]  # fmt: skip
NONCE = "0123456789abcdef"


def train(*numbers: int) -> dict[str, str]:
    return dict.fromkeys(keys_of(numbers), "train")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """A cache with something to do in every folder: old revisions, merged shards, damage, garbage, removed and stale things."""
    root = tmp_path / "cache"
    for first in (0, 2, 4):
        build(root, train(*range(first, first + 4)))
    cache = Cache.open(root)
    compact(cache)
    collect(cache, delete_them=True)
    for first in (6, 8):
        build(root, train(*range(first, first + 4)))
    (root / "builders" / f"host-1-{NONCE}.json").write_text("{}")
    for folder in ("builds", "refs", f"datasets/{NAME}", EPS, f"{EPS}/shards"):
        (root / folder).mkdir(exist_ok=True)
        (root / folder / f".tmp-x-{NONCE}").touch()
    for folder in ("builds", "refs", f"datasets/{NAME}", EPS):
        (root / folder / "damaged").mkdir(exist_ok=True)
    (root / "builds" / "damaged" / f"{NONCE}.json").touch()
    (root / "refs" / "damaged" / "run.json").touch()
    (root / "datasets" / NAME / "damaged" / "HEAD-000001.json").touch()
    (root / EPS / "damaged" / f"{'0' * 32}.json").touch()
    (root / EPS / "shards" / f"{'0' * 32}-{NONCE}.zarr").mkdir()
    store = cache.feature(SPECS["eps"])
    marker = store.markers()[0]
    shutil.rmtree(store.shards / marker.data)
    make_old(root)
    return cache


def make_old(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (1e9, 1e9), follow_symlinks=False)


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        path.relative_to(folder).as_posix(): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("name", LINKS)
def test_gc_repair_and_compact_leave_alone_what_is_behind_a_link(cache: Cache, tmp_path: Path, name: str) -> None:
    folder, elsewhere = cache.root / name, tmp_path / "elsewhere"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.move(folder, elsewhere)
    folder.symlink_to(elsewhere)
    before = {
        path: facts for path, facts in contents(elsewhere).items() if name != "builders" or path.endswith(".json")
    }
    result = collect(cache, delete_them=True, grace_hours=0)
    told = repair(cache)
    after = contents(elsewhere)
    assert {path: after.get(path) for path in before} == before
    assert any(f"{name}: is a symbolic link" in kept for kept in result["kept"])
    assert folder.is_symlink()
    if name in (EPS, f"{EPS}/shards", f"{EPS}/damaged", "features"):
        assert any("is a symbolic link" in left for left in told["left"])


def test_an_older_index_behind_a_link_is_not_deleted(cache: Cache, tmp_path: Path) -> None:
    index = cache.root / EPS / "index"
    elsewhere = tmp_path / "elsewhere"
    shutil.move(index, elsewhere)
    index.symlink_to(elsewhere)
    before = contents(elsewhere)
    store = cache.feature(SPECS["image"])
    part = store.index(refresh=True).whole()
    assert index_file.write(index, part, store.fingerprint)
    assert before.items() <= contents(elsewhere).items()


def test_only_names_of_the_caches_own_forms_are_touched(cache: Cache) -> None:
    foreign = [
        *(f"builds/{name}" for name in ("notes.json", "removed/notes.json", "damaged/notes.txt")),
        *(f"datasets/{NAME}/{name}" for name in ("notes.parquet", "removed/notes", "damaged/x.parquet")),
        *(f"{EPS}/{name}" for name in ("notes-1", "damaged/x.json", "removed/x.json", "index/notes.index")),
        *(f"{EPS}/shards/{name}" for name in ("my-data.zarr/x", f"{'a' * 32}-mine.tar", ".tmp-mine")),
        *(f"features/mine/shards/{name}" for name in ("a-b.zarr", f"{'a' * 32}-{NONCE}.zarr")),
        *("refs/damaged/.hidden", "builders/notes.json", ".tmp-notes", "my-own/file"),
    ]  # fmt: skip
    for name in foreign:
        path = cache.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    make_old(cache.root)
    assert collect(cache, delete_them=True, grace_hours=0)["items"]
    repair(cache)
    collect(cache, delete_them=True, grace_hours=0)
    assert [name for name in foreign if not (cache.root / name).is_file()] == []


def test_a_link_instead_of_data_is_removed_and_not_its_target(cache: Cache, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    link = cache.root / EPS / "shards" / f"{'1' * 32}-{NONCE}.zarr"
    link.symlink_to(elsewhere)
    os.utime(link, (1e9, 1e9), follow_symlinks=False)
    collect(cache, delete_them=True, grace_hours=0)
    assert not link.is_symlink()
    assert (elsewhere / "file").exists()


def test_the_time_of_a_file_behind_a_linked_marker_stays(cache: Cache, tmp_path: Path) -> None:
    marker = cache.feature(SPECS["eps"]).shards / f"{cache.feature(SPECS['eps']).marker_ids()[0]}.json"
    foreign = tmp_path / "foreign.json"
    shutil.move(marker, foreign)
    marker.symlink_to(foreign)
    before = foreign.stat().st_mtime_ns
    assert move_to_trash(cache.root, marker, cache.root / EPS / "damaged")
    assert foreign.stat().st_mtime_ns == before


def test_moving_putting_back_and_deleting_refuse_a_link_by_themselves(cache: Cache, tmp_path: Path) -> None:
    shards = cache.root / EPS / "shards"
    elsewhere = tmp_path / "elsewhere"
    shutil.move(shards, elsewhere)
    shards.symlink_to(elsewhere)
    marker = min(shards.glob("*.json"))
    with pytest.raises(SymlinkError, match="shards: is a symbolic link"):
        move_to_trash(cache.root, marker, cache.root / EPS / "removed")
    with pytest.raises(SymlinkError, match="shards: is a symbolic link"):
        restore(cache.root, cache.root / EPS / "removed" / marker.name, marker)
    with pytest.raises(SymlinkError, match="shards: is a symbolic link"):
        delete_garbage(cache.root, Garbage(shards / f"{'0' * 32}-{NONCE}.zarr", "", 0, 0))
    assert marker.is_file()
