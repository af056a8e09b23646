"""What every shard format must do, and that readers see no difference between them."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from distil_cache.cache.gather import gather
from distil_cache.cache.maintenance.verify import list_garbage, verify
from distil_cache.cache.shards import format as format_module
from distil_cache.cache.shards import registry
from distil_cache.cache.shards.format import checksum
from distil_cache.cache.shards.marker import Marker
from distil_cache.cache.spec import Spec
from distil_cache.cache.store import FORMATS, Cache, FeatureStore
from distil_cache.errors import IntegrityError, UserError
from distil_cache.storage import trees
from maintained_cache import keys_of
from patience import PATIENCE

Array = np.ndarray[Any, Any]


class Toy(Spec):
    feature: Literal["toy"] = "toy"
    algorithm: Literal[1] = 1


def keys(count: int, start: int = 0) -> list[str]:
    return sorted(keys_of(range(start, start + count)))


def some_rows(count: int, dtype: str = "float16", shape: tuple[int, ...] = (2, 3, 16, 16)) -> Array:
    return (np.random.default_rng(count).normal(size=(count, *shape)) * 20 + 100).astype(dtype)


def files_of(store: FeatureStore, marker: Marker) -> list[Path]:
    data = store.shards / marker.data
    return [data] if data.is_file() else sorted(path for path in data.rglob("*") if path.is_file())


def largest(store: FeatureStore, marker: Marker) -> Path:
    return max(files_of(store, marker), key=lambda path: path.stat().st_size)


def again(store: FeatureStore) -> FeatureStore:
    """The same feature, nothing opened yet."""
    return FeatureStore(store.folder, store.form)


@pytest.fixture(params=sorted(FORMATS))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FeatureStore:
    return Cache.create(tmp_path / "cache").feature(Toy(), request.param)


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
@pytest.mark.parametrize("shape", [(5,), (3, 4, 4), (2, 5, 3, 3), (300, 1000)])
def test_rows_come_back_in_whole_in_part_and_one_by_one(
    store: FeatureStore, dtype: str, shape: tuple[int, ...]
) -> None:
    rows = some_rows(9, dtype, shape)
    marker = store.commit(keys(9), rows)
    assert (marker.format, marker.keys, marker.dtype, marker.shape) == (store.form, tuple(keys(9)), dtype, shape)
    for start, stop in ((0, 9), (2, 7), (8, 9), (4, 4), (9, 9)):
        found = again(store).read(marker.shard, start, stop)
        assert (found.dtype, found.flags.writeable) == (rows.dtype, True)
        np.testing.assert_array_equal(found, rows[start:stop])


def test_one_view_is_read_alone_and_costs_only_its_own_bytes(store: FeatureStore) -> None:
    rows = np.random.default_rng(0).normal(size=(6, 2, 5, 120, 120)).astype(np.float32)  # nothing to compress
    marker = store.commit(keys(6), rows)
    store.read(marker.shard, 0, 1)
    before = bytes_read()
    for view in (0, 1):
        np.testing.assert_array_equal(store.read(marker.shard, 1, 5, view), rows[1:5, view])
    assert bytes_read() - before < 1.1 * rows[1:5].nbytes
    for view in (2, -1):
        with pytest.raises(IndexError, match=f"view {view}"):
            store.read(marker.shard, view=view)


def test_a_view_may_be_of_any_shape(store: FeatureStore) -> None:
    rows = some_rows(5, "float16", (4, 7))
    marker = store.commit(keys(5), rows)
    np.testing.assert_array_equal(store.read(marker.shard, 0, 5, view=3), rows[:, 3])
    flat = store.commit(keys(3, start=50), some_rows(3, "uint8", (4,)))
    with pytest.raises(IndexError, match="view 0"):
        store.read(flat.shard, view=0)


def test_rows_outside_the_shard_are_an_index_error(store: FeatureStore) -> None:
    marker = store.commit(keys(4), some_rows(4))
    for start, stop in ((0, 5), (-1, 2), (3, 2)):
        with pytest.raises(IndexError):
            store.read(marker.shard, start, stop)


def test_a_shard_without_rows_exists(store: FeatureStore, tmp_path: Path) -> None:
    planned = keys(3)
    empty = np.empty((0, 3, 4, 4), np.uint8)
    marker = store.commit(planned, empty, keys=[], rejected=dict.fromkeys(planned, "unreadable"))
    assert store.read(marker.shard).shape == (0, 3, 4, 4)
    assert verify(Cache.open(tmp_path / "cache")) == []


def test_the_same_rows_are_the_same_bytes_under_the_same_shard_id(store: FeatureStore, tmp_path: Path) -> None:
    other = Cache.create(tmp_path / "other").feature(Toy(), store.form)
    one, two = (feature.commit(keys(20), some_rows(20)) for feature in (store, other))
    assert (one.shard, one.sha256, one.bytes, one.codec) == (two.shard, two.sha256, two.bytes, two.codec)
    assert other.commit(keys(20), some_rows(20)) == two
    assert list_garbage(Cache.open(tmp_path / "other")) == []


def test_the_format_changes_neither_fingerprint_nor_shard_id(tmp_path: Path) -> None:
    stores = [Cache.create(tmp_path / form).feature(Toy(), form) for form in FORMATS]
    markers = [feature.commit(keys(5), some_rows(5)) for feature in stores]
    assert len({feature.fingerprint for feature in stores}) == len({marker.shard for marker in markers}) == 1
    np.testing.assert_array_equal(*(one.read(marker.shard) for one, marker in zip(stores, markers, strict=True)))


def test_a_feature_may_hold_shards_of_both_formats(tmp_path: Path) -> None:
    cache = Cache.create(tmp_path)
    rows = some_rows(20)
    one = cache.feature(Toy(), "zarr").commit(keys(20)[:12], rows[:12])
    two = cache.feature(Toy(), "webdataset").commit(keys(20)[12:], rows[12:])
    assert {one.format, two.format} == set(FORMATS)
    order = np.random.default_rng(0).permutation(20)
    np.testing.assert_array_equal(gather(cache.feature(Toy()), [keys(20)[n] for n in order]), rows[order])
    assert cache.feature(Toy(), "webdataset").commit(keys(20)[:12], rows[:12]) == one
    assert (verify(cache), list_garbage(cache)) == ([], [])


def test_a_marker_comes_back_from_its_json_which_names_offsets_only_where_there_are_any(store: FeatureStore) -> None:
    marker = store.commit(keys(4), some_rows(4))
    fields = json.loads((store.shards / f"{marker.shard}.json").read_bytes())
    assert Marker.model_validate_json(json.dumps(fields)) == marker
    assert ("offsets" in fields, "merged" in fields) == (store.form == "webdataset", False)
    merged = store.commit(keys(4)[::-1], some_rows(4), merged=[marker.shard])
    assert again(store).marker(merged.shard).merged == (marker.shard,)


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.999])
def test_a_flipped_bit_is_found_by_verify_wherever_it_is(store: FeatureStore, tmp_path: Path, part: float) -> None:
    marker = store.commit(keys(8), some_rows(8))
    for path in files_of(store, marker):
        whole = path.read_bytes()
        place = int(part * len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        (problem,) = verify(Cache.open(tmp_path / "cache"))
        assert problem.shard == marker.shard
        path.write_bytes(whole)
    assert verify(Cache.open(tmp_path / "cache")) == []


@pytest.mark.parametrize("left", [0, 700, -1])
def test_a_truncated_shard_is_refused(store: FeatureStore, tmp_path: Path, left: int) -> None:
    marker = store.commit(keys(8), some_rows(8))
    path = largest(store, marker)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(IntegrityError, match=f"toy, shard {marker.shard}.*its marker says.*cache verify"):
        again(store).read(marker.shard)
    assert [problem.shard for problem in verify(Cache.open(tmp_path / "cache"))] == [marker.shard]


def test_a_shard_truncated_while_a_reader_has_it_open_is_refused(store: FeatureStore) -> None:
    marker = store.commit(keys(8), some_rows(8))
    store.read(marker.shard, 0, 1)
    os.truncate(largest(store, marker), 2000)
    with pytest.raises(IntegrityError, match="cannot be used"):
        store.read(marker.shard)


def test_missing_data_is_refused(store: FeatureStore) -> None:
    marker = store.commit(keys(8), some_rows(8))
    data = store.shards / marker.data
    shutil.rmtree(data) if data.is_dir() else data.unlink()
    with pytest.raises(IntegrityError, match="data is missing"):
        again(store).read(marker.shard)


def test_data_that_are_deleted_while_their_checksum_is_taken_are_missing_data(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = store.commit(keys(8), some_rows(8))
    data = store.shards / marker.data
    listed = format_module.data_files(data)
    shutil.rmtree(data) if data.is_dir() else data.unlink()  # as a gc does after another process has listed them
    monkeypatch.setattr(format_module, "data_files", lambda path: listed)
    with pytest.raises(IntegrityError, match="data is missing"):
        checksum(data)


def test_data_of_the_other_kind_under_a_shards_name_is_refused(store: FeatureStore) -> None:
    marker = store.commit(keys(8), some_rows(8))
    data = store.shards / marker.data
    shutil.rmtree(data) if data.is_dir() else data.unlink()
    if store.form == "zarr":
        data.write_bytes(bytes(marker.bytes))
    else:
        data.mkdir()
        (data / "x").write_bytes(bytes(marker.bytes))
    with pytest.raises(IntegrityError):
        again(store).read(marker.shard)


def test_data_of_another_shard_under_a_shards_name_is_found(store: FeatureStore, tmp_path: Path) -> None:
    marker = store.commit(keys(8), some_rows(8))
    other = store.commit(keys(8, start=100), some_rows(8)[::-1])
    data, foreign = (store.shards / one.data for one in (marker, other))
    shutil.rmtree(data) if data.is_dir() else data.unlink()
    shutil.copytree(foreign, data) if foreign.is_dir() else shutil.copy(foreign, data)
    assert [problem.shard for problem in verify(Cache.open(tmp_path / "cache"))] == [marker.shard]


def test_swapped_rows_are_found(store: FeatureStore, tmp_path: Path) -> None:
    rows = some_rows(8, "float32", (300, 300))  # more than one row does not fit into a chunk
    marker = store.commit(keys(8), rows)
    swapped = Cache.create(tmp_path / "swapped").feature(Toy(), store.form)
    order = [1, 0, *range(2, 8)]
    other = swapped.commit([keys(8)[n] for n in order], rows[order])
    data, foreign = (one.shards / m.data for one, m in ((store, marker), (swapped, other)))
    shutil.rmtree(data) if data.is_dir() else data.unlink()
    shutil.move(foreign, data)
    assert [problem.shard for problem in verify(Cache.open(tmp_path / "cache"))] == [marker.shard]
    if store.form == "webdataset":  # members have names
        with pytest.raises(IntegrityError, match=f"row 0 is not the member {keys(8)[0]}.toy.npy"):
            again(store).read(marker.shard)


def test_a_failed_write_leaves_nothing(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trees, "fsync_tree", full)
    with pytest.raises(UserError, match="No space left on device"):
        store.commit(keys(3), some_rows(3))
    assert list(store.shards.iterdir()) == []


@pytest.mark.parametrize("rows", [np.zeros((1, 2**28 + 1), np.uint8), np.zeros((1, 2**26 + 1), np.float32)])
def test_a_row_larger_than_any_reader_takes_is_not_written(store: FeatureStore, rows: Array) -> None:
    with pytest.raises(UserError, match=r"row of 268,435,4.. bytes is too large"):
        store.commit(keys(1), rows)


def test_open_shards_are_bounded_and_all_rows_are_read(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "MAX_OPEN", 5)
    shards = [store.commit(keys(2, start=10 * n), some_rows(2) + n).shard for n in range(20)]
    before = open_files()
    for number in (*range(20), *range(20)):
        np.testing.assert_array_equal(store.read(shards[number]), some_rows(2) + number)
    assert open_files() <= before + 5


def test_threads_that_close_each_others_shards_read_the_right_rows(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "MAX_OPEN", 1)
    shards = [store.commit(keys(2, start=10 * n), some_rows(2) + n).shard for n in range(6)]
    wrong: list[int] = []

    def read(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(0, len(shards), 60).tolist():
            if not np.array_equal(store.read(shards[number]), some_rows(2) + number):
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_readers_opened_before_a_fork_work_in_parent_and_child(store: FeatureStore) -> None:
    marker = store.commit(keys(30), some_rows(30))
    program = """
import os, sys
from pathlib import Path
from distil_cache.cache.store import FeatureStore
store = FeatureStore(Path(sys.argv[1]))
expected = store.read(sys.argv[2]).tobytes()
children = [os.fork() for _ in range(2)]
for _ in range(20):
    assert store.read(sys.argv[2]).tobytes() == expected
    assert store.read(sys.argv[2], view=1).tobytes() != expected
if all(children):
    sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""
    command = [sys.executable, "-c", program, str(store.folder), marker.shard]
    subprocess.run(command, check=True, timeout=PATIENCE)


def test_the_bytes_of_a_tar_are_pinned(tmp_path: Path) -> None:
    rows = np.arange(2 * 3 * 5, dtype=np.float16).reshape(2, 3, 5)
    marker = Cache.create(tmp_path).feature(Toy(), "webdataset").commit(keys(2), rows)
    assert marker.offsets == (640, 1664)
    assert marker.sha256 == "05846c79120512a99d06ae4020a02507b794a9a6908655cb69ffc5e845a200c9"


def test_tar_and_numpy_read_a_tar_shard(tmp_path: Path) -> None:
    store = Cache.create(tmp_path).feature(Toy(), "webdataset")
    rows = some_rows(5)
    marker = store.commit(keys(5), rows)
    with tarfile.open(store.shards / marker.data, "r:") as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == [f"{key}.toy.npy" for key in marker.keys]
        assert [member.offset_data + 128 for member in members] == list(marker.offsets)
        assert {(member.mtime, member.uid, member.gid, member.uname, member.mode) for member in members} == {
            (0, 0, 0, "", 0o644)
        }
        for member, row in zip(members, rows, strict=True):
            file = tar.extractfile(member)
            assert file is not None
            np.testing.assert_array_equal(np.load(io.BytesIO(file.read()), allow_pickle=False), row)


def test_the_webdataset_library_streams_a_tar_shard(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    store = Cache.create(tmp_path).feature(Toy(), "webdataset")
    rows = some_rows(5)
    marker = store.commit(keys(5), rows)
    samples = list(wds.WebDataset(str(store.shards / marker.data), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == list(marker.keys)
    np.testing.assert_array_equal(np.stack([sample["toy.npy"] for sample in samples]), rows)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def bytes_read() -> int:
    text = Path("/proc/self/io").read_text()
    return int(text.split("rchar: ")[1].split()[0])
