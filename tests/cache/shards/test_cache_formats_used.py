"""Both stages on both shard formats: the same build, the same training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from distil_cache.cache.maintenance.verify import verify
from distil_cache.cache.store import FORMATS, Cache
from distil_cache.errors import UsageError
from distil_cache.pipeline.build import run_build
from distil_cache.pipeline.config import BuildConfig
from distil_cache.progress import Silent
from distil_cache.train.config import TrainConfig
from distil_cache.train.engine.loop import run_training
from small_cache import make_cache, rows
from small_models import STEPS, write_adm, write_images, write_teacher


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    write_adm(folder / "adm.safetensors")
    write_teacher(folder / "teacher.safetensors")
    write_images(folder / "images", {"train": 3})
    return folder


def config(material: Path, cache: Path, **changes: Any) -> BuildConfig:
    values: dict[str, Any] = {
        "sources": (material / "images",), "cache": cache, "dataset": "noise", "adm": str(material / "adm.safetensors"),
        "teacher": "small", "teacher_weights": material / "teacher.safetensors", "steps": STEPS, "batch_size": 4,
        "shard_size": 4, "decode_threads": 1, "device": "cpu",
    }  # fmt: skip
    return BuildConfig.checked(**{**values, **changes})


def contents(root: Path) -> dict[str, tuple[bytes, ...]]:
    return {
        store.folder.name: tuple(store.read(shard).tobytes() for shard in store.marker_ids())
        for store in Cache.open(root).features()
    }


def formats(root: Path) -> set[str]:
    return {marker.format for store in Cache.open(root).features() for marker in store.markers()}


def test_builds_in_either_format_hold_the_same_rows_and_each_reuses_the_others(material: Path, tmp_path: Path) -> None:
    results = {
        form: run_build(config(material, tmp_path / form, format=form), Silent(), dry_run=False) for form in FORMATS
    }
    one, two = results.values()
    assert one["build"] == two["build"]
    assert contents(tmp_path / "zarr") == contents(tmp_path / "webdataset")
    assert {form: formats(tmp_path / form) for form in FORMATS} == {form: {form} for form in FORMATS}

    more = config(material, tmp_path / "webdataset", format="zarr", features=("image,eps,dire,teacher,recon",))
    again = run_build(more, Silent(), dry_run=False)
    computed = {name: feature["computed"] for name, feature in again["features"].items()}
    assert computed == {"image": 0, "eps": 0, "dire": 0, "teacher": 0, "recon": 6}
    assert formats(tmp_path / "webdataset") == set(FORMATS)
    assert verify(Cache.open(tmp_path / "webdataset")) == []


def test_a_format_that_is_none_is_refused(material: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--format pickle"):
        config(material, tmp_path, format="pickle")


def test_training_from_either_format_gives_the_same_losses(tmp_path: Path) -> None:
    table = [*rows("train", 30, {"adm": 30}), *rows("val", 8, {"adm": 8})]
    losses = {}
    for form in FORMATS:
        cache, _ = make_cache(tmp_path / form, table, form=form, shard_rows=16)
        assert formats(cache.root) == {form}
        settings = TrainConfig.checked(dataset="pictures", backbone="small", epochs=2, batch_size=16, lr=1e-3)
        run_training(settings, cache.root, tmp_path / f"run-{form}")
        lines = (tmp_path / f"run-{form}" / "metrics.jsonl").read_text().splitlines()
        losses[form] = [
            {name: value for name, value in json.loads(line).items() if "second" not in name} for line in lines
        ]
    one, two = losses.values()
    assert one == two
    assert len(one) == 2
    assert one[1]["loss"] < one[0]["loss"]
