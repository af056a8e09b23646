"""Caches of an earlier version, whose images have ``algorithm`` 1: what a build makes of them.

Ten images of 16 pixels, a small random ADM and teacher. Train images have all features, the others image and eps.
DIRE takes 8 ADM calls here, eps alone one.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from distil_cache.cache.store import Cache
from distil_cache.pipeline.build import run_build
from distil_cache.pipeline.config import BuildConfig, build_requests
from distil_cache.progress import Silent
from old_builds import earlier_version
from small_models import STEPS, computed, write_images, write_material

CALLS = 8


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


def settings(material: Path, cache: Path, **changes: Any) -> dict[str, Any]:
    values = {
        "cache": cache, "dataset": "noise", "adm": str(material / "adm.safetensors"), "teacher": "small",
        "teacher_weights": material / "teacher.safetensors", "steps": STEPS, "batch_size": 4, "shard_size": 4,
        "decode_threads": 2, "device": "cpu",
    }  # fmt: skip
    return {**values, **changes}


def build(material: Path, cache: Path, *, dry_run: bool = False, **changes: Any) -> dict[str, Any]:
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
