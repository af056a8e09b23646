"""What Python sees of a cache: tables, features by key, and lazy arrays."""

from __future__ import annotations

import pickle
from pathlib import Path

import dask
import dask.array as da
import distil_cache as dc
import numpy as np
import pytest
import zarr
from distil_cache.errors import ChoiceError
from plain_cache import SHARD_ROWS, make_cache, rows

TABLE = [*rows("train", 30, {"adm": 30}), *rows("test", 5, {"adm": 5, "ldm": 5})]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("views") / "cache"
    make_cache(root, TABLE)
    return root


@pytest.fixture(scope="module")
def data(root: Path) -> dc.DatasetView:
    return dc.open(root).dataset("pictures")


def test_a_dataset_is_a_table_in_the_order_of_its_keys(root: Path, data: dc.DatasetView) -> None:
    assert dc.open(root).datasets == ("pictures",)
    assert data.keys == sorted(row["key"] for row in TABLE)
    assert data.splits == ("test", "train")
    assert set(data.features) == {"image", "eps", "dire", "teacher"}
    assert data.to_arrow().num_rows == len(data) == len(TABLE)
    assert len(data.split("test")) == 15
    assert set(data.split("test").select("generator=ldm").table["generator"].to_pylist()) == {"", "ldm"}


def test_the_table_becomes_a_data_frame(data: dc.DatasetView) -> None:
    pytest.importorskip("pandas")
    frame = data.to_pandas()
    assert list(frame["key"]) == data.keys


def test_rows_come_in_the_order_of_the_keys_that_are_asked_for(root: Path, data: dc.DatasetView) -> None:
    eps = data.feature("eps")
    keys = [data.keys[7], data.keys[0], data.keys[7]]
    store = dc.open(root).store.open_feature(eps.fingerprint)
    found = eps.numpy(keys)
    assert found.shape == (3, *eps.shape)
    assert found.dtype == eps.dtype
    from distil_cache.cache.gather import gather

    assert np.array_equal(found, gather(store, keys))
    assert np.array_equal(eps.numpy()[[7, 0, 7]], found)
    assert eps.numpy([]).shape == (0, *eps.shape)


def test_a_feature_of_some_splits_has_their_rows_alone(data: dc.DatasetView) -> None:
    teacher = data.feature("teacher")
    assert len(teacher) == 60
    assert set(teacher.dataset.splits) == {"train"}
    assert len(data.split("train").feature("teacher")) == 60
    with pytest.raises(dc.UserError, match=r"needs feature `teacher`.*split test.*distil-cache build"):
        data.split("test").feature("teacher")


def test_an_unknown_key_name_or_fingerprint_is_one_sentence(data: dc.DatasetView) -> None:
    with pytest.raises(dc.UserError, match=r"has no row for 1 of 2 keys"):
        data.feature("eps").numpy([data.keys[0], "0" * 32])
    with pytest.raises(dc.UserError, match=r"keys of this dataset are in"):
        data.feature("eps").numpy(["holiday.jpg"])
    with pytest.raises(dc.UserError, match=r"needs feature `nothing`"):
        data.feature("nothing")
    with pytest.raises(dc.UserError, match=r"has no eps with the fingerprint 0000000000"):
        data.feature("eps", fingerprint="0000000000")
    with pytest.raises(dc.UserError, match=r"name the features"):
        data.to_torch()


def test_of_several_builds_a_feature_is_named_by_its_fingerprint(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache", TABLE)
    _, other = make_cache(tmp_path / "cache", TABLE, steps="ddim10")
    data = dc.open(tmp_path / "cache").dataset("pictures")
    assert len(data.features["dire"]) == 2
    assert len(data.features["eps"]) == 1
    with pytest.raises(ChoiceError, match=r"several features dire. Name one:") as caught:
        data.feature("dire")
    wanted = other.features["dire"].fingerprint
    assert f'fingerprint="{wanted[:16]}"' in str(caught.value)
    assert data.feature("dire", fingerprint=wanted[:16]).fingerprint == wanted
    named = dc.open(tmp_path / "cache").dataset("pictures", build=other.id)
    assert named.feature("dire").fingerprint == wanted
    with pytest.raises(ChoiceError, match=f"several builds have eps, dire(?s:.*)build={other.id}"):
        data.to_webdataset("eps", "dire")


def test_a_dask_array_reads_a_block_when_it_is_computed(data: dc.DatasetView) -> None:
    eps = data.feature("eps")
    lazy = eps.to_dask(chunk=32)
    assert lazy.chunks[0] == (32, 32, 11)
    assert np.array_equal(lazy.compute(scheduler="synchronous"), eps.numpy())
    assert np.array_equal(lazy[40:45].compute(scheduler="threads"), eps.numpy()[40:45])
    assert dask.base.tokenize(lazy) == dask.base.tokenize(eps.to_dask(chunk=32))


def test_a_block_of_rows_names_only_the_shards_that_it_reads(data: dc.DatasetView) -> None:
    part = data.feature("eps").rows.part(slice(0, 4))
    assert len(part.shards) <= 2
    assert np.array_equal(pickle.loads(pickle.dumps(part)).read(), data.feature("eps").numpy()[:4])


def test_xarray_has_features_of_the_same_rows_side_by_side(data: dc.DatasetView) -> None:
    pytest.importorskip("xarray")
    found = data.split("train").to_xarray("image", "eps", "teacher")
    assert found["eps"].dims == found["image"].dims == ("sample", "channel", "y", "x")
    assert found["teacher"].dims == ("sample", "view", "teacher_channel", "teacher_y", "teacher_x")
    fakes = found.sel(sample=found["label"] == 1)
    assert fakes.sizes["sample"] == 30
    eps = data.split("train").feature("eps")
    assert np.array_equal(found["eps"].values, eps.numpy())
    array = eps.to_xarray()
    assert array.name == "eps"
    assert array.attrs["fingerprint"] == eps.fingerprint
    assert list(array["key"].values) == eps.keys


def test_zarr_and_dask_read_a_shard_as_it_lies_in_the_cache(root: Path, data: dc.DatasetView) -> None:
    eps = data.feature("eps")
    marker = eps.store.markers()[0]
    path = str(eps.store.shards / marker.data)
    assert len(marker.keys) <= SHARD_ROWS
    assert np.array_equal(zarr.open_array(path, mode="r")[...], eps.numpy(marker.keys))
    assert np.array_equal(da.from_zarr(path).compute(), eps.numpy(marker.keys))
