"""What a second build computes after a change: the least that the change makes necessary, and nothing else.

Ten images of 16 pixels, a small random ADM and teacher. Train images have all features, the others image and eps.
DIRE takes 8 ADM calls here, eps alone one.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distil_cache.cache.gather import gather
from distil_cache.cache.maintenance.verify import verify
from distil_cache.cache.store import Cache
from distil_cache.pipeline.build import run_build
from distil_cache.pipeline.config import BuildConfig
from distil_cache.progress import Silent
from image_bytes import noise, saved
from small_models import STEPS, computed, write_adm, write_images, write_teacher

CALLS = 8
NOTHING = {"image": 0, "eps": 0, "dire": 0, "teacher": 0}


@dataclass
class Scene:
    """Images and a cache of their features in a folder of their own."""

    folder: Path
    models: Path

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def cache(self) -> Cache:
        return Cache.open(self.folder / "cache")

    def build(self, **changes: Any) -> dict[str, Any]:
        values: dict[str, Any] = {
            "sources": (self.images,),
            "cache": self.folder / "cache",
            "dataset": "noise",
            "adm": str(self.models / "adm.safetensors"),
            "teacher": "small",
            "teacher_weights": self.models / "teacher.safetensors",
            "steps": STEPS,
            "batch_size": 4,
            "shard_size": 4,
            "decode_threads": 1,
            "device": "cpu",
        }
        return run_build(BuildConfig.checked(**{**values, **changes}), Silent())

    def add(self, count: int, split: str, seed: int) -> None:
        place = self.images / split / "gen" / "1_fake"
        for number in range(count):
            (place / f"{seed}-{number}.png").write_bytes(saved(noise(20, 24, 1000 * seed + number)))

    def files(self, split: str, kind: str) -> list[Path]:
        return sorted((self.images / split / "gen" / kind).iterdir())

    def marks(self) -> dict[Path, int]:
        """Every marker with its time: what a build leaves as it is keeps both."""
        return {path: path.stat().st_mtime_ns for path in self.folder.glob("cache/features/*/shards/*.json")}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_adm(folder / "adm.safetensors")
    write_teacher(folder / "teacher.safetensors")
    write_teacher(folder / "other-teacher.safetensors", seed=1)
    return folder


@pytest.fixture(scope="module")
def built(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """The first build: 6 train images, one of them there twice, and 4 test images."""
    scene = Scene(tmp_path_factory.mktemp("built"), models)
    write_images(scene.images, {"train": 3, "test": 2})
    shutil.copy2(scene.files("train", "1_fake")[0], scene.images / "train" / "gen" / "1_fake" / "again.png")
    result = scene.build()
    assert computed(result) == {"image": 10, "eps": 10, "dire": 6, "teacher": 6}
    assert (result["adm_calls"], result["opened"], result["samples"], result["occurrences"]) == (
        6 * CALLS + 4,
        11,
        10,
        11,
    )
    return scene


@pytest.fixture
def scene(built: Scene, tmp_path: Path) -> Scene:
    """A copy of the first build that the test may change. Its folder is new, so the scan's memory is made again, too."""
    shutil.copytree(built.folder, tmp_path / "s", symlinks=True)
    scene = Scene(tmp_path / "s", built.models)
    assert what_it_took(scene.build()) == (NOTHING, 0, 0)
    return scene


def what_it_took(result: dict[str, Any]) -> tuple[dict[str, int], int, int]:
    return computed(result), result["adm_calls"], result["decoded"]


def test_an_unchanged_folder_opens_no_image_and_gives_the_same_build(scene: Scene) -> None:
    first = scene.build()
    before = scene.marks()
    again = scene.build()
    assert (*what_it_took(again), again["opened"]) == (NOTHING, 0, 0, 0)
    assert (again["build"], again["revision"]) == (first["build"], first["revision"])
    assert scene.marks() == before


def test_rehash_opens_every_file_and_computes_nothing(scene: Scene) -> None:
    again = scene.build(rehash=True)
    assert (*what_it_took(again), again["opened"]) == (NOTHING, 0, 0, 11)


def test_touched_moved_and_renamed_files_are_opened_and_nothing_is_computed(scene: Scene) -> None:
    revision = scene.build()["revision"]
    os.utime(scene.files("train", "0_real")[0], (1, 1))
    moved = scene.files("test", "0_real")[0]
    (moved.parent / "below").mkdir()
    moved.rename(moved.parent / "below" / "renamed.png")
    again = scene.build()
    assert (*what_it_took(again), again["opened"], again["revision"]) == (NOTHING, 0, 0, 2, revision)


def test_added_images_are_all_that_is_computed(scene: Scene) -> None:
    before = scene.marks()
    scene.add(3, "train", seed=1)
    scene.add(1, "test", seed=2)
    result = scene.build()
    assert computed(result) == {"image": 4, "eps": 4, "dire": 3, "teacher": 3}
    assert (result["adm_calls"], result["decoded"], result["opened"]) == (3 * CALLS + 1, 4, 4)
    assert before.items() <= scene.marks().items()


def test_removed_images_cost_nothing_and_the_earlier_revision_stays_readable(scene: Scene) -> None:
    first = scene.build()
    keys = scene.cache.datasets().read("noise")["key"].unique().to_pylist()
    eps = gather(scene.cache.open_feature(first["features"]["eps"]["fingerprint"]), keys)
    for path in (*scene.files("train", "0_real")[:2], *scene.files("test", "1_fake")[:1]):
        path.unlink()
    result = scene.build()
    assert (*what_it_took(result), result["opened"]) == (NOTHING, 0, 0, 0)
    assert result["samples"] == 7
    assert result["revision"] != first["revision"]

    earlier = scene.cache.builds().read(first["build"])
    table = scene.cache.datasets().read("noise", earlier.revision)
    assert table["key"].unique().to_pylist() == keys
    store = scene.cache.open_feature(earlier.features["eps"].folder)
    np.testing.assert_array_equal(gather(store, keys), eps)
    assert set(earlier.features["eps"].shards) <= set(store.marker_ids())


def test_images_that_come_back_cost_nothing(scene: Scene) -> None:
    path = scene.files("train", "0_real")[0]
    data = path.read_bytes()
    revision = scene.build()["revision"]
    path.unlink()
    scene.build()
    path.write_bytes(data)
    result = scene.build()
    assert (*what_it_took(result), result["opened"], result["revision"]) == (NOTHING, 0, 0, 1, revision)


def test_a_new_label_costs_nothing(scene: Scene) -> None:
    path = scene.files("train", "0_real")[0]
    before = scene.build()["revision"]
    path.rename(scene.images / "train" / "gen" / "1_fake" / "was real.png")
    result = scene.build()
    assert what_it_took(result) == (NOTHING, 0, 0)
    assert result["revision"] != before
    assert sorted(scene.cache.datasets().read("noise")["label"].to_pylist()) == [0, 0, 0, 0] + [1] * 7


def test_a_move_to_a_split_that_wants_more_computes_what_the_images_lack(scene: Scene) -> None:
    path = scene.files("test", "0_real")[0]
    path.rename(scene.images / "train" / "gen" / "0_real" / "was test.png")
    result = scene.build()
    assert computed(result) == {"image": 0, "eps": 0, "dire": 1, "teacher": 1}
    assert (result["adm_calls"], result["decoded"]) == (CALLS, 0)


def test_a_move_to_a_split_that_wants_less_costs_nothing(scene: Scene) -> None:
    path = scene.files("train", "0_real")[0]
    path.rename(scene.images / "test" / "gen" / "0_real" / "was train.png")
    assert what_it_took(scene.build()) == (NOTHING, 0, 0)


def test_a_new_feature_is_computed_from_the_cached_images_and_no_file_is_opened(scene: Scene) -> None:
    result = scene.build(features=("image,eps,noise",))
    assert computed(result) == {"image": 0, "eps": 0, "noise": 10}
    assert (result["adm_calls"], result["decoded"], result["opened"]) == (10 * 4, 0, 0)


def test_a_feature_for_one_more_split_is_computed_there_alone(scene: Scene) -> None:
    result = scene.build(features=("image,eps,dire,teacher", "test:image,eps,dire"))
    assert computed(result) == {"image": 0, "eps": 0, "dire": 4, "teacher": 0}
    assert result["adm_calls"] == 4 * CALLS


def test_another_teacher_reads_the_cached_dire_and_calls_no_adm(scene: Scene) -> None:
    first = scene.build()
    result = scene.build(teacher_weights=scene.models / "other-teacher.safetensors")
    assert what_it_took(result) == ({**NOTHING, "teacher": 6}, 0, 0)
    assert result["features"]["dire"]["fingerprint"] == first["features"]["dire"]["fingerprint"]
    back = scene.build()
    assert (what_it_took(back), back["build"]) == ((NOTHING, 0, 0), first["build"])


def test_another_number_of_steps_keeps_image_and_eps(scene: Scene) -> None:
    result = scene.build(steps="ddim2")
    assert computed(result) == {"image": 0, "eps": 0, "dire": 6, "teacher": 6}
    assert (result["adm_calls"], result["decoded"]) == (6 * 4, 0)


def test_a_second_dataset_computes_only_what_it_does_not_share(scene: Scene) -> None:
    other = scene.folder / "other"
    place = other / "train" / "gen" / "1_fake"
    place.mkdir(parents=True)
    for path in scene.files("train", "1_fake")[:2]:
        shutil.copy2(path, place / f"copy of {path.name}")
    shutil.copy2(scene.files("test", "1_fake")[0], place / "from test.png")
    (place / "new.png").write_bytes(saved(noise(20, 24, 77)))
    before = scene.marks()
    result = scene.build(sources=(other,), dataset="other", one_class=True)
    assert computed(result) == {"image": 1, "eps": 1, "dire": 2, "teacher": 2}
    assert (result["adm_calls"], result["decoded"], result["opened"]) == (2 * CALLS, 1, 4)
    assert before.items() <= scene.marks().items()
    assert scene.cache.datasets().names() == ["noise", "other"]


@pytest.mark.slow
def test_fifty_increments_are_usable_whole_and_the_same_as_one_build(models: Path, tmp_path: Path) -> None:
    scene = Scene(tmp_path / "increments", models)
    write_images(scene.images, {"train": 1, "test": 1})
    for number in range(50):
        scene.add(2, "train", seed=10 + number)
        result = scene.build(features=("image,eps",))
        assert computed(result) == dict.fromkeys(("image", "eps"), 6 if number == 0 else 2)
    whole = Scene(tmp_path / "whole", models)
    shutil.copytree(scene.images, whole.images)
    at_once = whole.build(features=("image,eps",))
    assert at_once["revision"] == result["revision"]
    keys = scene.cache.datasets().read("noise")["key"].to_pylist()
    for feature in ("image", "eps"):
        name = result["features"][feature]["fingerprint"]
        pieces, one = (cache.open_feature(name) for cache in (scene.cache, whole.cache))
        assert len(pieces.marker_ids()) == 51
        np.testing.assert_allclose(gather(pieces, keys), gather(one, keys), rtol=1e-2, atol=1e-3)
    assert verify(scene.cache) == []
