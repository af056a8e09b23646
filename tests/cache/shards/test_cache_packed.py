"""Floats packed into integers: what is rounded, what is exact, and what a shard of them is to its readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from distil_cache.cache.gather import gather
from distil_cache.cache.maintenance.verify import verify
from distil_cache.cache.shards.packed import BITS, PackedStorage, as_stored, pack, packed_bytes, unpack
from distil_cache.cache.spec import Spec
from distil_cache.cache.store import FORMATS, Cache, FeatureStore
from distil_cache.choices import FloatStorage
from distil_cache.errors import IntegrityError
from distil_cache.pipeline.execution.compute import stored_floats
from maintained_cache import keys_of

SHAPE = (3, 12, 12)  # 432 values: thirteen blocks and a half
STEP = {"int8": 2.0**-7, "int4": 2.0**-3}
"""The largest step of an integer, relative to the largest value of its block: it has bits - 1 bits for half of them."""


class Toy(Spec):
    feature: Literal["toy"] = "toy"
    algorithm: Literal[1] = 1
    storage: FloatStorage = "float16"


def noise(count: int = 5, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Noise of very different sizes, with a block of zeros, of ones, and of the largest and smallest numbers."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(count, *shape)) * np.exp(rng.normal(0, 3, (count, *shape[:-1], 1)))
    rows = rows.clip(-60000, 60000).astype(np.float16)
    flat = rows.reshape(count, -1)
    flat[:, 32:64], flat[:, 64:96], flat[:, 96:128], flat[:, 128:160] = 0, 1, 65504, 2.0**-24
    return rows


@pytest.fixture(params=sorted(BITS))
def storage(request: pytest.FixtureRequest) -> PackedStorage:
    return request.param


def test_a_value_is_rounded_to_the_nearest_step_of_its_block(storage: PackedStorage) -> None:
    rows = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float16)
    off = np.abs(as_stored(rows, storage).astype(float) - rows)
    block = np.abs(rows.astype(float)).reshape(4, 2, 32).max(axis=2, keepdims=True)
    assert (off.reshape(4, 2, 32) <= block * STEP[storage]).all()
    assert off.max() / (block.max() * STEP[storage]) > 0.25


def test_what_was_unpacked_packs_to_the_same_bytes(storage: PackedStorage) -> None:
    packed = pack(noise(), storage)
    assert packed.shape == (5, packed_bytes(SHAPE, storage))
    back = np.empty((5, *SHAPE), np.float16)
    unpack(packed, storage, back)
    assert np.isfinite(back).all()
    np.testing.assert_array_equal(pack(back, storage), packed)


def test_unpacking_is_the_integer_times_its_scale(storage: PackedStorage) -> None:
    row, blocks = pack(noise(1, (2, 32)), storage)[0], 2
    codes = row[blocks:].view(np.int8)
    if storage == "int4":
        codes = np.stack([codes << 4 >> 4, codes >> 4], axis=-1)
    expected = np.ldexp(codes.reshape(blocks, 32).astype(np.float32), row[:blocks].view(np.int8)[:, None])
    np.testing.assert_array_equal(as_stored(noise(1, (2, 32)), storage)[0], expected)


@pytest.mark.parametrize("storage", ["float16", "float32", "int8", "int4"])
def test_the_device_rounds_as_the_cache_does_to_the_bit(storage: FloatStorage) -> None:
    rows = noise().astype(np.float32) * (1 + 2.0**-12)  # between two float16
    np.testing.assert_array_equal(stored_floats(torch.from_numpy(rows), storage).numpy(), as_stored(rows, storage))


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_readers_see_float16_rows_in_whole_in_part_and_in_a_buffer(
    storage: PackedStorage, form: str, tmp_path: Path
) -> None:
    store = Cache.create(tmp_path / "c").feature(Toy(storage=storage), form)
    keys, rows = sorted(keys_of(range(5))), noise()
    marker = store.commit(keys, rows)
    assert (marker.dtype, marker.shape, marker.packed) == ("float16", SHAPE, storage)
    whole = as_stored(rows, storage)
    again = FeatureStore(store.folder)
    np.testing.assert_array_equal(again.read(marker.shard), whole)
    np.testing.assert_array_equal(again.read(marker.shard, 1, 4, view=2), whole[1:4, 2])
    out = np.empty((2, *SHAPE), np.float16)
    assert again.read(marker.shard, 2, 4, out=out) is out
    np.testing.assert_array_equal(out, whole[2:4])
    out = np.empty((2, *SHAPE[1:]), np.float16)
    again.read(marker.shard, 2, 4, view=0, out=out)
    np.testing.assert_array_equal(out, whole[2:4, 0])
    np.testing.assert_array_equal(gather(again, keys[::-1]), whole[::-1])
    assert verify(Cache.open(tmp_path / "c")) == []


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_rows_that_cannot_be_packed_are_refused_before_anything_is_written(
    storage: PackedStorage, dtype: str, tmp_path: Path
) -> None:
    store = Cache.create(tmp_path / "c").feature(Toy(storage=storage))
    with pytest.raises(ValueError, match=f"toy: is stored as {storage}, which takes rows of float16, not of {dtype}"):
        store.commit(sorted(keys_of(range(5))), np.ones((5, *SHAPE), dtype))
    assert list(store.shards.iterdir()) == []


def test_a_shard_takes_a_half_or_a_quarter_of_the_bytes_and_a_marker_of_floats_says_nothing_of_it(
    tmp_path: Path,
) -> None:
    cache, rows = Cache.create(tmp_path / "c"), noise(4, (3, 64, 64))
    keys = sorted(keys_of(range(4)))
    markers = {name: cache.feature(Toy(storage=name), "webdataset").commit(keys, rows) for name in ("float16", *BITS)}
    sizes = {name: marker.bytes / rows.nbytes for name, marker in markers.items()}
    assert sizes["int8"] < 0.57
    assert sizes["int4"] < 0.32
    assert "packed" not in json.loads(markers["float16"].model_dump_json())


@pytest.mark.parametrize(
    ("field", "value"), [("packed", "int4"), ("packed", None), ("dtype", "float32"), ("shape", [3, 12, 13])]
)
@pytest.mark.parametrize("form", sorted(FORMATS))
def test_a_marker_that_tells_of_other_data_is_refused(form: str, field: str, value: object, tmp_path: Path) -> None:
    store = Cache.create(tmp_path / "c").feature(Toy(storage="int8"), form)
    path = store.shards / f"{store.commit(sorted(keys_of(range(5))), noise()).shard}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(IntegrityError):
        FeatureStore(store.folder).read(path.stem)
