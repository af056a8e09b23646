"""Resuming in the middle of an epoch: with the remaining samples, or from the beginning of the epoch."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distil_cache.cache.maintenance.compact import compact
from distil_cache.cache.store import Cache
from distil_cache.commands.show.train import show_sweep, show_train
from distil_cache.errors import UserError
from distil_cache.progress import Silent
from distil_cache.train.config import TrainConfig
from distil_cache.train.data.dataset import Batch
from distil_cache.train.data.shuffle import ReadBlocks, batch_sizes, digest, sequential, shuffled
from distil_cache.train.engine import loop
from distil_cache.train.engine.loop import run_training
from distil_cache.train.runs.checkpoint import restart_epoch
from distil_cache.train.sweep import run_sweep
from safetensors.torch import load_file
from small_cache import make_cache, rows
from torch import Tensor

SETTINGS: dict[str, Any] = {"dataset": "pictures", "backbone": "small", "epochs": 2, "batch_size": 12, "lr": 1e-3}
AGAIN = "was restarted, because the order of its samples has changed since it was stopped"


class StopAfter(Silent):
    """Interrupt a training after some samples; it ends with the following step. ``messages`` has its messages."""

    def __init__(self, samples: int = 1 << 30) -> None:
        self.left = samples
        self.messages: list[str] = []

    def advance(self, stage: str, units: int) -> None:
        self.left -= units
        if self.left <= 0 < units + self.left:
            os.kill(os.getpid(), signal.SIGINT)

    def say(self, text: str) -> None:
        self.messages.append(text)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of shards of at most eight rows, as after many small builds."""
    folder = tmp_path_factory.mktemp("made") / "cache"
    make_cache(folder, rows("train", 36, {"adm": 24, "sd": 20}), shard_rows=8)
    return folder


@pytest.fixture
def cache(made: Path, tmp_path: Path) -> Cache:
    shutil.copytree(made, tmp_path / "cache")
    return Cache.open(tmp_path / "cache")


def stop(cache: Cache, run: Path, samples: int, **changes: Any) -> None:
    with pytest.raises(UserError, match="stopped in epoch"):
        run_training(TrainConfig.checked(**SETTINGS | changes), cache.root, run, progress=StopAfter(samples))
    assert saved(run)["progress"]["batch"] > 0


def resume_run(cache: Cache, run: Path, messages: list[str] | None = None, **changes: Any) -> dict[str, Any]:
    progress = StopAfter()
    result = run_training(
        TrainConfig.checked(**SETTINGS | changes), cache.root, run, resume=True, workers=0, progress=progress
    )
    if messages is not None:
        messages += progress.messages
    return result


def saved(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "checkpoints" / "last.json").read_text())
    return found


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "checkpoints" / saved(run)["weights"])


def metrics(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def assert_same(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert metrics(one) == metrics(other)


def test_an_epoch_whose_shards_were_compacted_restarts_with_the_weights_of_its_beginning(
    cache: Cache, tmp_path: Path
) -> None:
    resume_run(cache, tmp_path / "between", epochs=1)
    samples = saved(tmp_path / "between")["progress"]["step"] * 12
    stop(cache, tmp_path / "within", samples + 30)
    compact(Cache.open(cache.root))

    messages: list[str] = []
    result = resume_run(cache, tmp_path / "within", messages)
    resume_run(cache, tmp_path / "between")
    assert_same(tmp_path / "within", tmp_path / "between")
    assert result["restarted_epochs"] == saved(tmp_path / "within")["progress"]["restarted"] == [2]
    assert result["unchecked_epochs"] == []
    assert len(messages) == 1
    assert f"epoch 2 {AGAIN}" in messages[0]


def test_an_epoch_that_begins_again_learns_every_sample_once(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop(cache, tmp_path / "run", 30)
    compact(Cache.open(cache.root))
    trained: Counter[int] = Counter()
    prepared = loop.Session.batches

    def noted(session: loop.Session, state: loop.State) -> Any:
        for batch in prepared(session, state):
            assert isinstance(batch, Batch)
            trained.update(batch.rows.tolist() if state.epoch == 0 else ())
            yield batch

    monkeypatch.setattr(loop.Session, "batches", noted)
    result = resume_run(cache, tmp_path / "run")
    assert trained == Counter(range(result["samples"]["train"]))


def test_the_first_epoch_begins_again_with_the_initial_weights(cache: Cache, tmp_path: Path) -> None:
    stop(cache, tmp_path / "stopped", 30)
    compact(Cache.open(cache.root))
    assert resume_run(cache, tmp_path / "stopped")["restarted_epochs"] == [1]
    run_training(TrainConfig.checked(**SETTINGS), cache.root, tmp_path / "whole")
    assert_same(tmp_path / "stopped", tmp_path / "whole")


def test_an_epoch_may_be_stopped_and_begun_again_more_than_once(cache: Cache, tmp_path: Path) -> None:
    run = tmp_path / "run"
    stop(cache, run, 30)
    compact(Cache.open(cache.root), 32)
    with pytest.raises(UserError, match="stopped in epoch 1"):
        run_training(TrainConfig.checked(**SETTINGS), cache.root, run, resume=True, progress=(again := StopAfter(30)))
    assert AGAIN in again.messages[0]
    compact(Cache.open(cache.root), 512)
    assert resume_run(cache, run)["restarted_epochs"] == [1]
    run_training(TrainConfig.checked(**SETTINGS), cache.root, tmp_path / "whole")
    assert_same(run, tmp_path / "whole")


def test_a_kill_just_after_an_epoch_was_set_back_changes_nothing(cache: Cache, tmp_path: Path) -> None:
    stop(cache, tmp_path / "run", 30)
    compact(Cache.open(cache.root))
    shutil.copytree(tmp_path / "run", tmp_path / "killed")
    restart_epoch(tmp_path / "killed" / "checkpoints")
    assert resume_run(cache, tmp_path / "run")["restarted_epochs"] == [1]
    assert resume_run(cache, tmp_path / "killed")["restarted_epochs"] == [1]
    assert_same(tmp_path / "run", tmp_path / "killed")


def test_an_epoch_with_the_same_order_resumes_where_it_stopped(cache: Cache, tmp_path: Path) -> None:
    run_training(TrainConfig.checked(**SETTINGS), cache.root, tmp_path / "whole")
    stop(cache, tmp_path / "parts", 30)
    step = saved(tmp_path / "parts")["progress"]["step"]
    messages: list[str] = []
    result = resume_run(cache, tmp_path / "parts", messages)
    assert (step > 0, messages, result["restarted_epochs"], result["unchecked_epochs"]) == (True, [], [], [])
    assert_same(tmp_path / "parts", tmp_path / "whole")


def test_a_state_without_an_order_resumes_and_reports_that_the_order_is_unverified(
    cache: Cache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_training(TrainConfig.checked(**SETTINGS), cache.root, tmp_path / "whole")
    run = tmp_path / "parts"
    stop(cache, run, 30)
    state = saved(run)
    del state["epoch_start"]
    for name in ("order", "restarted", "unchecked"):
        del state["progress"][name]
    (run / "checkpoints" / "last.json").write_text(json.dumps(state))

    with pytest.raises(UserError, match="stopped in epoch 1"):
        run_training(TrainConfig.checked(**SETTINGS), cache.root, run, resume=True, progress=StopAfter(60))
    messages: list[str] = []
    result = resume_run(cache, run, messages)
    assert (result["restarted_epochs"], result["unchecked_epochs"], messages) == ([], [1], [])
    assert_same(run, tmp_path / "whole")
    show_train(result)
    assert "epoch 1 was resumed from a state of an earlier version" in " ".join(capsys.readouterr().out.split())


def test_a_state_without_the_beginning_of_its_epoch_resumes_and_reports_it(cache: Cache, tmp_path: Path) -> None:
    stop(cache, tmp_path / "run", 30)
    state = saved(tmp_path / "run")
    del state["epoch_start"]
    (tmp_path / "run" / "checkpoints" / "last.json").write_text(json.dumps(state))
    compact(Cache.open(cache.root))
    messages: list[str] = []
    result = resume_run(cache, tmp_path / "run", messages)
    assert (result["restarted_epochs"], result["unchecked_epochs"]) == ([], [1])
    assert "epoch 1 was resumed" in messages[0]


def test_the_beginning_of_an_epoch_is_kept_only_while_the_epoch_lasts(cache: Cache, tmp_path: Path) -> None:
    run = tmp_path / "run"
    stop(cache, run, 100)
    assert len(list((run / "checkpoints").glob("step-*.safetensors"))) == 4
    resume_run(cache, run)
    assert len(list((run / "checkpoints").glob("step-*.safetensors"))) in (2, 3)
    assert saved(run)["epoch_start"] is None


def test_the_summary_of_a_sweep_names_the_runs_that_began_an_epoch_again(
    cache: Cache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**SETTINGS, "dataset": ("pictures",), "epochs": 1}
    with pytest.raises(UserError, match="stopped in epoch 1"):
        run_sweep(settings, {"seed": ["0", "1"]}, cache.root, tmp_path / "sweep", progress=StopAfter(30))
    compact(Cache.open(cache.root))
    result = run_sweep(settings, {"seed": ["0", "1"]}, cache.root, tmp_path / "sweep")
    show_sweep(result)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"Note: seed=0: epoch 1 {AGAIN}" in printed
    assert "Note: seed=1" not in printed


def test_the_digest_of_an_order_knows_shards_by_the_order_alone_and_keys_flips_and_batches_by_themselves() -> None:
    keys = np.array([b"%016d" % number for number in range(200)], dtype="S16")
    row = np.arange(200)
    whole = ReadBlocks.of(np.zeros(200, np.int64), row)
    order, sizes = shuffled(whole, 0, 1), batch_sizes(200, 32)
    same = digest(order, keys, sizes)
    assert same == digest(shuffled(ReadBlocks.of(np.full(200, 7), row + 5), 0, 1), keys, sizes)
    others = [
        digest(shuffled(ReadBlocks.of(row // 100, row), 0, 1), keys, sizes),
        digest(shuffled(whole, 0, 2), keys, sizes),
        digest(sequential(whole), keys, sizes),
        digest(order, keys[::-1], sizes),
        digest(type(order)(order.rows, ~order.flip, order.pool), keys, sizes),
        digest(order, keys, batch_sizes(200, 16)),
    ]
    assert len({same, *others}) == 7
