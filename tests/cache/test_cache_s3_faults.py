"""Concurrent and killed writers of one cache on S3, and a network that loses answers: one marker wins, nothing is lost."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distil_cache.cache.lease import read_leases
from distil_cache.cache.maintenance.compact import compact
from distil_cache.cache.maintenance.garbage import delete_garbage, find_garbage
from distil_cache.cache.maintenance.verify import list_garbage, verify
from distil_cache.cache.store import Cache
from distil_cache.errors import UnreachableError, UserError
from distil_cache.storage import RemotePath, to_path
from fault_builder import no_finding
from faulty_proxy import Chance, FaultyProxy, Kind
from maintained_cache import NAME, SPECS, checksums, keys_of, rows_lacking, table_of, train, values_of
from patience import PATIENCE
from s3_cache import build, data_of
from s3_server import point_at

MARKER = f"*/shards/{'[0-9a-f]' * 32}.json"
READ_BY_VERIFY = (
    "features/*/spec.json",
    "features/*/shards/????????????????????????????????.json",
    "features/*/shards/*-*",
    "features/*/index/*",
    "datasets/*/HEAD-*.json",
    "datasets/*/*.parquet",
    "datasets/*/*.audit.json",
    "builds/*.json",
    "refs/*.json",
)
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def on_s3(s3_bucket: str) -> RemotePath:
    place = to_path(f"{s3_bucket}/cache")
    assert isinstance(place, RemotePath)
    return place


@pytest.fixture
def behind_proxy(on_s3: RemotePath, s3_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> RemotePath:
    """The same, but asked through a proxy by a client without much patience."""
    patience = {"read_timeout": 1, "connect_timeout": 1, "retries": {"total_max_attempts": 2}}
    point_at(s3_proxy.address, monkeypatch, config_kwargs=patience)
    return on_s3


def in_processes(*works: Callable[[], Any]) -> list[Any]:
    """Run these at once in processes of their own and return what each returned."""
    answers = [FORK.SimpleQueue() for _ in works]
    together = FORK.Barrier(len(works))

    def run(number: int) -> None:
        together.wait(PATIENCE)
        answers[number].put(works[number]())

    processes = [FORK.Process(target=run, args=(number,)) for number in range(len(works))]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
        assert process.exitcode == 0
    return [answer.get() for answer in answers]


def test_of_two_processes_that_commit_one_shard_one_wins_and_both_know_which(on_s3: RemotePath) -> None:
    Cache.create(on_s3).feature(SPECS["eps"])
    pieces = [keys_of(range(start, start + 3)) for start in (0, 10, 20, 30)]

    def commit(shift: int) -> Callable[[], list[str]]:
        def work() -> list[str]:
            store = Cache.open(on_s3).feature(SPECS["eps"])
            return [store.commit(piece, values_of("eps", piece) + np.float16(shift)).data for piece in pieces]

        return work

    first, second = in_processes(commit(0), commit(100))
    assert first == second
    store = Cache.open(on_s3).feature(SPECS["eps"])
    assert data_of(store) == sorted(first), "the loser has removed its data"
    for marker in store.markers():
        values = store.read(marker.shard).astype(np.float32) - values_of("eps", marker.keys).astype(np.float32)
        assert (np.abs(values) < 1).all() or (np.abs(values - 100) < 1).all(), "rows of one writer alone"
    assert verify(Cache.open(on_s3)) == []


def test_two_builders_at_once_both_end_well(on_s3: RemotePath) -> None:
    first, second = in_processes(
        lambda: build(on_s3, train(*range(6)), shard_rows=2)[0],
        lambda: build(on_s3, train(*range(6)), shard_rows=2)[0],
    )
    assert first.id == second.id
    assert rows_lacking(on_s3, first) == 0
    cache = Cache.open(on_s3)
    assert (verify(cache), list_garbage(cache)) == ([], [])
    assert read_leases(on_s3).live == ()


def test_heads_that_race_lose_no_revision_and_one_is_the_newest(on_s3: RemotePath) -> None:
    datasets = Cache.create(on_s3).datasets()

    def write(number: int) -> Callable[[], list[str]]:
        def work() -> list[str]:
            return [datasets.write("d", table_of(train(number, 100 + step))) for step in range(3)]

        return work

    written = in_processes(*(write(number) for number in range(3)))
    everything = {revision for revisions in written for revision in revisions}
    assert set(datasets.revisions("d")) == everything
    assert datasets.head("d") in {revisions[-1] for revisions in written}
    numbers = sorted(int(path.stem[5:]) for path in (on_s3 / "datasets" / "d").glob("HEAD-*.json"))
    assert numbers == list(range(1, 10))


def test_a_writer_killed_before_its_marker_leaves_garbage_and_no_shard(
    behind_proxy: RemotePath, s3_proxy: FaultyProxy
) -> None:
    keys = keys_of(range(3))
    store = Cache.create(behind_proxy).feature(SPECS["eps"])
    s3_proxy.inject("hold", "PUT", MARKER, conditional=True, times=10**6)
    writer = FORK.Process(target=lambda: store.commit(keys, values_of("eps", keys)))
    writer.start()
    while not s3_proxy.injected["hold"]:
        assert writer.is_alive()
        time.sleep(0.01)
    os.kill(writer.pid or 0, signal.SIGKILL)
    writer.join()
    s3_proxy.calm()
    cache = Cache.open(behind_proxy)
    assert store.marker_ids() == []
    assert len(data_of(store)) == 1
    assert verify(cache) == []
    assert list_garbage(cache) == [store.shards / data_of(store)[0]]
    marker = store.commit(keys, values_of("eps", keys))
    # Not by gc as a whole: without a grace period it would remove the shard too, as no build names it.
    assert [delete_garbage(cache.root, litter) for litter in find_garbage(cache)] == [True]
    assert data_of(store) == [marker.data]
    np.testing.assert_array_equal(store.read(marker.shard), values_of("eps", keys))


# A bad network


@pytest.mark.parametrize("kind", ["lost", "slow"])
def test_a_marker_whose_answer_was_lost_is_the_writers_own(
    behind_proxy: RemotePath, s3_proxy: FaultyProxy, kind: Kind
) -> None:
    keys = keys_of(range(3))
    store = Cache.create(behind_proxy).feature(SPECS["eps"])
    s3_proxy.calm()
    s3_proxy.inject(kind, "PUT", MARKER, conditional=True)
    marker = store.commit(keys, values_of("eps", keys))
    assert s3_proxy.injected[kind] == 1
    assert data_of(store) == [marker.data]
    assert store.marker(marker.shard) == marker
    assert verify(Cache.open(behind_proxy)) == []


def test_a_marker_that_cannot_be_put_is_a_user_error_and_no_shard(
    behind_proxy: RemotePath, s3_proxy: FaultyProxy
) -> None:
    keys = keys_of(range(3))
    store = Cache.create(behind_proxy).feature(SPECS["eps"])
    s3_proxy.inject("500", "PUT", MARKER, conditional=True, times=10**6)
    with pytest.raises(UserError, match="cannot be written"):
        store.commit(keys, values_of("eps", keys))
    assert (store.marker_ids(), data_of(store)) == ([], [])
    s3_proxy.calm()
    store.commit(keys, values_of("eps", keys))
    assert verify(Cache.open(behind_proxy)) == []


def test_data_stay_if_it_is_unknown_whether_the_marker_exists(behind_proxy: RemotePath, s3_proxy: FaultyProxy) -> None:
    keys = keys_of(range(3))
    store = Cache.create(behind_proxy).feature(SPECS["eps"])
    s3_proxy.inject("lost", "PUT", MARKER, conditional=True)
    s3_proxy.inject("reset", "PUT", MARKER, conditional=True, skip=1, times=10**6)
    s3_proxy.inject("reset", "HEAD", MARKER, skip=1, times=10**6)
    with pytest.raises(UserError, match="cannot be written"):
        store.commit(keys, values_of("eps", keys))
    s3_proxy.calm()
    (marker,) = store.markers()
    np.testing.assert_array_equal(store.read(marker.shard), values_of("eps", keys))
    assert verify(Cache.open(behind_proxy)) == []


def test_a_forbidden_cache_is_a_user_error_that_names_the_right(
    behind_proxy: RemotePath, s3_proxy: FaultyProxy
) -> None:
    keys = keys_of(range(3))
    store = Cache.create(behind_proxy).feature(SPECS["eps"])
    s3_proxy.inject("403", "PUT", times=10**6)
    with pytest.raises(UserError, match="Get write permission there"):
        store.commit(keys, values_of("eps", keys))


def test_builds_and_compaction_through_a_bad_network_end_as_through_a_good_one(
    behind_proxy: RemotePath, s3_proxy: FaultyProxy, tmp_path: Path
) -> None:
    kinds: tuple[Kind, ...] = ("500", "503", "reset", "lost", "cut")
    s3_proxy.chance = Chance(seed=0, share=0.08, kinds=kinds, in_a_row=1)
    for place in (behind_proxy, tmp_path / "here"):
        build(place, train(*range(4)), shard_rows=2)
        record, _ = build(place, train(*range(2, 6)), shard_rows=2)
        compact(Cache.open(place), 512)
    assert len(s3_proxy.injected) >= 4
    s3_proxy.calm()
    assert checksums(behind_proxy) == checksums(tmp_path / "here")
    assert rows_lacking(behind_proxy, record) == 0
    assert verify(Cache.open(behind_proxy)) == []


@pytest.mark.parametrize(("kind", "patterns"), [("403", READ_BY_VERIFY), ("500", ("*/*.parquet", "builds/*"))])
def test_verify_takes_no_failure_of_the_store_for_damage(
    behind_proxy: RemotePath,
    s3_proxy: FaultyProxy,
    kind: Kind,
    patterns: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("distil_cache.storage.retry.FIRST_PAUSE", 0.001)
    record, _ = build(behind_proxy, train(*range(4)), shard_rows=2)
    cache = Cache.open(behind_proxy)
    compact(cache, 512)
    cache.builds().add_ref("run", record.id, "run")
    cache.datasets().add_audit(NAME, record.revision, no_finding())
    names = [entry.path.relative_to(behind_proxy).as_posix() for entry in behind_proxy.below()]
    for pattern in patterns:
        assert any(fnmatchcase(name, pattern) for name in names), pattern
        s3_proxy.inject(kind, "GET", f"*/cache/{pattern}", times=10**6)
        with pytest.raises(UnreachableError, match="says nothing about the data"):
            verify(Cache.open(behind_proxy))
        s3_proxy.calm()
    assert verify(Cache.open(behind_proxy)) == []


# Stores that cannot hold a cache


def test_a_store_without_conditional_puts_is_refused_before_anything_is_written(
    behind_proxy: RemotePath, s3_proxy: FaultyProxy
) -> None:
    s3_proxy.inject("unconditional", "PUT", times=10**6)
    with pytest.raises(UserError, match="conditional puts"):
        Cache.create(behind_proxy)
    assert behind_proxy.below() == []


def test_a_missing_bucket_is_a_user_error(s3_bucket: str) -> None:
    with pytest.raises(UserError, match="bucket does not exist"):
        Cache.create("s3://no-such-bucket-anywhere/cache")
