"""Training through webdataset: the same content as by the cache's reader, and the promises of a training."""

from __future__ import annotations

import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from distil_cache.cache.export.webdataset import export_build
from distil_cache.cache.local_copy.reader import LocalCopy
from distil_cache.cache.store import Cache
from distil_cache.errors import UsageError, UserError
from distil_cache.train.config import TrainConfig
from distil_cache.train.data.dataset import FeatureDataset
from distil_cache.train.data.select import split_rows
from distil_cache.train.data.streamed import StreamedDataset
from distil_cache.train.engine.loop import run_training
from recorded_progress import Signalling
from run_state import newest
from safetensors.torch import load_file
from small_cache import make_cache, rows

FEATURES = ("image", "eps", "teacher")
BATCH = 16


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = rows("train", 45, {"adm": 30, "sd": 22})
    return make_cache(tmp_path_factory.mktemp("streamed") / "cache", table, form="webdataset")[0].root


@pytest.fixture(scope="module")
def export(root: Path) -> Path:
    out = root.parent / "export"
    export_build(Cache.open(root), out, dataset="pictures", samples_per_shard=30)
    return out


def _parts(root: Path, export: Path | None) -> tuple[FeatureDataset, StreamedDataset]:
    cache = Cache.open(root)
    (build,) = cache.builds().all()
    table = split_rows(cache.datasets().read("pictures"), "train", "pictures")
    make = {"split": "train", "purpose": "the test"}
    return (
        FeatureDataset(cache, build, table, FEATURES, **make),
        StreamedDataset(cache, build, table, FEATURES, **make, export=export),
    )


def settings(**changes: object) -> TrainConfig:
    fixed = {"dataset": "pictures", "backbone": "small", "epochs": 2, "batch_size": BATCH, "lr": 1e-3}
    return TrainConfig.checked(**{**fixed, "reader": "webdataset", **changes})


@pytest.mark.parametrize("exported", [False, True])
def test_a_streamed_batch_has_the_content_that_our_reader_reads_for_its_rows(
    root: Path, export: Path, exported: bool
) -> None:
    ours, streamed = _parts(root, export if exported else None)
    image, eps, teacher = (ours.read(name, np.arange(len(ours))) for name in FEATURES)
    seen: list[int] = []
    flips: list[bool] = []
    for batch in streamed.epoch(seed=1, epoch=2, batch_size=BATCH):
        seen += batch.rows.tolist()
        flips += batch.flip.tolist()
        assert torch.equal(batch.features["image"], torch.from_numpy(image[batch.rows]))
        assert torch.equal(batch.features["eps"], torch.from_numpy(eps[batch.rows]))
        view = batch.flip.numpy().astype(int)  # the views are identity and hflip
        assert torch.equal(batch.features["teacher"], torch.from_numpy(teacher[batch.rows, view]))
        assert batch.label.tolist() == ours.label[batch.rows].tolist()
        assert batch.whole == len(batch.rows)
    assert sorted(seen) == list(range(len(ours)))
    assert 0.2 < np.mean(flips) < 0.8


def test_the_order_follows_from_seed_and_epoch_and_batches_can_be_skipped(root: Path) -> None:
    _, streamed = _parts(root, None)

    def order(seed: int, epoch: int, skip: int = 0) -> list[list[int]]:
        return [batch.rows.tolist() for batch in streamed.epoch(seed, epoch, BATCH, skip)]

    assert order(1, 1) == order(1, 1)
    assert order(1, 1)[2:] == order(1, 1, skip=2)
    assert order(1, 1) != order(1, 2)
    assert order(1, 1) != order(2, 1)
    digests = {streamed.epoch_digest(seed, epoch, size) for seed in (1, 2) for epoch in (1, 2) for size in (8, 16)}
    assert len(digests) == 8


def test_a_change_of_images_gets_the_rows_of_its_batch(root: Path) -> None:
    _, streamed = _parts(root, None)

    def marked(images: torch.Tensor, rows: np.ndarray, epoch: int) -> torch.Tensor:
        return images * 0 + torch.from_numpy(rows + epoch).to(torch.uint8)[:, None, None, None]

    for batch in streamed.epoch(0, 1, BATCH, change=partial(marked)):
        assert batch.features["image"][:, 0, 0, 0].tolist() == (batch.rows + 1).tolist()


def test_a_streamed_training_that_is_stopped_goes_on_as_if_it_had_not_been(
    root: Path, export: Path, tmp_path: Path
) -> None:
    config = settings(export=str(export))
    run_training(config, root, tmp_path / "whole", device="cpu")
    with pytest.raises(UserError, match="stopped"):
        run_training(config, root, tmp_path / "stopped", device="cpu", progress=Signalling(0.3, signal.SIGTERM))
    run_training(config, root, tmp_path / "stopped", device="cpu", resume=True)
    files = [tmp_path / name / "checkpoints" / newest(tmp_path / name).weights for name in ("whole", "stopped")]
    one, other = map(load_file, files)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_a_stream_cannot_do_is_refused_before_any_work(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not with --workers 2"):
        run_training(settings(), root, tmp_path / "run", device="cpu", workers=2)
    with pytest.raises(UsageError, match="Leave out --local-copy"):
        run_training(settings(), root, tmp_path / "run", device="cpu", local_copy=LocalCopy.at(tmp_path / "copy"))
    with pytest.raises(UsageError, match="Add --reader webdataset"):
        settings(reader="cache", export="tars")
    with pytest.raises(UsageError, match="holds one dataset"):
        settings(dataset=("a", "b"), export="tars")
    assert not (tmp_path / "run").exists()


def test_an_export_that_lacks_rows_ends_the_training_with_a_sentence(root: Path, export: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    shutil.copytree(export, short)
    specs = (short / "specs.json").read_text()
    (short / "specs.json").write_text(specs.replace('"train-000001.tar",', "").replace('"train-000001.tar"', ""))
    with pytest.raises(UserError, match="the tars lack rows of the training, which has 8"):
        run_training(settings(export=str(short), val_fraction=0.1), root, tmp_path / "run", device="cpu")
