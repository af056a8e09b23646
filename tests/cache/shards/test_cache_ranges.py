"""Reading shards from an object store by ranges: few requests, the same rows, and damage is distinguished from failures of the store."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from counting_store import CountingStore, change, operations
from distil_cache.cache.gather import read_rows
from distil_cache.cache.spec import Spec
from distil_cache.cache.store import FORMATS, Cache, FeatureStore
from distil_cache.errors import IntegrityError, UnreachableError
from distil_cache.storage import RemotePath
from distil_cache.storage.ranges import MAX_GAP, merge_ranges, open_ranges

KEYS = tuple(sorted(f"{number * 7919:032x}" for number in range(48)))


class Toy(Spec):
    """A feature with nothing to set."""

    algorithm: Literal[1] = 1
    feature: Literal["toy"] = "toy"


def make(
    tmp_path: Path, target: RemotePath, form: str, shape: tuple[int, ...]
) -> tuple[FeatureStore, FeatureStore, str]:
    """The same shard here and in the store, and its id."""
    here = Cache.create(tmp_path / "cache").feature(Toy(), form)
    rows = np.random.default_rng(3).integers(0, 9, (len(KEYS), *shape)).astype(np.float16)
    shard = here.commit(KEYS, rows).shard
    target.upload(tmp_path / "cache")
    there = Cache.open(target).open_feature(here.folder.name)
    operations()
    return here, there, shard


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 128, 128)])
@pytest.mark.parametrize(("form", "opening"), [("zarr", ["list", "read", "read"]), ("webdataset", ["list"])])
def test_a_block_of_rows_is_one_request_and_opening_its_shard_few(
    tmp_path: Path, counted: RemotePath, form: str, opening: list[str], shape: tuple[int, ...]
) -> None:
    here, there, shard = make(tmp_path, counted, form, shape)
    marker = there.marker(shard)
    operations()
    reader = there.open_shard(marker)
    assert operations() == opening
    for start, stop in ((0, len(KEYS)), (5, 41), (17, 18)):
        np.testing.assert_array_equal(reader.read(start, stop, None), here.read(shard, start, stop))
        assert operations() == ["read"]


@pytest.mark.parametrize("form", FORMATS)
def test_one_view_of_a_block_of_rows_is_one_request_that_brings_at_most_three_times_its_bytes(
    tmp_path: Path, counted: RemotePath, form: str
) -> None:
    here, there, shard = make(tmp_path, counted, form, (2, 64, 32, 32))
    there.read(shard, 0, 1)
    operations()
    for view in (0, 1):
        wanted = here.read(shard, 3, 40, view)
        np.testing.assert_array_equal(there.read(shard, 3, 40, view), wanted)
        (request,) = CountingStore.asked
        assert request[0] == "read"
        assert (request[3] or 0) - (request[2] or 0) <= 3 * wanted.nbytes
        CountingStore.asked.clear()


def test_rows_in_any_order_come_from_a_store_as_from_a_disk(tmp_path: Path, counted: RemotePath) -> None:
    here, there, shard = make(tmp_path, counted, "zarr", (3, 16, 16))
    rows = np.random.default_rng(0).permutation(len(KEYS))[:30]
    shards = np.zeros_like(rows)
    found = [read_rows(store, [shard], shards, rows, max_gap=1000) for store in (here, there)]
    np.testing.assert_array_equal(*found)
    assert operations().count("read") <= 1 + 1 + 2 + 1  # specs, marker, opening, rows


@pytest.mark.parametrize("form", FORMATS)
def test_large_reads_go_in_windows_of_bounded_size(
    tmp_path: Path, counted: RemotePath, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    most = 600_000
    for module in ("cache.shards.tar", "cache.shards.zarr"):
        monkeypatch.setattr(f"distil_cache.{module}.WINDOW_BYTES", most)
    here, there, shard = make(tmp_path, counted, form, (3, 128, 128))
    np.testing.assert_array_equal(there.read(shard), here.read(shard))
    sizes = [(stop or 0) - (start or 0) for operation, _, start, stop in CountingStore.asked if operation == "read"]
    assert sum(size > 1000 for size in sizes) > 1
    assert max(sizes) <= 3 * most


def test_ranges_with_small_gaps_are_merged_up_to_a_bounded_excess() -> None:
    assert merge_ranges([(10, 5), (0, 10)]) == [(0, 15)]
    assert merge_ranges([(0, 100), (150, 100)]) == [(0, 250)]
    assert merge_ranges([(0, 100), (600, 100)]) == [(0, 100), (600, 700)]
    apart = MAX_GAP + 1
    assert merge_ranges([(0, apart), (2 * apart, apart)]) == [(0, apart), (2 * apart, 3 * apart)]
    many = [(place * 40, 16) for place in range(1000)]
    assert merge_ranges(many) == [(0, 999 * 40 + 16)]
    assert merge_ranges([]) == []


@pytest.mark.parametrize("form", FORMATS)
def test_data_that_are_missing_short_or_others_are_damage(
    tmp_path: Path, counted: RemotePath, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, there, shard = make(tmp_path, counted, form, (3, 8, 8))
    marker = there.marker(shard)
    data = max((entry for entry in (there.shards / marker.data).below()), key=lambda entry: entry.size).path
    whole = data.read_bytes()
    reader = there.open_shard(marker)
    change(data, lambda found: found[: len(found) // 2])
    with pytest.raises(IntegrityError, match=f"shard {shard}: .* bytes, its marker says"):
        there.open_shard(marker)
    monkeypatch.setattr("distil_cache.storage.retry.FIRST_PAUSE", 0.001)
    with pytest.raises(IntegrityError, match="bytes now and had"):
        reader.read(40, 48, None)
    change(data, lambda _: whole[::-1])
    with pytest.raises(IntegrityError):
        there.open_shard(marker).read(0, 48, None)
    data.unlink()
    with pytest.raises(IntegrityError):
        there.open_shard(marker)
    with pytest.raises(IntegrityError, match="No such file"):
        reader.read(0, 1, None)


@pytest.mark.parametrize("form", FORMATS)
def test_a_store_that_fails_is_no_damage(
    tmp_path: Path, counted: RemotePath, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr("distil_cache.storage.retry.FIRST_PAUSE", 0.001)
    _, there, shard = make(tmp_path, counted, form, (3, 8, 8))
    reader = there.open_shard(there.marker(shard))

    def fail(path: str, data: bytes) -> bytes:
        raise ConnectionResetError("gone")

    CountingStore.answer = staticmethod(fail)
    with pytest.raises(UnreachableError, match="The store or the network failed"):
        reader.read(0, 4, None)


def test_no_read_goes_beyond_the_end_of_an_object(counted: RemotePath) -> None:
    (counted / "a").write(b"0123456789")
    file = open_ranges(counted / "a")
    assert file.read(7, 3) == b"789"
    operations()
    with pytest.raises(IntegrityError, match="has 2 of 3 bytes at offset 8"):
        file.read(8, 3)
    window = file.window([(2, 3), (6, 2)])
    assert (window.read(3, 2), window.read(6, 1)) == (b"34", b"6")
    with pytest.raises(ValueError, match="not asked for"):
        window.read(7, 2)
    assert operations() == ["read"]
