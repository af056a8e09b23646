"""A dry run of a training refuses what the training would refuse, and writes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from distil_cache.cache.local_copy.reader import LocalCopy
from distil_cache.errors import DistilCacheError
from distil_cache.train.config import TrainConfig
from distil_cache.train.engine.dry_run import plan_training
from distil_cache.train.engine.loop import run_training
from small_cache import make_cache, rows


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = rows("train", 20, {"adm": 20})
    return make_cache(tmp_path_factory.mktemp("dry") / "cache", table, form="webdataset")[0].root


@pytest.mark.parametrize(
    ("changes", "workers", "copies"),
    [
        ({"reader": "webdataset"}, 2, False),
        ({"reader": "webdataset"}, 0, True),
        ({"reader": "webdataset", "export": "nowhere"}, 0, False),
        ({"init_from": "nowhere"}, 0, False),
        ({"initial_weights": "imagenet"}, 0, False),
    ],
)
def test_a_dry_run_refuses_in_the_words_of_the_training(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], workers: int, copies: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    config = TrainConfig.checked(dataset="pictures", backbone="small", epochs=1, batch_size=8, **changes)
    with pytest.raises(DistilCacheError) as planned:
        plan_training(config, root, Path("run"), workers=workers, copies=copies)
    assert list(tmp_path.iterdir()) == []
    copy = LocalCopy.at(tmp_path / "copy") if copies else None
    with pytest.raises(DistilCacheError) as trained:
        run_training(config, root, Path("run"), device="cpu", workers=workers, local_copy=copy)
    assert str(planned.value) == str(trained.value)


def test_a_dry_run_of_streamed_rows_counts_them(root: Path, tmp_path: Path) -> None:
    config = TrainConfig.checked(dataset="pictures", backbone="small", epochs=2, batch_size=8, reader="webdataset")
    told = plan_training(config, root, tmp_path / "run")
    assert told["samples"]["train"] + told["samples"]["val"] == 40
    assert told["steps"] == 2 * told["steps_per_epoch"]
    assert not (tmp_path / "run").exists()
