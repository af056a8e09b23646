"""A cache in an object store behaves like one on a disk: shards, datasets, leases, gc, compaction, verify and repair.

The same tests run on a disk, in memory and over the real S3 protocol.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from distil_cache.cache.lease import lease, read_leases
from distil_cache.cache.maintenance.compact import compact
from distil_cache.cache.maintenance.gc import collect
from distil_cache.cache.maintenance.listing import summary
from distil_cache.cache.maintenance.repair import repair
from distil_cache.cache.maintenance.verify import list_garbage, verify
from distil_cache.cache.store import Cache
from distil_cache.errors import IntegrityError, UserError
from distil_cache.storage import AnyPath, RemotePath, to_path
from maintained_cache import NAME, SPECS, checksums, keys_of, rows_lacking, train, values_of
from patience import until
from s3_cache import TWO, build, data_of


@pytest.fixture(params=["disk", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> AnyPath:
    """A path for a new cache: on a disk, in memory, or on the S3 server."""
    if request.param == "disk":
        return tmp_path / "cache"
    if request.param == "memory":
        pytest.importorskip("fsspec")
        return to_path(f"memory://{request.node.name}/cache")
    return to_path(f"{request.getfixturevalue('s3_bucket')}/some/cache")


@pytest.fixture
def on_s3(s3_bucket: str) -> RemotePath:
    place = to_path(f"{s3_bucket}/cache")
    assert isinstance(place, RemotePath)
    return place


def some_file(folder: AnyPath) -> AnyPath:
    """Return a file below ``folder`` that holds rows."""
    if isinstance(folder, RemotePath):
        return max(folder.below(), key=lambda entry: entry.size).path
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def overwrite(path: AnyPath, data: bytes) -> None:
    path.write(data) if isinstance(path, RemotePath) else path.write_bytes(data)


@pytest.mark.parametrize("form", ["zarr", "webdataset"])
def test_committed_rows_come_back(root: AnyPath, form: str) -> None:
    store = Cache.create(root).feature(SPECS["teacher"], form)
    keys = sorted(keys_of(range(6)))
    rows = values_of("teacher", keys)
    marker = store.commit(keys, rows)
    again = Cache.open(str(root)).open_feature(store.folder.name)
    np.testing.assert_array_equal(again.read(marker.shard), rows)
    np.testing.assert_array_equal(again.read(marker.shard, 2, 5), rows[2:5])
    np.testing.assert_array_equal(again.read(marker.shard, 1, 4, view=1), rows[1:4, 1])
    assert again.index().locate(keys)[1].tolist() == list(range(6))
    assert again.marker(marker.shard) == marker
    assert (verify(Cache.open(root)), list_garbage(Cache.open(root))) == ([], [])


def test_a_shard_committed_twice_keeps_its_first_data(root: AnyPath) -> None:
    cache = Cache.create(root)
    keys = keys_of(range(4))
    first, second = cache.feature(SPECS["eps"]), cache.feature(SPECS["eps"])
    marker = first.commit(keys, values_of("eps", keys))
    assert second.commit(keys, np.ones_like(values_of("eps", keys))) == marker
    assert data_of(first) == [marker.data]


def test_builds_compaction_and_gc_leave_just_what_is_needed(root: AnyPath) -> None:
    first, second = (build(root, train(*range(n, n + 4)))[0] for n in (0, 2))
    cache = Cache.open(root)
    assert cache.datasets().history(NAME) == [second.revision, first.revision]
    assert build(root, train(*range(2, 6)))[1] == dict.fromkeys(TWO, 0)

    compact(cache, 512)
    assert all(store.index().saved.shards for store in Cache.open(root).features()), "the compacted index is read"
    would = collect(cache, grace_hours=0)
    assert would["dry_run"]
    assert would["items"]
    assert rows_lacking(root, first) == 0, "a dry run removes nothing"
    collect(cache, delete_them=True, grace_hours=0)

    cache = Cache.open(root)
    assert cache.builds().ids() == [second.id]
    assert rows_lacking(root, second) == 0
    assert (verify(cache), list_garbage(cache)) == ([], [])
    for store in cache.features():
        assert data_of(store) == sorted(marker.data for marker in store.markers())


def test_gc_leaves_a_feature_in_use_alone(root: AnyPath) -> None:
    build(root, train(0, 1))
    build(root, train(2, 3))
    cache = Cache.open(root)
    with lease(root, "build", [spec.folder for spec in TWO.values()], NAME):
        assert collect(cache, delete_them=True, grace_hours=0)["items"] == []
    assert collect(cache, delete_them=True, grace_hours=0)["items"] != []


def test_what_gc_removed_is_restored_when_it_is_needed(root: AnyPath) -> None:
    first, _ = build(root, train(0, 1))
    build(root, train(2, 3))
    collect(Cache.open(root), delete_them=True)
    assert rows_lacking(root, build(root, train(2, 3))[0]) == 0
    again, computed = build(root, train(0, 1))
    assert again.id == first.id
    assert rows_lacking(root, again) == 0
    assert (verify(Cache.open(root)), computed.keys()) == ([], TWO.keys())


def test_a_lease_is_there_as_long_as_the_work_and_shows_signs_of_life(root: AnyPath) -> None:
    with lease(root, "compact", ["eps-1"], "photos", beat=0.05) as path:
        assert read_leases(root).features == {"eps-1"}
        path.unlink()
        until(path.exists)
        assert read_leases(root).datasets == {"photos"}
    assert read_leases(root).live == ()


def test_the_summary_is_the_same_for_every_kind_of_storage(root: AnyPath, tmp_path: Path) -> None:
    for place in (root, tmp_path / "other"):
        record, _ = build(place, train(*range(5)))
        Cache.open(place).builds().add_ref("run", record.id, "/runs/run")
    here, there = (summary(Cache.open(place)) for place in (tmp_path / "other", root))
    for found in (here, there):
        for entry in (*found["builds"], *found["datasets"]):
            entry.pop("created", None)
    assert there == here


def test_a_flipped_bit_is_found_moved_to_the_trash_and_rebuilt(root: AnyPath) -> None:
    splits = train(*range(4))
    record, _ = build(root, splits, shard_rows=2)
    store = Cache.open(root).feature(SPECS["eps"])
    marker = store.markers()[0]
    file = some_file(store.shards / marker.data)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    overwrite(file, bytes(data))
    (problem,) = verify(Cache.open(root))
    assert problem.shard == marker.shard

    assert repair(Cache.open(root))["problems"] == []
    assert sorted(path.name[:32] for path in (store.folder / "damaged").iterdir()) == [marker.shard] * 2
    again, computed = build(root, splits, shard_rows=2)
    assert (again.id, computed) == (record.id, {"image": 0, "eps": 2})
    assert verify(Cache.open(root)) == []
    assert rows_lacking(root, record) == 0


@pytest.mark.parametrize("what", ["shortened", "gone"])
def test_missing_data_are_refused_and_never_read_as_zeros(root: AnyPath, what: str) -> None:
    keys = keys_of(range(4))
    store = Cache.create(root).feature(SPECS["eps"])
    marker = store.commit(keys, values_of("eps", keys))
    file = some_file(store.shards / marker.data)
    overwrite(file, file.read_bytes()[:-20]) if what == "shortened" else file.unlink()
    with pytest.raises(IntegrityError, match="verify"):
        Cache.open(root).feature(SPECS["eps"]).read(marker.shard)
    assert [problem.shard for problem in verify(Cache.open(root))] == [marker.shard]


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_damaged_marker_is_an_integrity_error(root: AnyPath, text: str) -> None:
    keys = keys_of(range(3))
    store = Cache.create(root).feature(SPECS["eps"])
    marker = store.commit(keys, values_of("eps", keys))
    overwrite(store.shards / f"{marker.shard}.json", text.encode())
    with pytest.raises(IntegrityError):
        Cache.open(root).feature(SPECS["eps"]).index()
    assert [problem.shard for problem in verify(Cache.open(root))] == [marker.shard]


def test_what_is_no_cache_is_not_opened_and_does_not_become_one(root: AnyPath) -> None:
    with pytest.raises(UserError, match="is not a cache"):
        Cache.open(root)
    if isinstance(root, Path):
        root.mkdir()
    overwrite(root / "photo.jpg", b"x")
    with pytest.raises(UserError, match="neither empty nor a cache"):
        Cache.create(root)


def test_a_cache_goes_to_a_store_and_back_as_a_plain_tree(on_s3: RemotePath, tmp_path: Path) -> None:
    record, _ = build(tmp_path / "here", train(*range(6)))
    on_s3.upload(tmp_path / "here")
    assert rows_lacking(on_s3, record) == 0
    assert checksums(on_s3) == checksums(tmp_path / "here")
    more, _ = build(on_s3, train(*range(9)))
    on_s3.download(tmp_path / "back")
    assert rows_lacking(tmp_path / "back", more) == 0
    assert verify(Cache.open(tmp_path / "back")) == []
