"""Derived datasets: what ``build --from-cache --perturb`` makes, what it reuses, and that it needs no source."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distil_cache.cache.gather import gather
from distil_cache.cache.maintenance.gc import collect
from distil_cache.cache.maintenance.verify import verify
from distil_cache.cache.store import Cache
from distil_cache.cli import app
from distil_cache.errors import UsageError, UserError
from distil_cache.images.perturb import perturb as perturbed
from distil_cache.images.spec import parse_perturbation
from distil_cache.pipeline.build import run_build
from distil_cache.pipeline.config import BuildConfig, build_requests
from distil_cache.progress import Silent
from distil_cache.train.config import TrainConfig
from distil_cache.train.engine.loop import run_training
from distil_cache.train.evaluation.evaluate import run_evaluation
from small_models import STEPS, write_adm, write_images, write_teacher
from typer.testing import CliRunner

COLUMNS = [
    "key",
    "source",
    "path",
    "label",
    "split",
    "generator",
    "family",
    "group",
    "width",
    "height",
    "format",
    "bytes",
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_adm(folder / "adm.safetensors")
    write_teacher(folder / "teacher.safetensors")
    return folder


@pytest.fixture(scope="module")
def built(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of 12 train, 4 val and 6 test images; one test image occurs twice. The sources are gone."""
    folder = tmp_path_factory.mktemp("built")
    images = write_images(folder / "images", {"train": 6, "val": 2, "test": 3})
    shutil.copy2(next((images / "test" / "gen" / "1_fake").iterdir()), images / "test" / "gen" / "1_fake" / "again.png")
    run_build(BuildConfig.checked(**settings(models, folder / "cache"), sources=(images,)), Silent())
    shutil.rmtree(images)
    return folder / "cache"


@pytest.fixture
def cache(built: Path, tmp_path: Path) -> Path:
    """A copy of that cache."""
    return shutil.copytree(built, tmp_path / "cache")


def settings(models: Path, cache: Path) -> dict[str, Any]:
    return {
        "cache": cache, "dataset": "noise", "adm": str(models / "adm.safetensors"), "teacher": "small",
        "teacher_weights": models / "teacher.safetensors", "steps": STEPS, "batch_size": 4, "shard_size": 4,
        "decode_threads": 2, "device": "cpu",
    }  # fmt: skip


def derive(models: Path, cache: Path, *perturb: str, dry_run: bool = False, **changes: Any) -> list[dict[str, Any]]:
    values = {**settings(models, cache), "sources": (), "from_cache": True, **changes}
    return [run_build(one, Silent(), dry_run=dry_run) for one in build_requests(perturb=perturb, **values)]


def test_a_derived_dataset_has_the_rows_of_test_and_perturbed_images_under_the_same_keys(
    models: Path, cache: Path
) -> None:
    (result,) = derive(models, cache, "noise:20")
    opened = Cache.open(cache)
    datasets = opened.datasets()
    rows, original = datasets.read("noise@noise-20"), datasets.read("noise")
    wanted = [row for row in original.to_pylist() if row["split"] == "test"]
    assert rows.column_names == COLUMNS
    assert sorted(rows.to_pylist(), key=str) == sorted(wanted, key=str)
    keys = sorted({row["key"] for row in wanted})
    plain = gather(opened.open_feature(opened.builds().find("noise")[0].features["image"].folder), keys)
    got = gather(opened.open_feature(result["features"]["image"]["fingerprint"]), keys)
    how = parse_perturbation("noise:20")
    for key, before, after in zip(keys, plain, got, strict=True):
        np.testing.assert_array_equal(after, perturbed(before, key, how))
        assert not np.array_equal(after, before)
    assert (result["samples"], result["occurrences"], result["opened"]) == (6, 7, 0)
    assert {name: row["computed"] for name, row in result["features"].items()} == {"image": 6, "eps": 6}
    assert result["adm_calls"] == 6
    assert result["origin"] == {"dataset": "noise", "revision": datasets.head("noise"), "perturbation": "noise:20"}
    (record,) = opened.builds().find("noise@noise-20")
    assert record.origin is not None
    assert record.origin.model_dump() == result["origin"]
    assert verify(opened) == []


def test_eps_of_a_perturbed_image_is_that_of_the_same_image_read_from_a_file(
    models: Path, cache: Path, tmp_path: Path
) -> None:
    from image_bytes import saved

    (result,) = derive(models, cache, "blur:1")
    opened = Cache.open(cache)
    keys = sorted(set(opened.datasets().read("noise@blur-1").column("key").to_pylist()))
    pictures = gather(opened.open_feature(result["features"]["image"]["fingerprint"]), keys)
    eps = gather(opened.open_feature(result["features"]["eps"]["fingerprint"]), keys)
    for number, picture in enumerate(pictures):
        place = tmp_path / "again" / "test" / "gen" / f"{number % 2}_{'fake' if number % 2 else 'real'}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(saved(picture.transpose(1, 2, 0)))
    other = {**settings(models, tmp_path / "other"), "dataset": "again", "sources": (tmp_path / "again",)}
    found = run_build(BuildConfig.checked(**other), Silent())
    again = Cache.open(tmp_path / "other")
    by_name = {row["path"]: row["key"] for row in again.datasets().read("again").to_pylist()}
    ordered = [next(key for path, key in by_name.items() if path.endswith(f"/{n}.png")) for n in range(len(keys))]
    np.testing.assert_array_equal(gather(again.open_feature(found["features"]["eps"]["fingerprint"]), ordered), eps)


def test_the_second_build_computes_nothing_and_changes_nothing(models: Path, cache: Path) -> None:
    (first,) = derive(models, cache, "jpeg:75")
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    (second,) = derive(models, cache, "jpeg:75.0")
    assert (second["decoded"], second["adm_calls"]) == (0, 0)
    assert {name: (row["computed"], row["reused"]) for name, row in second["features"].items()} == {
        "image": (0, 6),
        "eps": (0, 6),
    }
    assert (second["build"], second["revision"]) == (first["build"], first["revision"])
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()} == before


def test_a_further_feature_is_made_of_the_perturbed_images_that_are_there(models: Path, cache: Path) -> None:
    derive(models, cache, "crop:0.5")
    (result,) = derive(models, cache, "crop:0.5", features=("image,dire",))
    assert {name: row["computed"] for name, row in result["features"].items()} == {"image": 0, "dire": 6}
    assert result["adm_calls"] == 6 * 8


def test_several_perturbations_make_several_datasets_that_share_nothing_but_their_rows(
    models: Path, cache: Path
) -> None:
    results = derive(models, cache, "jpeg:50", "resize:0.5", "noise:5")
    assert [result["dataset"] for result in results] == ["noise@jpeg-50", "noise@resize-0.5", "noise@noise-5"]
    assert len({result["revision"] for result in results}) == 1
    assert len({row["fingerprint"] for result in results for row in result["features"].values()}) == 6
    assert len({result["build"] for result in results}) == 3


def test_splits_and_name_can_be_chosen(models: Path, cache: Path) -> None:
    (result,) = derive(models, cache, "jpeg:50", splits="val,test", name="weak")
    assert (result["dataset"], result["samples"]) == ("weak", 10)
    assert set(Cache.open(cache).datasets().read("weak").column("split").to_pylist()) == {"val", "test"}


def test_without_a_test_split_val_is_perturbed(models: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", {"train": 1, "val": 1})
    run_build(BuildConfig.checked(**settings(models, tmp_path / "c"), sources=(images,)), Silent())
    (result,) = derive(models, tmp_path / "c", "jpeg:50")
    assert set(Cache.open(tmp_path / "c").datasets().read("noise@jpeg-50").column("split").to_pylist()) == {"val"}
    assert result["samples"] == 2


def test_from_cache_without_a_perturbation_adds_features_to_the_dataset_itself(models: Path, cache: Path) -> None:
    opened = Cache.open(cache)
    head = opened.datasets().head("noise")
    (result,) = derive(models, cache, features=("image,eps,noise", "train:image,eps,dire,teacher"))
    assert (result["revision"], result["origin"], result["decoded"]) == (head, None, 0)
    computed = {name: row["computed"] for name, row in result["features"].items()}
    assert computed == {"image": 0, "eps": 0, "dire": 0, "noise": 10, "teacher": 0}
    assert opened.datasets().history("noise") == [head]


def test_a_dry_run_says_what_is_missing_and_makes_nothing(models: Path, cache: Path) -> None:
    before = sorted(cache.rglob("*"))
    (result,) = derive(models, cache, "jpeg:75", dry_run=True)
    assert result["features"]["eps"]["missing"] == result["adm_calls"] == 6
    assert result["origin"]["perturbation"] == "jpeg:75"
    assert sorted(cache.rglob("*")) == before


def test_an_interrupted_build_goes_on_with_the_shards_of_an_undisturbed_one(models: Path, cache: Path) -> None:
    derive(models, cache, "blur:2")
    shards = {path.name for path in cache.glob("features/*/shards/*.json")}
    opened = Cache.open(cache)
    (record,) = opened.builds().find("noise@blur-2")
    for feature in record.features.values():
        lost = cache / "features" / feature.folder / "shards" / f"{feature.shards[-1]}.json"
        lost.unlink()
    derive(models, cache, "blur:2")
    assert {path.name for path in cache.glob("features/*/shards/*.json")} == shards


def test_gc_keeps_a_derived_dataset_also_when_its_origin_has_moved_on(models: Path, cache: Path) -> None:
    derive(models, cache, "jpeg:75")
    opened = Cache.open(cache)
    collect(opened, delete_them=True, grace_hours=0)
    (record,) = opened.builds().find("noise@jpeg-75")
    keys = sorted(set(opened.datasets().read("noise@jpeg-75").column("key").to_pylist()))
    for feature in record.features.values():
        assert len(gather(opened.open_feature(feature.folder), keys)) == 6


def test_images_made_with_other_options_are_refused_with_those_that_are_there(models: Path, cache: Path) -> None:
    with pytest.raises(UserError, match=r"lacks 6 of its 6 images .*image-size 24.*it has image-size 16") as refused:
        derive(models, cache, "jpeg:75", image_size=24)
    assert refused.value.exit_code == 1
    assert "noise@jpeg-75" not in Cache.open(cache).datasets().names()


@pytest.mark.parametrize(
    ("perturb", "changes", "complaint"),
    [
        ((), {"from_cache": False}, "name a SOURCE, declare folders .* or give --from-cache"),
        (("jpeg:75",), {"from_cache": False, "sources": (Path("x"),)}, "--perturb: needs --from-cache"),
        ((), {"from_cache": False, "sources": (Path("x"),), "splits": "test"}, "--splits: needs --from-cache"),
        ((), {"sources": (Path("pictures"),)}, "reads no source. Leave out pictures"),
        ((), {"splits": "test"}, "--splits: needs --perturb"),
        ((), {"name": "x"}, "--as: needs --perturb"),
        (("jpeg:75", "jpeg:75.0"), {}, "--perturb jpeg:75: is given twice"),
        (("jpeg:75", "jpeg:50"), {"name": "x"}, "names one dataset, and --perturb is given 2 times"),
        (("jpeg:75",), {"name": "noise"}, "is the dataset to perturb"),
        (("jpeg:75",), {"name": "a b"}, "--as a b: cannot name a dataset"),
        (("jpeg:75",), {"dataset": "d" * 99}, "cannot name a dataset. Use up to 100 letters"),
        (("jpeg:75",), {"splits": " , "}, "name at least one split"),
        (("jpeg:75",), {"splits": "test,holdout"}, "noise has only test, train, val"),
        (("jpeg:75",), {"rehash": True}, "--rehash: applies to sources"),
        (("jpeg:75",), {"min_side": 9}, "--min-side: applies to sources"),
        (("jpeg:75",), {"layout": "cnndet"}, "--layout: applies to sources"),
        (("resize:0.95",), {"image_size": 16, "harmonize": "jpg"}, "--harmonize jpg: write jpeg:QUALITY"),
        (("jpeg:75",), {"features": ("train:image",)}, "has no split 'train', only test"),
        ((), {"dataset": "noise@x"}, "names with an @ are reserved for derived datasets"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused_with_a_sentence(
    models: Path, built: Path, perturb: tuple[str, ...], changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        derive(models, built, *perturb, **changes)


def test_an_unknown_dataset_and_a_folder_that_is_no_cache_are_refused(
    models: Path, built: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="has no dataset 'other'"):
        derive(models, built, "jpeg:75", dataset="other")
    with pytest.raises(UserError, match="is not a cache"):
        derive(models, tmp_path / "nowhere", "jpeg:75")
    assert not (tmp_path / "nowhere").exists()


def test_a_name_that_belongs_to_another_dataset_and_a_derived_origin_are_refused(models: Path, cache: Path) -> None:
    derive(models, cache, "jpeg:75", name="weak")
    with pytest.raises(UsageError, match=r"--as weak: is derived from noise by jpeg:75\. Choose an unused name"):
        derive(models, cache, "jpeg:50", name="weak")
    with pytest.raises(UsageError, match=r"weak: is derived from noise by jpeg:75\. Give --dataset noise"):
        derive(models, cache, "blur:1", dataset="weak")
    derive(models, cache, "blur:1")
    with pytest.raises(UsageError, match="--as noise@blur-1: is derived from noise by blur:1"):
        derive(models, cache, "jpeg:50", name="noise@blur-1")


def test_evaluate_scores_a_derived_dataset_and_keeps_its_origin(models: Path, cache: Path, tmp_path: Path) -> None:
    config = TrainConfig.checked(dataset="noise", backbone="small", epochs=1, batch_size=4, lr=1e-3, method="eps")
    run_training(config, cache, tmp_path / "run")
    derive(models, cache, "noise:60")
    plain = run_evaluation(tmp_path / "run", cache, "noise")
    found = run_evaluation(tmp_path / "run", cache, "noise@noise-60")
    assert plain["origin"] is None
    assert found["origin"] == {"dataset": "noise", "revision": plain["revision"], "perturbation": "noise:60"}
    assert found["counts"] == plain["counts"]
    assert found["metrics"]["bce"] != plain["metrics"]["bce"]
    stored = json.loads((tmp_path / "run/evaluations/noise@noise-60-test-crop/evaluation.json").read_text())
    assert stored == found


def test_evaluate_refuses_a_derived_dataset_of_features_that_the_student_does_not_know(
    models: Path, cache: Path, tmp_path: Path
) -> None:
    config = TrainConfig.checked(dataset="noise", backbone="small", epochs=1, batch_size=4, lr=1e-3, method="eps")
    run_training(config, cache, tmp_path / "run")
    derive(models, cache, "jpeg:75", adm=str(write_adm(tmp_path / "other.safetensors", seed=7)))
    with pytest.raises(UserError, match="built with other settings than those of the training"):
        run_evaluation(tmp_path / "run", cache, "noise@jpeg-75")
    derive(models, cache, "jpeg:50", features=("image",))
    with pytest.raises(
        UserError, match=r"build --from-cache .*--dataset noise --perturb jpeg:50 --as noise@jpeg-50 --splits test"
    ):
        run_evaluation(tmp_path / "run", cache, "noise@jpeg-50")


def test_the_command_prints_one_object_for_one_perturbation_and_a_list_for_several(models: Path, cache: Path) -> None:
    common = [
        "build", "--cache", str(cache), "--from-cache", "--dataset", "noise", "--adm", str(models / "adm.safetensors"),
        "--device", "cpu",
    ]  # fmt: skip
    one = CliRunner().invoke(app, [*common, "--perturb", "jpeg:75", "--json"])
    assert one.exit_code == 0, one.output
    assert json.loads(one.stdout)["origin"]["perturbation"] == "jpeg:75"
    two = CliRunner().invoke(app, [*common, "--perturb", "jpeg:75", "--perturb", "blur:1", "--json"])
    builds = json.loads(two.stdout)["builds"]
    assert [build["dataset"] for build in builds] == ["noise@jpeg-75", "noise@blur-1"]
    assert [build["adm_calls"] for build in builds] == [0, 6]
    shown = CliRunner().invoke(app, [*common, "--perturb", "jpeg:75", "--perturb", "blur:1"])
    assert "noise@jpeg-75 at revision" in shown.stdout
    assert "noise@blur-1 at revision" in shown.stdout
    listed = CliRunner().invoke(app, ["cache", "ls", str(cache)])
    assert "from noise by blur:1" in listed.stdout
    assert "from image (perturb kind jpeg, strength 75.0)" in " ".join(listed.stdout.split())


def test_harmonize_makes_another_feature(models: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", {"train": 1, "test": 1})
    values = {**settings(models, tmp_path / "c"), "sources": (images,), "features": ("image,eps",)}
    plain = run_build(BuildConfig.checked(**values), Silent())
    other = run_build(BuildConfig.checked(**values, harmonize="jpeg:95"), Silent())
    assert other["features"]["eps"]["fingerprint"] != plain["features"]["eps"]["fingerprint"]
    assert (other["adm_calls"], other["decoded"]) == (4, 4)
    (derived,) = derive(models, tmp_path / "c", "jpeg:75", harmonize="jpeg:95")
    spec = Cache.open(tmp_path / "c").open_feature(derived["features"]["image"]["fingerprint"]).spec
    assert spec["harmonize"] == {"algorithm": 1, "codec": "jpeg", "quality": 95}
    assert spec["perturb"] == {"algorithm": 1, "kind": "jpeg", "strength": 75.0}
