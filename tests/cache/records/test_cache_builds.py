"""Build records, references of runs, and the listing of a cache."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest
from distil_cache.cache.maintenance.listing import spec_summary, summary
from distil_cache.cache.records import builds
from distil_cache.cache.records.builds import BuildRecord, BuiltFeature
from distil_cache.cache.records.datasets import SCHEMA
from distil_cache.cache.spec import Spec
from distil_cache.cache.store import Cache
from distil_cache.errors import IntegrityError, UserError


class Toy(Spec):
    feature: Literal["toy"] = "toy"
    algorithm: Literal[1] = 1
    size: int = 4


class Derived(Spec):
    feature: Literal["derived"] = "derived"
    algorithm: Literal[2] = 2
    toy: Toy = Toy()
    weights: str = "ab" * 32
    clip: bool = True
    views: tuple[str, ...] = ("identity", "hflip")


KEYS = sorted(hashlib.sha256(bytes([n])).hexdigest()[:32] for n in range(3))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache.create(tmp_path / "cache")


def built(cache: Cache, dataset: str = "photos", size: int = 4) -> BuildRecord:
    """Make a small real cache: a dataset with three samples, one feature, a build record."""
    store = cache.feature(Toy(size=size))
    marker = store.commit(KEYS, np.zeros((3, 3, size, size), np.uint8))
    filled = dict.fromkeys(SCHEMA.names, "x") | {"split": "train", "width": 1, "height": 1, "bytes": 1}
    rows = [filled | {"key": key, "label": label} for key, label in zip(KEYS, (0, 1, 1), strict=True)]
    revision = cache.datasets().write(dataset, pa.Table.from_pylist(rows, schema=SCHEMA), [{"path": "bad.png"}])
    feature = BuiltFeature(
        fingerprint=store.fingerprint, folder=store.folder.name, shards=(marker.shard,), splits=("train",)
    )
    record = BuildRecord.new(dataset, revision, {"toy": feature}, {"numpy": np.__version__})
    cache.builds().write(record)
    return record


def test_a_record_comes_back_and_is_found_by_its_dataset(cache: Cache) -> None:
    record = built(cache)
    other = built(cache, dataset="other")
    builds = cache.builds()
    assert builds.read(record.id) == record
    assert builds.find("photos") == [record]
    assert {found.id for found in builds.all()} == {record.id, other.id}


def test_the_id_leaves_out_time_and_versions_and_the_first_record_stays(cache: Cache) -> None:
    first = built(cache)
    again = BuildRecord.new(first.dataset, first.revision, first.features, {"numpy": "0"})
    assert again.id == first.id
    cache.builds().write(again)
    assert cache.builds().read(first.id) == first
    assert built(cache, size=5).id != first.id


def test_an_unknown_build_is_a_user_error(cache: Cache) -> None:
    for build in ("0" * 16, "../cache", ""):
        with pytest.raises(UserError, match="cache ls"):
            cache.builds().read(build)


def test_a_changed_record_is_refused(cache: Cache) -> None:
    record = built(cache)
    path = cache.root / "builds" / f"{record.id}.json"
    for text in (path.read_text().replace('"photos"', '"others"'), "{}", "", path.read_text()[:50]):
        path.write_text(text)
        with pytest.raises(IntegrityError, match=record.id):
            cache.builds().read(record.id)


def test_a_run_refers_to_one_build_and_saying_it_again_changes_nothing(cache: Cache) -> None:
    record, other = built(cache), built(cache, size=5)
    builds = cache.builds()
    builds.add_ref("kd05", record.id, Path("/runs/kd05"))
    builds.add_ref("kd05", record.id, Path("/moved/kd05"))
    assert [(ref.run, ref.build, ref.path) for ref in builds.refs()] == [("kd05", record.id, "/runs/kd05")]
    with pytest.raises(UserError, match="already uses build"):
        builds.add_ref("kd05", other.id, Path("/runs/kd05"))
    with pytest.raises(UserError, match="not a valid run name"):
        builds.add_ref("../x", record.id, Path("/runs/x"))


def test_the_summary_counts_what_is_there(cache: Cache) -> None:
    record = built(cache)
    cache.builds().add_ref("run", record.id, Path("/runs/run"))
    found = summary(cache)
    (dataset,) = found["datasets"]
    assert dataset["splits"] == {"train": {"real": 1, "fake": 2}}
    assert (dataset["rows"], dataset["samples"], dataset["rejected"]) == (3, 3, 1)
    (feature,) = found["features"]
    assert (feature["feature"], feature["shards"], feature["rows"], feature["words"]) == ("toy", 1, 3, "size 4")
    assert feature["bytes_per_sample"] == round(feature["bytes"] / 3)  # type: ignore[operator]
    assert found["builds"][0]["id"] == record.id
    assert found["refs"] == [{"run": "run", "build": record.id, "path": "/runs/run"}]
    json.dumps(found)


def test_the_summary_of_an_empty_cache_is_empty(cache: Cache) -> None:
    assert summary(cache) == {"datasets": [], "builds": [], "features": [], "refs": [], "builders": []}


def test_damage_is_listed_beside_what_is_whole(cache: Cache) -> None:
    built(cache)
    whole = built(cache, dataset="other", size=5)
    (cache.root / "features" / Toy().folder / "spec.json").write_text("[]")
    (cache.root / "datasets" / "photos" / "HEAD-000001.json").write_text("[]")
    found = summary(cache)
    assert ["problem" in entry for entry in found["datasets"]] == [False, True]
    assert {entry["folder"]: "problem" in entry for entry in found["features"]} == {
        Toy().folder: True,
        whole.features["toy"].folder: False,
    }


def test_a_spec_in_words_names_what_it_derives_from_and_cuts_digests() -> None:
    assert (
        spec_summary(Derived().canonical())
        == "algorithm 2, from toy, weights abababab…, clip yes, views identity/hflip"
    )


def test_a_record_that_could_not_be_read_again_is_not_written(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    record = built(cache)
    other = BuildRecord.new(record.dataset, record.revision, record.features | {"more": record.features["toy"]}, {})
    monkeypatch.setattr(builds, "_MAX_RECORD", (cache.builds().folder / f"{record.id}.json").stat().st_size)
    with pytest.raises(UserError, match=r"was not written: it would have .* a larger --shard-size"):
        cache.builds().write(other)
    assert cache.builds().ids() == [record.id]
