"""A build that stores eps and noise as integers: what its plan and summary say, and what the cache's commands make of it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distil_cache.cache.export.webdataset import export_build
from distil_cache.cache.gather import gather
from distil_cache.cache.maintenance.compact import compact
from distil_cache.cache.maintenance.diff import diff
from distil_cache.cache.maintenance.listing import summary
from distil_cache.cache.maintenance.verify import verify
from distil_cache.cache.shards.packed import as_stored
from distil_cache.cache.store import Cache, FeatureStore
from distil_cache.choices import FloatStorage
from distil_cache.pipeline.build import run_build
from distil_cache.pipeline.config import BuildConfig
from distil_cache.progress import Silent
from small_models import STEPS, write_adm, write_images


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with eps and noise as float16, as int8 in zarr shards, and as int4 in tars; 12 images."""
    folder = tmp_path_factory.mktemp("storage")
    write_adm(folder / "adm.safetensors")
    write_images(folder / "images", {"train": 3, "test": 3})
    for storage, form in (("float16", "zarr"), ("int8", "zarr"), ("int4", "webdataset")):
        build(folder, storage=storage, format=form)
    return folder


def build(material: Path, *, dry_run: bool = False, **changes: Any) -> dict[str, Any]:
    config = BuildConfig.checked(
        sources=(material / "images",), cache=material / "cache", dataset="d", steps=STEPS, batch_size=4, shard_size=4,
        adm=str(material / "adm.safetensors"), features=("image,eps,noise",), device="cpu", **changes,
    )  # fmt: skip
    return run_build(config, Silent(), dry_run=dry_run)


def stores(material: Path, feature: str) -> dict[str, FeatureStore]:
    """Storage -> the feature's store."""
    found = [store for store in Cache.open(material / "cache").features() if store.feature == feature]
    return {str(store.spec["storage"]): store for store in found}


@pytest.mark.parametrize("feature", ["eps", "noise"])
@pytest.mark.parametrize("storage", ["int8", "int4"])
def test_the_rows_are_those_of_float16_rounded(material: Path, feature: str, storage: FloatStorage) -> None:
    found = stores(material, feature)
    keys = found["float16"].index().keys
    names = [bytes(key).hex() for key in keys]
    np.testing.assert_array_equal(gather(found[storage], names), as_stored(gather(found["float16"], names), storage))
    assert verify(Cache.open(material / "cache")) == []


def test_plan_and_summary_say_what_is_rounded_and_the_plan_counts_packed_bytes(material: Path) -> None:
    plans = {name: build(material, dry_run=True, storage=name, noise="first") for name in ("float16", "int8", "int4")}
    assert [plan["features"]["noise"]["bytes"] / 12 for plan in plans.values()] == [2 * 768, 768 + 24, 384 + 24]
    assert plans["float16"]["notes"] == []
    eps, noise = plans["int4"]["notes"]
    assert eps.startswith("eps is stored as int4: each value is rounded to 4 bits")
    assert noise.startswith("noise is stored as int4")
    again = build(material, storage="int8")
    assert (again["adm_calls"], len(again["notes"])) == (0, 2)


def test_listing_and_difference_name_the_storage(material: Path) -> None:
    cache = Cache.open(material / "cache")
    words = [str(row["words"]) for row in summary(cache)["features"] if row["feature"] == "eps"]
    assert all(any(f"storage {name}" in text for text in words) for name in ("float16", "int8", "int4"))
    found = stores(material, "eps")
    differences = diff(found["float16"].folder.name, found["int8"].folder.name, cache.root)["differences"]
    assert differences == [{"about": "settings", "what": "storage float16 -> int8"}]


def test_compaction_keeps_packed_rows_to_the_byte_and_an_export_has_floats(material: Path, tmp_path: Path) -> None:
    cache = Cache.open(material / "cache")
    store = stores(material, "eps")["int4"]
    before = {key: row.tobytes() for m in store.markers() for key, row in zip(m.keys, store.read(m.shard), strict=True)}
    assert compact(cache, 12)["features"][store.folder.name]["into"] == 2
    merged = [marker for marker in FeatureStore(store.folder).markers() if marker.merged]
    assert {(marker.packed, marker.format) for marker in merged} == {("int4", "webdataset")}
    for marker in merged:
        rows = FeatureStore(store.folder).read(marker.shard)
        assert {key: row.tobytes() for key, row in zip(marker.keys, rows, strict=True)}.items() <= before.items()
    build_id = next(r.id for r in cache.builds().all() if r.features["eps"].folder == store.folder.name)
    export_build(cache, tmp_path / "out", build=build_id, features=["eps"])
    with tarfile.open(next((tmp_path / "out").rglob("*.tar"))) as tar:
        member = next(member for member in tar if member.name.endswith("eps.npy"))
        data = tar.extractfile(member)
        assert data is not None
        row = np.load(io.BytesIO(data.read()))
    assert row.tobytes() == before[member.name.split(".")[0]]
