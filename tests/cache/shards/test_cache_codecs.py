"""How zarr shards are compressed: as far as the saved bytes are worth the time of decoding them, or as told."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pytest
import zarr
from distil_cache.cache.maintenance.compact import compact
from distil_cache.cache.shards.zarr import BYTE_NS, CODECS, choice_of, reading_cost
from distil_cache.cache.spec import Spec
from distil_cache.cache.store import Cache
from distil_cache.choices import CodecChoice
from distil_cache.errors import UsageError
from distil_cache.pipeline.config import BuildConfig
from maintained_cache import SPECS, build, key_of, keys_of

Array = np.ndarray[Any, Any]
KEYS = sorted(keys_of(range(9)))


class Toy(Spec):
    feature: Literal["toy"] = "toy"
    algorithm: Literal[1] = 1


def smooth_images() -> Array:
    ramp = np.add.outer(np.arange(64), np.arange(64))
    grain = np.random.default_rng(0).integers(0, 6, (9, 3, 64, 64))
    return (ramp + grain).astype(np.uint8)


def sparse_maps() -> Array:
    rows = np.random.default_rng(0).normal(size=(9, 2, 64, 7, 7)) - 1
    return rows.clip(min=0).astype(np.float16)


def noise() -> Array:
    return np.random.default_rng(0).normal(size=(9, 3, 64, 64)).astype(np.float16)


@pytest.mark.parametrize("codec", get_args(CodecChoice))
@pytest.mark.parametrize("make", [smooth_images, sparse_maps, noise])
def test_every_codec_gives_the_rows_back_to_us_and_to_zarr(tmp_path: Path, codec: CodecChoice, make: Any) -> None:
    rows, store = make(), Cache.create(tmp_path).feature(Toy(), "zarr", codec)
    marker = store.commit(KEYS, rows)
    np.testing.assert_array_equal(store.read(marker.shard), rows)
    np.testing.assert_array_equal(store.read(marker.shard, 2, 5), rows[2:5])
    np.testing.assert_array_equal(store.read(marker.shard, 0, 9, view=1), rows[:, 1])
    np.testing.assert_array_equal(zarr.open_array(str(store.shards / marker.data))[:], rows)
    assert codec in ("auto", choice_of(marker.codec))


@pytest.mark.parametrize(
    ("make", "codec"),
    [(noise, "none"), (smooth_images, "blosc-lz4hc-3-bitshuffle"), (sparse_maps, "blosc-lz4hc-3-noshuffle")],
)
def test_by_default_a_feature_is_compressed_as_far_as_its_bytes_are_worth(
    tmp_path: Path, make: Any, codec: str
) -> None:
    assert Cache.create(tmp_path).feature(Toy()).commit(KEYS, make()).codec == codec


def test_the_cost_of_reading_is_that_of_the_bytes_and_of_decoding() -> None:
    rows, stored, small = smooth_images(), CODECS["none"][0], CODECS["zstd"][1]
    assert reading_cost(stored, rows) == pytest.approx((BYTE_NS + stored.decode_ns) * rows.nbytes)
    assert reading_cost(small, rows) == pytest.approx(BYTE_NS * len(small.encode(rows)) + small.decode_ns * rows.nbytes)


def test_bytes_that_are_stored_as_they_are_go_straight_to_their_place(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(9, 3, 200, 200)).astype(np.float32)
    store = Cache.create(tmp_path).feature(Toy(), "zarr", "none")
    marker = store.commit(KEYS, rows)
    store.read(marker.shard, 0, 1)
    tracemalloc.start()
    try:
        found = store.read(marker.shard)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < rows.nbytes + rows[0].nbytes / 2
    np.testing.assert_array_equal(found, rows)


def test_merged_shards_are_compressed_like_their_parts(tmp_path: Path) -> None:
    for count in (4, 8):
        build(tmp_path, {key_of(number): "train" for number in range(count)}, codec="zstd")
    compact(Cache.open(tmp_path), 512)
    stores = [Cache.open(tmp_path).feature(spec) for spec in SPECS.values()]
    merged = [store.marker(shard) for store in stores for shard in store.index().shards]
    assert all(marker.merged for marker in merged)
    assert {choice_of(marker.codec) for marker in merged} == {"zstd"}


def test_a_codec_for_tars_is_refused(tmp_path: Path) -> None:
    given = {"sources": (tmp_path,), "cache": tmp_path / "c", "dataset": "d", "format": "webdataset"}
    assert BuildConfig.checked(**given, codec="none").format == "webdataset"
    with pytest.raises(UsageError, match="--codec zstd: the tars of --format webdataset are not compressed"):
        BuildConfig.checked(**given, codec="zstd")
