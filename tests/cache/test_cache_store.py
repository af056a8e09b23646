"""The cache folder and its shards: what is committed is what is read."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import zarr
from distil_cache.cache.maintenance.verify import list_garbage, verify
from distil_cache.cache.spec import Spec
from distil_cache.cache.store import Cache, FeatureStore
from distil_cache.errors import IntegrityError, UserError
from drawn_rows import any_rows
from hypothesis import given, settings
from hypothesis import strategies as st


class Toy(Spec):
    feature: Literal["toy"] = "toy"
    algorithm: Literal[1] = 1
    size: int = 4


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()[:32]


def keys(count: int, start: int = 0) -> list[str]:
    return sorted(key(number) for number in range(start, start + count))


def images(count: int, size: int = 4) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(count).integers(0, 256, (count, 3, size, size), dtype=np.uint8)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return Cache.create(tmp_path / "cache").feature(Toy())


def test_importing_the_cache_imports_no_torch() -> None:
    program = "import sys, distil_cache.cache.maintenance.verify, distil_cache.cache.maintenance.listing; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_creating_a_cache_twice_opens_it(tmp_path: Path) -> None:
    Cache.create(tmp_path / "a" / "b")
    assert Cache.create(tmp_path / "a" / "b").root == tmp_path / "a" / "b"


def test_a_folder_with_other_things_does_not_become_a_cache(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match="neither empty nor a cache"):
        Cache.create(tmp_path)


def test_a_folder_without_cache_json_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a cache"):
        Cache.open(tmp_path)


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache.json").write_text('{"format": 2}')
    with pytest.raises(UserError, match="newer distil-cache"):
        Cache.open(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "1"}', "[" * 100_000])
def test_a_damaged_cache_json_is_one_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "cache.json").write_text(text)
    with pytest.raises(IntegrityError, match="damaged"):
        Cache.open(tmp_path)


def test_features_are_found_by_folder_and_by_fingerprint(store: FeatureStore) -> None:
    cache = Cache.open(store.folder.parent.parent)
    assert [found.folder for found in cache.features()] == [store.folder]
    for name in (Toy().folder, Toy().fingerprint(), Toy().fingerprint()[:10]):
        assert cache.open_feature(name).fingerprint == Toy().fingerprint()
    with pytest.raises(UserError, match="no feature called eps"):
        cache.open_feature("eps")


def test_spec_json_is_the_spec_and_a_changed_one_is_refused(store: FeatureStore) -> None:
    path = store.folder / "spec.json"
    assert json.loads(path.read_text()) == Toy().canonical() == store.spec
    path.unlink()
    path.write_text(json.dumps(Toy(size=5).canonical()))
    with pytest.raises(IntegrityError, match="does not belong to this folder"):
        FeatureStore(store.folder)


def test_committed_rows_come_back_in_whole_and_in_part(store: FeatureStore) -> None:
    rows = images(20)
    marker = store.commit(keys(20), rows)
    assert (marker.rows, marker.dtype, marker.shape) == (20, "uint8", (3, 4, 4))
    np.testing.assert_array_equal(store.read(marker.shard), rows)
    np.testing.assert_array_equal(store.read(marker.shard, 3, 11), rows[3:11])
    assert store.read(marker.shard, 7, 7).shape == (0, 3, 4, 4)


def test_zarr_itself_reads_a_shard(store: FeatureStore) -> None:
    rows = images(5)
    marker = store.commit(keys(5), rows)
    np.testing.assert_array_equal(zarr.open_array(str(store.shards / marker.data), mode="r")[...], rows)


def test_one_view_of_rows_with_views_is_read_alone(store: FeatureStore) -> None:
    rows = np.random.default_rng(0).normal(size=(6, 2, 5, 3, 3)).astype(np.float16)
    marker = store.commit(keys(6), rows)
    metadata = json.loads((store.shards / marker.data / "zarr.json").read_text())
    assert metadata["codecs"][0]["configuration"]["chunk_shape"] == [6, 1, 5, 3, 3]
    np.testing.assert_array_equal(store.read(marker.shard, 1, 4, view=1), rows[1:4, 1])
    with pytest.raises(IndexError, match="view 2"):
        store.read(marker.shard, view=2)


def test_rows_outside_the_shard_are_an_index_error(store: FeatureStore) -> None:
    marker = store.commit(keys(4), images(4))
    for start, stop in ((0, 5), (-1, 2), (3, 2)):
        with pytest.raises(IndexError):
            store.read(marker.shard, start, stop)


def test_a_shard_whose_rows_are_all_zero_is_stored_in_full(store: FeatureStore) -> None:
    marker = store.commit(keys(9), np.zeros((9, 3, 4, 4), np.uint8))
    assert (store.read(marker.shard) == 0).all()
    assert any(path.is_file() for path in (store.shards / marker.data / "c").rglob("*"))


def test_a_shard_in_which_every_image_was_rejected_exists_and_has_no_rows(store: FeatureStore, tmp_path: Path) -> None:
    planned = keys(3)
    marker = store.commit(planned, np.empty((0, 3, 4, 4), np.uint8), keys=[], rejected=dict.fromkeys(planned, "empty"))
    assert marker.shard == store.shard_id(planned)
    assert store.read(marker.shard).shape == (0, 3, 4, 4)
    index = store.index()
    assert len(index) == 0
    assert index.rejected == dict.fromkeys(planned, "empty")
    assert index.locate(planned)[0].tolist() == [-1, -1, -1]
    assert verify(Cache.open(tmp_path / "cache")) == []


def test_rejected_keys_are_no_rows_but_name_the_shard(store: FeatureStore, tmp_path: Path) -> None:
    planned = keys(5)
    stored = [planned[0], *planned[2:]]
    marker = store.commit(planned, images(4), keys=stored, rejected={planned[1]: "truncated"})
    assert marker.shard == store.shard_id(planned) != store.shard_id(stored)
    assert store.index().locate(planned)[1].tolist() == [0, -1, 1, 2, 3]
    assert verify(Cache.open(tmp_path / "cache")) == []


def test_the_same_shard_committed_again_keeps_the_first(store: FeatureStore) -> None:
    first = store.commit(keys(4), images(4))
    assert store.commit(keys(4), np.zeros((4, 3, 4, 4), np.uint8)) == first
    np.testing.assert_array_equal(store.read(first.shard), images(4))
    assert len(list(store.shards.iterdir())) == 2


def test_the_shard_id_is_pinned_and_depends_on_the_order(store: FeatureStore) -> None:
    assert store.shard_id(keys(3)) == "a0d0e88172a62165cbdd2bbd5db91c9b"
    assert store.shard_id(keys(3)[::-1]) != store.shard_id(keys(3))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_with_nan_or_inf_are_not_committed(store: FeatureStore, value: float) -> None:
    rows = np.ones((3, 2), np.float16)
    rows[1, 1] = value
    with pytest.raises(UserError, match=f"1 of 3 rows.*{keys(3)[1]}"):
        store.commit(keys(3), rows)
    assert list(store.shards.iterdir()) == []


def test_rows_that_do_not_fit_the_keys_are_a_value_error(store: FeatureStore) -> None:
    three = keys(3)
    with pytest.raises(ValueError, match="do not fit"):
        store.commit(three, images(2))
    with pytest.raises(ValueError, match="do not fit"):
        store.commit(three, images(3).astype(np.int64))
    with pytest.raises(ValueError, match="not a sample key"):
        store.commit(["../../x"], images(1))
    with pytest.raises(ValueError, match="either stored"):
        store.commit(three, images(2), keys=three[:2])
    with pytest.raises(ValueError, match="either stored"):
        store.commit(three, images(3), keys=three[::-1])


def test_a_shard_whose_marker_could_not_be_read_again_is_not_written(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distil_cache.cache.store.MAX_MARKER_BYTES", 500)
    with pytest.raises(UserError, match=r"would have .* Lower --shard-size"):
        store.commit(keys(9), images(9))
    assert list(store.shards.iterdir()) == []


def test_a_failed_write_leaves_nothing_and_says_so(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zarr.Array, "__setitem__", full)
    with pytest.raises(UserError, match="No space left on device"):
        store.commit(keys(3), images(3))
    assert list(store.shards.iterdir()) == []


def test_the_index_finds_keys_over_shards_and_takes_up_new_ones_on_refresh(tmp_path: Path) -> None:
    store = Cache.create(tmp_path).feature(Toy())
    first = store.commit(keys(5), images(5))
    assert len(store.index()) == 5
    other = FeatureStore(store.folder)
    second = other.commit(keys(4, start=100), images(4))
    assert len(store.index()) == 5
    index = store.index(refresh=True)
    assert len(index) == 9
    assert index.shards == sorted([first.shard, second.shard])
    wanted = [keys(4, start=100)[2], key(999), keys(5)[1]]
    shard_no, row = index.locate(wanted)
    assert (str(shard_no.dtype), str(row.dtype)) == ("int32", "int32")
    assert [index.shards[n] if n >= 0 else None for n in shard_no] == [second.shard, None, first.shard]
    assert row.tolist() == [2, -1, 1]
    assert wanted[0] in index
    assert wanted[1] not in index
    assert "short" not in index
    np.testing.assert_array_equal(index.locate(np.array(wanted, "S32"))[1], row)


def test_a_key_in_two_shards_is_found_in_the_one_with_the_smaller_id(tmp_path: Path) -> None:
    store = Cache.create(tmp_path).feature(Toy())
    one = store.commit(keys(5), images(5))
    two = store.commit(keys(6), images(6))
    winner = min(one, two, key=lambda marker: marker.shard)
    for index in (store.index(), FeatureStore(store.folder).index()):
        assert len(index) == 6
        shard_no, row = index.locate(keys(5))
        places = [winner.keys.index(wanted) for wanted in keys(5)]
        assert [index.shards[n] for n in shard_no] == [winner.shard] * 5
        assert row.tolist() == places


def test_a_key_that_is_stored_somewhere_does_not_count_as_rejected(tmp_path: Path) -> None:
    store = Cache.create(tmp_path).feature(Toy())
    store.commit(keys(2), images(1), keys=keys(2)[1:], rejected={keys(2)[0]: "unreadable"})
    assert keys(2)[0] in store.index().rejected
    store.commit(keys(2)[:1], images(1))
    assert store.index(refresh=True).rejected == {}


def test_log_lines_are_appended_as_json(store: FeatureStore) -> None:
    store.log({"seconds": 1.5})
    store.log({"host": "a"})
    lines = (store.folder / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"seconds": 1.5}, {"host": "a"}]


@settings(max_examples=15)
@given(rows=any_rows, data=st.data())
def test_any_rows_come_back_to_the_bit_and_twice_committed_are_the_same_bytes(
    rows: np.ndarray[Any, Any], data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(rows)))
    stop = data.draw(st.integers(start, len(rows)))
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache.create(Path(folder) / "a")
        store = cache.feature(Toy())
        marker = store.commit(keys(len(rows)), rows)
        back = store.read(marker.shard, start, stop)
        assert back.dtype == rows.dtype
        assert back.tobytes() == rows[start:stop].tobytes()
        assert verify(cache) == []
        assert list_garbage(cache) == []
        again = Cache.create(Path(folder) / "b").feature(Toy()).commit(keys(len(rows)), rows)
        assert (again.sha256, again.bytes) == (marker.sha256, marker.bytes)
