"""Caches of an earlier version, whose images have ``algorithm`` 1: what a build makes of them.

Ten images of 16 pixels, a small random ADM and teacher. Train images have all features, the others image and eps.
DIRE takes 8 ADM calls here, eps alone one.
"""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_help import scheduler_here
from distil_cache.cache.maintenance.gc import collect
from distil_cache.cache.maintenance.repair import repair
from distil_cache.cache.maintenance.verify import verify
from distil_cache.cache.store import Cache, FeatureStore
from distil_cache.cli import app
from distil_cache.errors import IntegrityError
from distil_cache.features.builtin.recon import ReconSpec
from distil_cache.images.file import ImageRejected, content_key
from distil_cache.images.spec import ImageSpec
from distil_cache.pipeline.build import run_build
from distil_cache.pipeline.cluster.placement import Placement
from distil_cache.pipeline.config import BuildConfig, build_requests
from distil_cache.pipeline.execution import load, networks
from distil_cache.progress import Silent
from distil_cache.storage import AnyPath, to_path
from maintained_cache import checksums
from old_builds import earlier_version
from small_models import STEPS, computed, write_images, write_material
from typer.testing import CliRunner

CALLS = 8
FEATURES = ("image", "eps", "dire", "teacher")


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_material(tmp_path_factory.mktemp("material"), {"train": 3, "test": 2})


@pytest.fixture(scope="module")
def before(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of an earlier version."""
    cache = tmp_path_factory.mktemp("before") / "cache"
    with earlier_version():
        result = build(material, cache)
    assert computed(result) == {"image": 10, "eps": 10, "dire": 6, "teacher": 6}
    assert Cache.open(cache).open_feature(result["features"]["eps"]["fingerprint"]).spec["image"]["algorithm"] == 1
    return cache


@pytest.fixture
def cache(before: Path, tmp_path: Path) -> Path:
    """A copy of that cache."""
    return shutil.copytree(before, tmp_path / "cache")


def settings(material: Path, cache: AnyPath, **changes: Any) -> dict[str, Any]:
    values = {
        "cache": cache, "dataset": "noise", "adm": str(material / "adm.safetensors"), "teacher": "small",
        "teacher_weights": material / "teacher.safetensors", "steps": STEPS, "batch_size": 4, "shard_size": 4,
        "decode_threads": 2, "device": "cpu",
    }  # fmt: skip
    return {**values, **changes}


def build(material: Path, cache: AnyPath, *, dry_run: bool = False, **changes: Any) -> dict[str, Any]:
    values = settings(material, cache, **{"sources": (material / "images",), **changes})
    return run_build(BuildConfig.checked(**values), Silent(), dry_run=dry_run)


def from_cache(material: Path, cache: Path, *perturb: str, **changes: Any) -> dict[str, Any]:
    values = settings(material, cache, sources=(), from_cache=True, **changes)
    (request,) = build_requests(perturb=perturb, **values)
    return run_build(request, Silent())


def algorithms(cache: Path, result: dict[str, Any]) -> set[int]:
    """The algorithms of the images from which the features of a build derive."""
    specs = [Cache.open(cache).open_feature(row["fingerprint"]).spec for row in result["features"].values()]
    images = [spec.get("dire", spec).get("image", spec) for spec in specs]  # type: ignore[attr-defined]
    return {image["algorithm"] for image in images}


def test_a_build_from_the_cached_images_goes_on_with_them_as_they_are_and_says_so(material: Path, cache: Path) -> None:
    more = from_cache(material, cache, features=("image,eps,noise",))
    assert computed(more) == {"image": 0, "eps": 0, "noise": 10}
    assert algorithms(cache, more) == {1}
    assert "decoded by the rules of algorithm 1" in more["notes"][0]


def test_perturbed_images_derive_from_the_cached_ones_whatever_their_algorithm(material: Path, cache: Path) -> None:
    then = from_cache(material, cache, "jpeg:75")
    assert algorithms(cache, then) == {1}
    build(material, cache)
    now = from_cache(material, cache, "jpeg:75", name="now")
    assert algorithms(cache, now) == {2}
    assert now["notes"] == []


def test_a_build_of_images_of_which_the_newer_rules_refuse_some_falls_back_to_all_of_the_older(
    material: Path, cache: Path, tmp_path: Path
) -> None:
    fewer = write_images(tmp_path / "fewer", {"test": 2})
    build(material, cache, sources=(fewer,), dataset="fewer", features=("image",))  # newer images of four of the keys
    assert algorithms(cache, from_cache(material, cache, features=("image,eps",))) == {1}
    assert algorithms(cache, from_cache(material, cache, dataset="fewer", features=("image,eps",))) == {2}


def taken_over(result: dict[str, Any]) -> dict[str, int]:
    return {name: row["taken_over"] for name, row in result["features"].items()}


def rows(cache: AnyPath, feature: str, algorithm: int) -> dict[str, bytes]:
    """Every row of a feature of images of this algorithm, by key."""
    opened = Cache.open(cache)
    (store,) = (store for store in opened.features() if store.feature == feature and image_of(store) == algorithm)
    return {
        key: row.tobytes()
        for marker in store.markers()
        for key, row in zip(marker.keys, store.read(marker.shard), strict=True)
    }


def image_of(store: FeatureStore) -> int:
    image = store.spec.get("dire", store.spec).get("image", store.spec)  # type: ignore[attr-defined]
    return int(image["algorithm"])


def file_with(images: Path, key: str) -> Path:
    return next(path for path in images.rglob("*.png") if content_key(path.read_bytes()) == key)


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the ADM nor the teacher can be loaded."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(networks, "adm_on", refuse)
    monkeypatch.setattr(networks, "network_on", refuse)


@pytest.mark.usefixtures("no_models")
@pytest.mark.parametrize("form", ["zarr", "webdataset"])
def test_rows_whose_files_decode_as_before_are_taken_over_without_a_model(
    material: Path, cache: Path, form: str
) -> None:
    result = build(material, cache, format=form)
    assert result["adm_calls"] == 0
    assert taken_over(result) == {"image": 10, "eps": 10, "dire": 6, "teacher": 6}
    assert computed(result) == dict.fromkeys(FEATURES, 0)
    assert {row["reused"] for row in result["features"].values()} == {0}
    assert (result["decoded"], result["rejected"]) == (10, 0)
    assert algorithms(cache, result) == {2}
    for feature in FEATURES:
        assert rows(cache, feature, 2) == rows(cache, feature, 1)
    assert verify(Cache.open(cache)) == []
    again = build(material, cache, format=form)
    assert (again["decoded"], again["build"], taken_over(again)["eps"]) == (0, result["build"], 0)


def test_only_rows_whose_image_changed_are_computed_and_are_those_of_a_new_cache(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = build(material, tmp_path / "new")
    table = Cache.open(tmp_path / "new").datasets().read("noise").to_pylist()
    train = [row["key"] for row in table if row["split"] == "train"]
    test = [row["key"] for row in table if row["split"] == "test"]
    with earlier_version(otherwise={train[0], test[0]}):
        build(material, tmp_path / "cache")
    result = build(material, tmp_path / "cache")
    assert computed(result) == {"image": 2, "eps": 2, "dire": 1, "teacher": 1}
    assert taken_over(result) == {"image": 8, "eps": 8, "dire": 5, "teacher": 5}
    assert result["adm_calls"] == CALLS + 1
    assert result["build"] == new["build"]
    for feature in FEATURES:
        assert rows(tmp_path / "cache", feature, 2) == rows(tmp_path / "new", feature, 2)
        assert rows(tmp_path / "cache", feature, 1)[train[0]] != rows(tmp_path / "new", feature, 2)[train[0]]
    assert checksums(tmp_path / "cache").items() >= checksums(tmp_path / "new").items()


def test_a_file_that_is_now_refused_is_rejected_and_its_old_rows_stay_where_they_were(
    material: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = sorted(rows(cache, "dire", 1))[0]
    decode = load.decode

    def stricter(data: bytes, *arguments: Any) -> np.ndarray:
        if content_key(data) == bad:
            raise ImageRejected("truncated", "half of it is missing")
        return decode(data, *arguments)

    monkeypatch.setattr(load, "decode", stricter)
    result = build(material, cache)
    assert [(Path(reject["path"]), reject["reason"]) for reject in result["rejects"]] == [
        (file_with(material / "images", bad), "truncated")
    ]
    assert (result["adm_calls"], taken_over(result)["dire"]) == (0, 5)
    assert bad not in rows(cache, "eps", 2)
    assert bad in rows(cache, "eps", 1)


def test_a_feature_that_was_never_made_is_computed_beside_those_that_are_taken_over(
    material: Path, cache: Path
) -> None:
    result = build(material, cache, features=("image,eps,dire,teacher,recon,noise",))
    assert taken_over(result) == {"image": 10, "eps": 10, "recon": 0, "dire": 6, "noise": 0, "teacher": 6}
    assert computed(result) == {"image": 0, "eps": 0, "recon": 10, "dire": 4, "noise": 10, "teacher": 4}
    assert result["adm_calls"] == 10 * CALLS


def test_what_the_earlier_version_lacks_is_taken_over_by_a_later_build_when_it_is_wanted(
    material: Path, cache: Path
) -> None:
    first = build(material, cache, features=("image",))
    assert taken_over(first) == {"image": 10}
    later = build(material, cache)
    assert (later["adm_calls"], later["decoded"]) == (0, 0)
    assert taken_over(later) == {"image": 0, "eps": 10, "dire": 6, "teacher": 6}


def test_teacher_features_are_computed_from_dire_that_is_taken_over(material: Path, cache: Path) -> None:
    result = build(material, cache, train_size=16)
    assert (result["adm_calls"], computed(result)["teacher"], taken_over(result)["dire"]) == (0, 6, 6)


def test_recon_that_was_rounded_is_never_taken_over(material: Path, tmp_path: Path) -> None:
    with earlier_version():
        build(material, tmp_path / "c", features=("image,recon",))
    old = next(store for store in Cache.open(tmp_path / "c").features() if store.feature == "recon")
    rounded = {**old.spec, "algorithm": 1}
    assert ReconSpec.model_validate(rounded).folder != old.folder.name
    old.folder.rename(old.folder.parent / ReconSpec.model_validate(rounded).folder)
    (old.folder.parent / ReconSpec.model_validate(rounded).folder / "spec.json").write_text(json.dumps(rounded))
    result = build(material, tmp_path / "c", features=("image,recon",))
    assert (taken_over(result), result["adm_calls"]) == ({"image": 10, "recon": 0}, 10 * CALLS)


@pytest.mark.parametrize("stop", range(7))
def test_a_takeover_that_is_stopped_anywhere_goes_on_and_leaves_the_bytes_of_an_undisturbed_one(
    material: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    whole = shutil.copytree(cache, tmp_path / "whole")
    build(material, whole)
    commit, count = FeatureStore.commit, itertools.count()

    def stopped(self: FeatureStore, *arguments: Any, **options: Any) -> Any:
        if next(count) == stop:
            raise KeyboardInterrupt
        return commit(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureStore, "commit", stopped)
        with pytest.raises(KeyboardInterrupt):
            build(material, cache)
    result = build(material, cache)
    assert result["adm_calls"] == 0
    assert checksums(cache) == checksums(whole)
    assert verify(Cache.open(cache)) == []


def test_a_dry_run_says_how_many_rows_may_be_taken_over_and_makes_nothing(material: Path, cache: Path) -> None:
    plan = build(material, cache, dry_run=True)
    assert {name: row["may_be_taken_over"] for name, row in plan["features"].items()} == {
        "image": 10, "eps": 10, "dire": 6, "teacher": 6,
    }  # fmt: skip
    assert (plan["adm_calls"], plan["adm_calls_at_least"]) == (6 * CALLS + 4, 0)
    more = build(material, cache, dry_run=True, features=("image,eps,dire",))
    assert (more["adm_calls"], more["adm_calls_at_least"]) == (10 * CALLS, 4 * CALLS)
    assert {image_of(store) for store in Cache.open(cache).features()} == {1}


def test_the_command_says_what_was_and_what_may_be_taken_over(material: Path, cache: Path) -> None:
    common = ["build", str(material / "images"), "--cache", str(cache), "--dataset", "noise", "--steps", STEPS]
    common += ["--adm", str(material / "adm.safetensors"), "--features", "image,eps", "--device", "cpu"]
    plan = CliRunner().invoke(app, [*common, "--dry-run"])
    assert "Would make 0 to 10 ADM calls" in plan.stdout
    assert "may be taken over" in plan.stdout
    done = CliRunner().invoke(app, common)
    assert "Rows of an earlier version were taken over" in " ".join(done.stdout.split())
    assert "taken over" not in CliRunner().invoke(app, common).stdout


def test_no_row_is_taken_over_from_a_damaged_shard(material: Path, cache: Path) -> None:
    store = next(store for store in Cache.open(cache).features() if store.feature == "eps")
    data = next(path for path in (store.shards / store.markers()[0].data).rglob("*") if path.is_file())
    data.write_bytes(bytes([data.read_bytes()[0] ^ 1]) + data.read_bytes()[1:])
    with pytest.raises(IntegrityError, match=r"checksum|cache verify"):
        build(material, cache)
    repair(Cache.open(cache))
    result = build(material, cache)
    assert 0 < computed(result)["eps"] <= 4  # those of the shard, which repair has set aside
    assert {problem.feature for problem in verify(Cache.open(cache))} == {store.folder.name}  # rows of the old build


def test_gc_keeps_the_old_rows_for_a_run_or_a_newest_revision_alone(material: Path, cache: Path) -> None:
    with earlier_version():
        old = build(material, cache)["build"]
    build(material, cache)
    Cache.open(cache).builds().add_ref("run", old, "run")
    newer = write_images(cache.parent / "newer", {"train": 1, "test": 1}, seed=5)
    build(material, cache, sources=(material / "images", newer))
    collect(Cache.open(cache), delete_them=True, grace_hours=0)
    assert len(rows(cache, "eps", 1)) == 10
    (cache / "refs" / "run.json").unlink()
    collect(Cache.open(cache), delete_them=True, grace_hours=0)
    assert rows(cache, "eps", 1) == {}
    assert len(rows(cache, "eps", 2)) == 14
    assert verify(Cache.open(cache)) == []


def test_workers_take_rows_over(material: Path, cache: Path, tmp_path: Path) -> None:
    whole = shutil.copytree(cache, tmp_path / "whole")
    build(material, whole)
    config = BuildConfig.checked(**settings(material, cache, sources=(material / "images",)))
    with scheduler_here(2) as address:
        result = run_build(config, Silent(), placement=Placement(scheduler=address))
        values = settings(material, cache, sources=(), from_cache=True, features=("image,eps,noise",))
        (request,) = build_requests(**values)
        shutil.rmtree(cache / "features" / Path(Cache.open(cache).feature(ImageSpec(size=16)).folder).name)
        old = run_build(request, Silent(), placement=Placement(scheduler=address))
    assert (result["adm_calls"], taken_over(result)) == (0, {"image": 10, "eps": 10, "dire": 6, "teacher": 6})
    assert computed(old)["noise"] == 10
    assert algorithms(cache, old) == {1}


@pytest.mark.slow
def test_rows_are_taken_over_in_an_object_store(material: Path, s3_bucket: str) -> None:
    cache = to_path(f"{s3_bucket}/cache")
    with earlier_version():
        build(material, cache)
    result = build(material, cache)
    assert (result["adm_calls"], taken_over(result)) == (0, {"image": 10, "eps": 10, "dire": 6, "teacher": 6})
    assert rows(cache, "dire", 2) == rows(cache, "dire", 1)
    assert verify(Cache.open(cache)) == []
