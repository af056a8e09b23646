"""Training and evaluation from an object store, by range reads or through a local copy, equal those from a disk."""

from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from counting_store import CountingStore, operations
from distil_cache.cache.local_copy.reader import LocalCopy
from distil_cache.cache.store import Cache
from distil_cache.cli import app
from distil_cache.storage import AnyPath, RemotePath, to_path
from distil_cache.train.config import TrainConfig
from distil_cache.train.data.dataset import FeatureDataset
from distil_cache.train.data.readers import LoaderOptions, ReaderPool
from distil_cache.train.engine.loop import run_training
from distil_cache.train.evaluation.evaluate import run_evaluation
from patience import PATIENCE
from small_cache import make_cache, rows
from typer.testing import CliRunner

TABLE = [*rows("train", 40, {"adm": 40}), *rows("val", 8, {"adm": 8}), *rows("test", 8, {"adm": 8})]
SETTINGS: dict[str, Any] = {"dataset": "pictures", "backbone": "small", "batch_size": 16, "lr": 1e-3}
FEATURES = ("image", "eps", "teacher")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A local cache and a run trained on it for two epochs and evaluated."""
    folder = tmp_path_factory.mktemp("local")
    make_cache(folder / "cache", TABLE, shard_rows=20)
    run_training(TrainConfig.checked(**SETTINGS, epochs=2), folder / "cache", folder / "run")
    run_evaluation(folder / "run", folder / "cache", "pictures")
    return folder / "cache", folder / "run"


def lines(run: Path) -> list[dict[str, Any]]:
    found = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if "second" not in name} for line in found]


def part_of(root: AnyPath, copy: LocalCopy | None = None) -> FeatureDataset:
    cache = Cache.open(root, copy)
    build = cache.builds().find("pictures")[0]
    table = cache.datasets().read("pictures")
    train = table.filter(np.array(table["split"].to_pylist()) == "train")
    return FeatureDataset(cache, build, train, FEATURES, split="train", purpose="the test")


def test_a_training_from_a_store_equals_one_from_a_disk_and_requests_each_block_of_rows_once(
    tmp_path: Path, local: tuple[Path, Path], counted: RemotePath
) -> None:
    cache, run = local
    counted.upload(cache)
    run_training(TrainConfig.checked(**SETTINGS, epochs=2), counted, tmp_path / "run")
    assert lines(tmp_path / "run") == lines(run)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["cache"] == "counted://bucket/cache"

    part = part_of(counted)
    list(part.epoch(0, 1, 16))
    operations()
    list(part.epoch(0, 2, 16))
    shards, views = 4, 2
    assert (
        operations() == ["read"] * (2 + views) * shards
    )  # image and eps, and the teacher by view: shards have one block


def test_the_features_of_several_blocks_are_asked_for_at_once(local: tuple[Path, Path], counted: RemotePath) -> None:
    counted.upload(local[0])
    part = part_of(counted)
    list(part.epoch(0, 1, 16))
    asked, enough = itertools.count(1), threading.Event()

    def wait(path: str, data: bytes) -> bytes:
        if next(asked) == 6:
            enough.set()
        assert enough.wait(PATIENCE), "nothing is answered before six have been asked for"
        return data

    CountingStore.answer = staticmethod(wait)
    list(part.epoch(0, 2, 16))
    assert enough.is_set()


@pytest.mark.parametrize("form", ["zarr", "webdataset"])
def test_batches_by_way_of_a_copy_are_those_of_the_cache(tmp_path: Path, counted: RemotePath, form: str) -> None:
    make_cache(tmp_path / "cache", TABLE, shard_rows=20, form=form)
    counted.upload(tmp_path / "cache")
    expected = list(part_of(tmp_path / "cache").epoch(0, 1, 16))
    for most in (1 << 30, 100_000, 0):  # all of it, some of it, nothing finds room
        copy = LocalCopy.at(tmp_path / f"copy-{most}", most)
        for one, other in zip(part_of(counted, copy).epoch(0, 1, 16), expected, strict=True):
            np.testing.assert_array_equal(one.rows, other.rows)
            assert all(bool((one.features[name] == other.features[name]).all()) for name in FEATURES)
        held = sum(path.stat().st_size for path in copy.folder.rglob("*") if path.suffix != ".json" and path.is_file())
        assert held <= most


@pytest.mark.slow
def test_over_s3_worker_processes_fill_a_copy_and_an_interrupted_run_resumes_with_it(
    tmp_path: Path, local: tuple[Path, Path], s3_bucket: str
) -> None:
    cache, run = local
    to_path(f"{s3_bucket}/cache").upload(cache)  # type: ignore[union-attr]
    there = ["--cache", f"{s3_bucket}/cache", "--dataset", "pictures"]
    settings = ["--backbone", "small", "--batch-size", "16", "--lr", "1e-3", "--run", str(tmp_path / "run")]
    copied = ["--local-copy", str(tmp_path / "copy"), "--local-copy-gib", "0.5"]
    for more in (["--epochs", "1"], ["--epochs", "2", "--resume", "--workers", "1", *copied]):
        result = CliRunner().invoke(app, ["train", *there, *settings, *more])
        assert result.exit_code == 0, result.output
    assert lines(tmp_path / "run") == lines(run)
    assert len(list((tmp_path / "copy").glob("*/*.zarr"))) == 4 + 4 + 4 + 1 + 1  # of val, image and eps alone

    result = CliRunner().invoke(app, ["evaluate", str(tmp_path / "run"), *there, *copied, "--json"])
    assert result.exit_code == 0, result.output
    expected = json.loads((run / "evaluations" / "pictures-test-crop" / "evaluation.json").read_text())
    assert json.loads(result.stdout)["metrics"] == expected["metrics"]


def test_a_bound_without_a_copy_is_refused() -> None:
    arguments = ["train", "--cache", "c", "--dataset", "d", "--run", "r", "--local-copy-gib", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "needs --local-copy" in result.output


def test_a_local_cache_is_read_by_one_thread(local: tuple[Path, Path]) -> None:
    names = set()
    part = part_of(local[0])
    read = part.stores["eps"].read

    def noted(*arguments: Any, **options: Any) -> Any:
        names.add(threading.get_ident())
        return read(*arguments, **options)

    part.stores["eps"].read = noted  # type: ignore[method-assign]
    with ReaderPool() as readers:
        list(part.epoch(0, 1, 16, loading=LoaderOptions(readers)))
    assert len(names) == 1
