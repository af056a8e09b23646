"""A training of two processes while its cache is compacted and collected: the weights are those of a training left alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from distil_cache.cache.maintenance.compact import compact
from distil_cache.cache.maintenance.gc import collect
from distil_cache.cache.maintenance.verify import verify
from distil_cache.cache.store import Cache
from fault_checks import rows as rows_of
from patience import PATIENCE, until
from safetensors.torch import load_file
from small_cache import make_cache, rows

pytestmark = pytest.mark.slow
SETTINGS = {"dataset": ("pictures",), "backbone": "small", "batch_size": 9, "lr": 1e-3, "epochs": 2}
SCRIPT = """
import json, os, sys, time
from pathlib import Path
import torch
from distil_cache.errors import UserError
from distil_cache.train.config import TrainConfig
from distil_cache.train.data.dataset import FeatureDataset
from distil_cache.train.data.readers import ReaderPool
from distil_cache.train.engine import loop
from distil_cache.train.engine.distributed import join_process_group

torch.set_num_threads(1)
settings, folder = json.loads(sys.argv[1])
folder, rank = Path(folder), os.environ["RANK"]
open_session, epoch = loop.open_session, FeatureDataset.epoch


def let(what):
    (folder / f"{what}-asked").touch()
    while not (folder / f"{what}-done").exists():
        time.sleep(0.005)


def opened_late(*arguments):
    let("opening")
    return open_session(*arguments)


def disturbed_epoch(self, seed, number, *rest):
    if number == 2:
        let("epoch")
    return epoch(self, seed, number, *rest)


def train(cache, run):
    try:
        loop.train_run(TrainConfig.checked(**settings), folder / cache, folder / "runs" / run, ranks, readers, resume=False)
        return ""
    except UserError as error:
        return str(error)


with ReaderPool() as readers, join_process_group("cpu") as ranks:
    if rank == "1":
        loop.open_session = opened_late
    told = [train("opening", "opening")]
    loop.open_session = open_session
    told.append(train("opening", "again"))
    if rank == "0":
        FeatureDataset.epoch = disturbed_epoch
    told.append(train("epoch", "beside"))
    FeatureDataset.epoch = epoch
    told.append(train("alone", "alone"))
(folder / f"told-{rank}.json").write_text(json.dumps(told))
"""


@dataclass
class Beside:
    """What came of trainings in two processes beside which a cache was compacted and collected.

    folder : holds the caches and runs. merged : by moment, shards that were merged. rows : the caches' rows before. told : by
    process, the error that ended each training.
    """

    folder: Path
    merged: dict[str, int]
    rows: dict[str, str]
    told: list[list[str]]


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Beside:
    folder = tmp_path_factory.mktemp("beside")
    table = [*rows("train", 21, {"adm": 18}), *rows("val", 6, {"adm": 5})]
    make_cache(folder / "alone", table, shard_rows=4)
    for name in ("opening", "epoch"):
        shutil.copytree(folder / "alone", folder / name)
    (folder / "train.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(folder / "train.py"), json.dumps([SETTINGS, str(folder)])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    merged = {}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    ) as run:
        try:
            for name in ("opening", "epoch"):
                until((folder / f"{name}-asked").exists, run)
                done: dict[str, Any] = compact(Cache.open(folder / name), rows=64)
                merged[name] = sum(feature["shards"] for feature in done["features"].values())
                collect(Cache.open(folder / name), delete_them=True, grace_hours=0)
                (folder / f"{name}-done").touch()
            errors = run.communicate(timeout=PATIENCE)[1]
        finally:
            run.terminate()
    assert run.returncode == 0, errors
    told = [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(2)]
    return Beside(folder, merged, rows_of(folder / "alone"), told)


def test_a_cache_compacted_and_collected_in_an_epoch_changes_no_weight(beside: Beside) -> None:
    assert beside.merged["epoch"] > 10
    assert [of_rank[2:] for of_rank in beside.told] == [["", ""]] * 2
    ours, theirs = (newest(beside.folder, run) for run in ("beside", "alone"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_processes_between_which_shards_were_merged_both_end_with_a_sentence_and_train_when_asked_again(
    beside: Beside,
) -> None:
    assert beside.merged["opening"] > 10
    for of_rank in beside.told:
        assert "the processes do not see the same shards in the cache" in of_rank[0]
        assert of_rank[1] == ""
    assert newest(beside.folder, "again").keys() == newest(beside.folder, "alone").keys()


@pytest.mark.parametrize("name", ["opening", "epoch"])
def test_no_row_is_lost_by_what_ran_beside_a_training(beside: Beside, name: str) -> None:
    assert verify(Cache.open(beside.folder / name)) == []
    assert rows_of(beside.folder / name) == beside.rows


def newest(folder: Path, run: str) -> dict[str, torch.Tensor]:
    checkpoints = folder / "runs" / run / "checkpoints"
    return load_file(checkpoints / json.loads((checkpoints / "last.json").read_text())["weights"])
