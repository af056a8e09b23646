"""Several processes under ``torchrun`` train on a global batch like one process."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from distil_cache.train.config import TrainConfig
from distil_cache.train.engine.loop import run_training
from patience import PATIENCE
from safetensors.torch import load_file
from small_cache import make_cache, rows
from torch import Tensor

SETTINGS = {
    "dataset": ("pictures",),
    "backbone": "small",
    "batch_size": 9,
    "lr": 1e-3,
    "clip_grad": 1.0,
    "pos_weight": "balanced",
}
SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
from distil_cache.cache.store import FeatureStore
from distil_cache.train.data.dataset import FeatureDataset
from distil_cache.train.sweep import run_sweep

torch.set_num_threads(1)
settings, grid, cache, folder = json.loads(sys.argv[1])
log = Path(folder).with_name(f"read-{os.environ['RANK']}.jsonl").open("a", buffering=1)


def logged(method, describe):
    def call(self, *arguments, **options):
        print(json.dumps(describe(self, *arguments)), file=log)
        return method(self, *arguments, **options)

    return call


FeatureDataset.epoch = logged(FeatureDataset.epoch, lambda _, seed, epoch, *__: ["epoch", epoch])
FeatureDataset.in_order = logged(FeatureDataset.in_order, lambda *_: ["validation"])
FeatureDataset._request = logged(FeatureDataset._request, lambda _, piece: ["wanted", *piece.rows.tolist()])
FeatureStore.read = logged(FeatureStore.read, lambda self, _, start, stop, *__: [self.feature, stop - start])
run_sweep(settings, grid, Path(cache), Path(folder), device="cpu")
"""
RESUME = """
import json, sys
from pathlib import Path
import torch
from distil_cache.train.config import TrainConfig
from distil_cache.train.engine.loop import train_run
from distil_cache.train.engine.distributed import join_process_group
from distil_cache.train.data.readers import ReaderPool

torch.set_num_threads(1)
settings, cache, runs = json.loads(sys.argv[1])
with ReaderPool() as readers, join_process_group("cpu") as ranks:
    agreed = [ranks.agree("the same"), ranks.agree(f"not the same {ranks.share.rank}")]
    (Path(runs[0]) / f"agreed-{ranks.share.rank}.json").write_text(json.dumps(agreed))
    for run in runs:
        result = train_run(TrainConfig.checked(**settings), Path(cache), Path(run), ranks, readers, resume=True)
        if result:
            print(json.dumps([run, result["restarted_epochs"]]), flush=True)
"""
STOPPED = "epochs=500,accumulate=1"


@dataclass
class Torchrun:
    """A sweep that two processes have run until SIGTERM stopped it in its third training."""

    cache: Path
    runs: Path
    errors: str


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Torchrun:
    folder = tmp_path_factory.mktemp("ranks")
    table = [*rows("train", 21, {"adm": 18}), *rows("val", 6, {"adm": 5}), *rows("test", 2, {"adm": 2})]
    cache, runs = make_cache(folder / "cache", table)[0].root, folder / "runs"
    (folder / "train.py").write_text(SCRIPT)
    grid = {"epochs": ["2", "500"], "accumulate": ["1", "2"]}
    arguments = json.dumps([SETTINGS, grid, str(cache), str(runs)])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    process = subprocess.Popen(
        [*command, str(folder / "train.py"), arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while process.poll() is None and not lines(runs / STOPPED):
        time.sleep(0.05)
    process.terminate()
    return Torchrun(cache, runs, process.communicate(timeout=PATIENCE)[1])


def newest(run: Path) -> dict[str, Tensor]:
    return load_file(run / "checkpoints" / json.loads((run / "checkpoints" / "last.json").read_text())["weights"])


def lines(run: Path) -> list[dict[str, float]]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_two_processes_train_on_a_global_batch_like_one_process(two: Torchrun, tmp_path: Path) -> None:
    run_training(TrainConfig.checked(**SETTINGS, epochs=2), two.cache, tmp_path / "one", device="cpu")
    whole = two.runs / "epochs=2,accumulate=1"
    for one, other in zip(lines(tmp_path / "one"), lines(whole), strict=True):
        for name in ("step", "loss", "bce", "kd", "val_bce", "val_ap", "val_acc", "lr"):
            assert other[name] == pytest.approx(one[name], rel=1e-3), name
    for name, weight in newest(tmp_path / "one").items():
        torch.testing.assert_close(newest(whole)[name], weight, rtol=1e-2, atol=2e-4)
    parts = lines(two.runs / "epochs=2,accumulate=2")
    assert [line["step"] for line in parts] == [line["step"] for line in lines(whole)]
    assert parts[0]["loss"] == pytest.approx(lines(whole)[0]["loss"], rel=0.2)


def test_each_process_reads_its_own_rows_and_every_row_is_read_by_one(two: Torchrun) -> None:
    logs = [
        [json.loads(line) for line in (two.runs.parent / f"read-{rank}.jsonl").read_text().splitlines()]
        for rank in range(2)
    ]
    for stage, count in ((["epoch", 1], 39), (["validation"], 11), (["epoch", 2], 39)):
        read = [log[log.index(stage) + 1 :] for log in logs]
        read = [list(itertools.takewhile(lambda line: line[0] not in ("epoch", "validation"), own)) for own in read]
        wanted = [[row for kind, *rows in own if kind == "wanted" for row in rows] for own in read]
        assert sorted(wanted[0] + wanted[1]) == list(range(count)), stage
        assert abs(len(wanted[0]) - len(wanted[1])) <= 5, stage
        decoded = [sum(rows[0] for kind, *rows in own if kind == "image") for own in read]
        assert sum(decoded) < 1.5 * count, stage  # small rows between two of its own are read over


@pytest.mark.slow
def test_processes_begin_an_epoch_whose_order_has_changed_again_together(two: Torchrun, tmp_path: Path) -> None:
    again, beginning = tmp_path / "again", tmp_path / "beginning"
    for run in (again, beginning):
        shutil.copytree(two.runs / STOPPED, run)
    state = json.loads((again / "checkpoints" / "last.json").read_text())
    epochs = state["progress"]["epoch"] + 1
    (beginning / "checkpoints" / "last.json").write_text(json.dumps(state["epoch_start"]))
    state["progress"]["order"] = "0" * 64
    (again / "checkpoints" / "last.json").write_text(json.dumps(state))
    for run in (again, beginning):
        record = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps({**record, "config": {**record["config"], "epochs": epochs}}))
    (tmp_path / "resume.py").write_text(RESUME)
    arguments = json.dumps([{**SETTINGS, "epochs": epochs}, str(two.cache), [str(again), str(beginning)]])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(tmp_path / "resume.py"), arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        [str(again), [epochs]],
        [str(beginning), []],
    ], done.stderr
    ours, theirs = newest(again), newest(beginning)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [json.loads((again / f"agreed-{rank}.json").read_text()) for rank in range(2)] == [[True, False]] * 2


def test_sigterm_stops_all_processes_at_the_same_step_and_one_process_can_resume(two: Torchrun) -> None:
    run = two.runs / STOPPED
    assert f"{run}: stopped in epoch" in two.errors
    saved = json.loads((run / "checkpoints" / "last.json").read_text())["progress"]
    assert saved["epoch"] >= 1
    record = json.loads((run / "config.json").read_text())
    record["config"]["epochs"] = saved["epoch"] + 1
    (run / "config.json").write_text(json.dumps(record))
    config = TrainConfig.checked(**SETTINGS, epochs=saved["epoch"] + 1)
    assert run_training(config, two.cache, run, resume=True, device="cpu")["epochs"] == saved["epoch"] + 1
