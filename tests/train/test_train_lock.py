"""Two commands in one folder at once: one succeeds, the other is refused with a message, and results are not mixed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from distil_cache.cache.records.builds import BuildStore
from distil_cache.errors import DistilCacheError, ReadOnlyError, UserError
from distil_cache.progress import Silent
from distil_cache.storage.atomic import create_with
from distil_cache.train.config import TrainConfig
from distil_cache.train.engine import loop
from distil_cache.train.engine.loop import run_training
from distil_cache.train.evaluation.evaluate import run_evaluation
from distil_cache.train.runs.folder import RunFolder
from distil_cache.train.runs.lock import RunLock
from distil_cache.train.sweep import _note, plan_sweep
from patience import PATIENCE
from recorded_progress import Recorded
from run_state import best
from small_cache import make_cache, rows

SETTINGS: dict[str, Any] = {"dataset": "pictures", "backbone": "small", "epochs": 1, "batch_size": 16, "lr": 1e-3}
BUSY = "another command is using this run"
TRAIN = """
import sys
from pathlib import Path
from distil_cache.train.config import TrainConfig
from distil_cache.train.engine.loop import run_training

run_training(TrainConfig.checked(dataset="pictures", backbone="small", epochs=1, batch_size=16), *map(Path, sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "cache"
    make_cache(folder, [*rows("train", 24, {"adm": 20}), *rows("test", 8, {"adm": 8})])
    return folder


def train(cache: Path, run: Path, *, resume: bool = False, progress: Any = None, **changes: Any) -> dict[str, object]:
    return run_training(TrainConfig.checked(**SETTINGS | changes), cache, run, resume=resume, progress=progress)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def between_scan_and_claim(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object]) -> None:
    """Do something once, after a training has found its folder free and before it creates its run."""
    prepared = loop.open_session

    def open_session(*arguments: Any) -> Any:
        monkeypatch.setattr(loop, "open_session", prepared)
        meanwhile()
        return prepared(*arguments)

    monkeypatch.setattr(loop, "open_session", open_session)


def no_locks(handle: int, operation: int) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_a_training_whose_folder_becomes_another_run_first_is_refused_and_changes_nothing(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    between_scan_and_claim(monkeypatch, lambda: train(cache, run, epochs=2))
    with pytest.raises(
        UserError, match=r"became the run run-[0-9a-f]{8} meanwhile \(begun 20.* UTC\)\. Choose another"
    ):
        train(cache, run, lr=0.5)
    assert RunFolder(run).read().config.lr == 1e-3
    assert len(lines(run)) == 2
    assert train(cache, run, resume=True, epochs=2)["epochs"] == 2


@pytest.mark.parametrize("locks", [True, False])
def test_of_two_trainings_started_at_once_one_is_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, locks: bool
) -> None:
    if not locks:
        monkeypatch.setattr(fcntl, "flock", no_locks)
    together, prepared = threading.Barrier(2), loop.open_session

    def open_session(*arguments: Any) -> Any:
        session = prepared(*arguments)
        together.wait(PATIENCE)
        return session

    monkeypatch.setattr(loop, "open_session", open_session)

    def attempt(epochs: int) -> dict[str, object] | str:
        try:
            return train(cache, tmp_path / "run", epochs=epochs)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(attempt, (1, 2)))
    refused = [one for one in found if isinstance(one, str)]
    assert len(refused) == 1
    assert BUSY in refused[0] if locks else "became the run" in refused[0] or BUSY in refused[0]
    assert len(lines(tmp_path / "run")) == RunFolder(tmp_path / "run").read().config.epochs


class Paused(Silent):
    """A training that waits in its first step until it is released."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def advance(self, stage: str, units: int) -> None:
        if units:
            self.begun.set()
            assert self.go.wait(PATIENCE)


def test_a_run_in_which_a_training_is_at_work_is_not_resumed_and_the_sentence_says_whose_it_is(
    cache: Path, tmp_path: Path
) -> None:
    run, progress = tmp_path / "run", Paused()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(train, cache, run, progress=progress)
        assert progress.begun.wait(PATIENCE)
        try:
            who = rf"{BUSY} \(process {os.getpid()} on {re.escape(platform.node())}, since 20.* UTC\)"
            for resume in (True, False):
                with pytest.raises(UserError, match=who):
                    train(cache, run, resume=resume)
        finally:
            progress.go.set()
        assert first.result()["epochs"] == 1
    assert train(cache, run, resume=True, epochs=2)["epochs"] == 2


def test_a_training_killed_while_it_creates_its_run_leaves_a_folder_that_the_next_one_uses(
    cache: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    killed = (
        "import os\nlink = os.link\n"
        f"os.link = lambda a, b: os.kill(os.getpid(), {signal.SIGKILL}) if b.name == 'config.json' else link(a, b)\n{TRAIN}"
    )
    done = subprocess.run([sys.executable, "-c", killed, str(cache), str(run)], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = sorted(path.name for path in run.iterdir())
    assert len(left) == 2
    assert left[0].startswith(".tmp-config.json-")
    train(cache, run)
    assert not list(run.rglob(".tmp-*"))


def test_a_file_system_without_hard_links_holds_runs(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, link = tmp_path / "run", os.link

    def no_links(source: Path, target: Path) -> None:
        if target.is_relative_to(run):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        link(source, target)

    monkeypatch.setattr(os, "link", no_links)
    between_scan_and_claim(monkeypatch, lambda: train(cache, run))
    with pytest.raises(UserError, match="became the run"):
        train(cache, run, lr=0.5)
    assert len(lines(run)) == 1
    assert not create_with(run / "config.json", lambda path: path.write_text("other"), needs_links=False)


def test_a_file_system_without_locks_holds_runs(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", no_locks)
    train(cache, tmp_path / "run")
    (tmp_path / "run" / ".tmp-of-another-command").touch()
    assert train(cache, tmp_path / "run", resume=True, epochs=2)["epochs"] == 2
    assert not (tmp_path / "run" / ".tmp-of-another-command").exists()


def test_a_refused_training_leaves_no_folder_and_touches_no_other(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(DistilCacheError):
        train(cache, tmp_path / "run", dataset="absent")
    assert not (tmp_path / "run").exists()
    (tmp_path / "thesis").mkdir()
    for name in ("thesis.tex", ".tmp-draft"):
        (tmp_path / "thesis" / name).touch()
    with pytest.raises(UserError, match="neither empty nor a run"):
        train(cache, tmp_path / "thesis")
    assert sorted(path.name for path in (tmp_path / "thesis").iterdir()) == [".tmp-draft", "thesis.tex"]


def test_a_finished_run_that_may_only_be_read_is_returned(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(cache, tmp_path / "run")
    opening = os.open

    def read_only(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_RDWR and Path(path).name == "training.lock":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opening(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", read_only)
    assert train(cache, tmp_path / "run", resume=True) == first


def test_sweeps_started_at_once_in_one_folder_all_record_their_runs(tmp_path: Path) -> None:
    grids = [{"seed": [str(2 * number), str(2 * number + 1)]} for number in range(12)]
    plans = [plan_sweep({**SETTINGS, "dataset": ("pictures",)}, grid) for grid in grids]
    with ThreadPoolExecutor(12) as pool:
        for done in [pool.submit(_note, tmp_path / "sweep", *one) for one in zip(grids, plans, strict=True)]:
            done.result()
    found = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["runs"]
    assert sorted(found) == sorted(f"seed={seed}" for seed in range(24))


def test_an_evaluation_names_the_student_that_it_scored_though_the_training_has_replaced_it(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    train(cache, run)
    scored, loaded = best(run).weights.sha256, RunFolder.load_student

    def load_student(folder: RunFolder) -> Any:
        found = loaded(folder)
        shutil.rmtree(run)
        train(cache, run, seed=1)
        return found

    monkeypatch.setattr(RunFolder, "load_student", load_student)
    assert run_evaluation(run, cache, "pictures")["checkpoint"]["sha256"] == scored
    assert best(run).weights.sha256 != scored


def test_a_hold_ends_with_its_block(tmp_path: Path) -> None:
    with RunLock(tmp_path / "run") as first:
        first.take()
        first.take()
        with pytest.raises(UserError, match=BUSY), RunLock(tmp_path / "run") as second:
            second.take()
    with RunLock(tmp_path / "run") as third:
        third.take()


def test_a_training_that_the_cache_cannot_record_says_so(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: BuildStore, *arguments: object) -> None:
        raise ReadOnlyError("refs: cannot be written.")

    monkeypatch.setattr(BuildStore, "add_ref", refused)
    recorded = Recorded()
    train(cache, tmp_path / "run", progress=recorded)
    assert [said for said in recorded.said if "does not know that this run uses it" in said]
