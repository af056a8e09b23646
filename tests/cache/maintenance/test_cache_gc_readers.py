"""Readers during gc: what it moves to the trash and restores is read wherever it is at that moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from distil_cache.cache import store
from distil_cache.cache.maintenance import gc, roots
from distil_cache.cache.maintenance.gc import collect, trash_folder
from distil_cache.cache.maintenance.trash import move_to_trash, restore
from distil_cache.cache.maintenance.verify import verify
from distil_cache.cache.records import datasets
from distil_cache.cache.records.builds import BuildRecord, BuildStore
from distil_cache.cache.store import Cache
from distil_cache.errors import IntegrityError
from maintained_cache import NAME, build, train


@pytest.fixture
def record(tmp_path: Path) -> BuildRecord:
    return build(tmp_path / "cache", train(0, 1, 2))[0]


@pytest.fixture
def cache(tmp_path: Path, record: BuildRecord) -> Cache:
    return Cache.open(tmp_path / "cache")


def always_elsewhere(root: Path, path: Path, read: Callable[..., Any], times: int) -> Callable[..., Any]:
    """A reader for which gc moves the file on each open: to the trash, back, and so on."""
    left = [times]

    def moved(place: Path, *arguments: Any) -> Any:
        if left[0] and place.name == path.name:
            left[0] -= 1
            aside = trash_folder(path) / path.name
            if place == path:
                move_to_trash(root, path, aside.parent)
            else:
                restore(root, aside, path)
                aside.unlink()
        return read(place, *arguments)

    return moved


@pytest.mark.parametrize("times", [1, 2])
def test_a_marker_is_found_where_gc_has_just_moved_it(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    (feature, *_) = cache.features()
    (marker,) = feature.markers()
    path = feature.shards / f"{marker.shard}.json"
    monkeypatch.setattr(store, "read_marker", always_elsewhere(cache.root, path, store.read_marker, times))
    assert feature.marker(marker.shard) == marker
    assert path.exists() == (times == 2)


@pytest.mark.parametrize("times", [1, 2])
def test_a_table_is_found_where_gc_has_just_moved_it(
    cache: Cache, record: BuildRecord, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    table = cache.datasets().read(NAME)
    path = cache.datasets().folder / NAME / f"{record.revision}.parquet"
    monkeypatch.setattr(datasets, "fetch_source", always_elsewhere(cache.root, path, datasets.fetch_source, times))
    assert cache.datasets().read(NAME) == table
    assert path.exists() == (times == 2)


def test_a_file_that_moves_each_time_it_is_read_is_an_integrity_error(
    cache: Cache, record: BuildRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cache.datasets().folder / NAME / f"{record.revision}.parquet"
    monkeypatch.setattr(datasets, "fetch_source", always_elsewhere(cache.root, path, datasets.fetch_source, 3))
    with pytest.raises(IntegrityError, match=r"parquet: cannot be used \(it moved each time it was read\)"):
        cache.datasets().read(NAME)


def test_a_briefly_absent_record_is_read_and_a_damaged_one_is_reported(
    cache: Cache, record: BuildRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cache.builds().folder / f"{record.id}.json"
    read, away = BuildStore.read, [True]

    def read_late(self: BuildStore, build_id: str) -> BuildRecord:
        if away:
            move_to_trash(cache.root, path, trash_folder(path))
        try:
            return read(self, build_id)
        finally:
            if away:
                restore(cache.root, trash_folder(path) / path.name, path)
                away.clear()

    monkeypatch.setattr(BuildStore, "read", read_late)
    assert roots.find_roots(cache, 1).records == {record.id: record}
    path.write_bytes(b"{}")
    with pytest.raises(IntegrityError, match=record.id):
        roots.find_roots(cache, 1)


def test_a_revision_that_becomes_the_head_during_the_scan_of_gc_is_never_removed(
    cache: Cache, record: BuildRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_roots, moved, newer = gc.find_roots, [], []

    def find_and_build(*arguments: Any) -> Any:
        found = find_roots(*arguments)
        if len(arguments) == 3:  # the scan of gc itself, not a read before or after it
            newer.append(build(cache.root, train(1, 2, 3))[0])
        return found

    def note(path: Path, folder: Path) -> bool:
        moved.append(path)
        return move_to_trash(path, folder)

    monkeypatch.setattr(gc, "find_roots", find_and_build)
    monkeypatch.setattr(gc, "move_to_trash", note)
    collect(cache, delete_them=True, grace_hours=0)
    assert len(newer) == 1
    assert not [path for path in moved if newer[0].revision in path.name]
    assert verify(cache) == []
