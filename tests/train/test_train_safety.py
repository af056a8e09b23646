"""A run keeps what it has: damage is noticed, a kill loses no line, and what a training reads stays in the cache."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distil_cache.cache.lease import FOLDER, read_leases
from distil_cache.errors import StoppedError, UserError
from distil_cache.progress import Silent
from distil_cache.report.inputs.runs import read_runs
from distil_cache.storage import atomic
from distil_cache.storage.atomic import exchange
from distil_cache.train.config import TrainConfig
from distil_cache.train.data.dataset import Batch, FeatureDataset
from distil_cache.train.engine import loop, resume
from distil_cache.train.engine.loop import run_training
from distil_cache.train.evaluation import evaluate
from distil_cache.train.evaluation.evaluate import run_evaluation
from distil_cache.train.runs import checkpoint, reference_checkpoint
from distil_cache.train.runs import folder as folder_module
from distil_cache.train.runs.checkpoint import save_weights
from distil_cache.train.runs.folder import RunFolder
from distil_cache.train.runs.lock import RunLock
from distil_cache.train.students.pixels import PixelStudent
from run_state import as_of_before, best, best_file, newest
from safetensors.torch import load_file
from small_cache import make_cache, rows

SETTINGS: dict[str, Any] = {"dataset": "pictures", "backbone": "small", "epochs": 2, "batch_size": 16, "lr": 1e-3}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "cache"
    make_cache(folder, [*rows("train", 24, {"adm": 20}), *rows("test", 8, {"adm": 8})])
    return folder


@pytest.fixture(scope="module")
def trained(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    train(cache, run)
    return run


@pytest.fixture(autouse=True)
def heeded() -> Iterator[None]:
    """Let Ctrl-C interrupt, also where a shell has started the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def train(cache: Path, run: Path, *, resume: bool = False, progress: Any = None, **changes: Any) -> dict[str, object]:
    return run_training(TrainConfig.checked(**SETTINGS | changes), cache, run, resume=resume, progress=progress)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("part", ["weights", "optimiser", "scores"])
def test_a_state_with_a_flipped_bit_is_not_resumed(cache: Path, trained: Path, tmp_path: Path, part: str) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    saved = newest(run)
    path = (
        run
        / "checkpoints"
        / {"weights": saved.weights, "optimiser": saved.optimiser, "scores": best(run).scores.name}[part]
    )
    flip_a_bit(path)
    with pytest.raises(UserError, match=rf"{path.name}: is damaged \(it is not the file that was written\)"):
        train(cache, run, resume=True, epochs=3)


def test_a_student_with_a_flipped_bit_is_neither_evaluated_nor_used_for_another_training(
    cache: Path, trained: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    flip_a_bit(best_file(run))
    with pytest.raises(UserError, match=rf"{best_file(run).name}: is damaged \(its tensors are not those"):
        run_evaluation(run, cache, "pictures")
    with pytest.raises(UserError, match=rf"{best_file(run).name}: is damaged"):
        train(cache, tmp_path / "next", init_from=str(run))


def test_a_state_of_before_which_names_no_digests_is_resumed(cache: Path, trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    last = run / "checkpoints" / "last.json"
    state = json.loads(last.read_text())
    assert set(state.pop("sha256")) == {state["weights"], state["optimiser"]}
    last.write_text(json.dumps(state))
    assert train(cache, run, resume=True, epochs=3)["epochs"] == 3


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_training_that_is_killed_around_its_last_state_has_all_its_lines(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    save = resume.save

    class Killed(BaseException):
        pass

    def dying(session: Any, folder: RunFolder, state: Any, scores: Any) -> None:
        if when == "after":
            save(session, folder, state, scores)
        if state.epoch == 2:
            raise Killed
        if when == "before":
            save(session, folder, state, scores)

    monkeypatch.setattr(loop, "save", dying)
    with pytest.raises(Killed):
        train(cache, tmp_path / "run")
    monkeypatch.setattr(loop, "save", save)
    train(cache, tmp_path / "run", resume=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]


@pytest.mark.parametrize("writes", range(5))
def test_a_kill_at_any_moment_of_a_commit_leaves_state_student_threshold_and_history_of_one_epoch(
    cache: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    class Killed(BaseException):
        pass

    replace, run = checkpoint.replace_file, tmp_path / "run"
    written: list[str] = []

    def dying(path: Path, write: Any) -> None:
        if path.parent.name == "checkpoints":
            if len(written) == writes:
                raise Killed
            written.append(path.name)
        replace(path, write)

    def not_deleted(folder: Path, saved: Any) -> None:
        raise Killed

    train(cache, run, epochs=1)
    first = newest(run)
    monkeypatch.setattr(checkpoint, "replace_file", dying)
    monkeypatch.setattr(checkpoint, "delete_old", not_deleted)
    with pytest.raises(Killed):
        train(cache, run, resume=True)
    monkeypatch.undo()
    committed = "last.json" in written
    assert (newest(run) == first) is not committed
    assert newest(run).progress.epoch == len(read_runs([run])[0].history) == 1 + committed
    found = RunFolder(run).load_student()
    assert (found.file, found.epoch) == (best(run).weights.name, newest(run).progress.best_epoch)
    assert found.calibration is not None
    train(cache, run, resume=True)
    assert {path.name for path in (run / "checkpoints").iterdir()} == newest(run).files | {"last.json"}
    ours, theirs = (load_file(best_file(one)) for one in (run, trained))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert RunFolder(run).load_student().calibration.threshold == best(trained).calibration.threshold


def test_the_student_and_the_threshold_of_an_earlier_version_are_used_until_a_training_finds_a_better_one(
    cache: Path, trained: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    as_of_before(run)
    found, ours = RunFolder(run).load_student(), RunFolder(trained).load_student()
    assert (found.file, found.sha256, found.calibration) == ("best.safetensors", ours.sha256, ours.calibration)
    assert run_evaluation(run, cache, "pictures")["checkpoint"]["epoch"] == ours.epoch
    assert read_runs([run])[0].calibration == ours.calibration
    train(cache, run, resume=True, epochs=12)
    assert best(run).epoch > 2
    assert {path.name for path in (run / "checkpoints").iterdir()} == newest(run).files | {"last.json"}
    assert RunFolder(run).load_student().epoch == best(run).epoch


def test_a_student_that_a_training_replaces_while_it_is_loaded_gives_way_to_the_next(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(cache, tmp_path / "run", epochs=1)
    read, before = folder_module.read_saved, newest(tmp_path / "run")
    train(cache, tmp_path / "run", resume=True, epochs=12)
    assert best(tmp_path / "run").epoch > 1
    answers = iter([before])
    monkeypatch.setattr(folder_module, "read_saved", lambda path: next(answers, None) or read(path))
    assert RunFolder(tmp_path / "run").load_student().file == best_file(tmp_path / "run").name


def test_a_lock_that_is_a_link_out_of_the_run_writes_nothing_there(cache: Path, trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (tmp_path / "precious").write_text("precious")
    (run / "training.lock").unlink()
    (run / "training.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match=r"training.lock: is a link that leads out of its folder"):
        train(cache, run, resume=True, epochs=3)
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("kind", ["student", "export.safetensors", "export.pth"])
def test_a_student_that_cannot_be_written_whole_is_a_sentence_and_nothing_is_left(tmp_path: Path, kind: str) -> None:
    student, path = PixelStudent.of("small", 3), tmp_path / kind
    tensors = student.state_dict()
    writers: dict[str, Callable[[], object]] = {
        "student": lambda: save_weights(path, student, {"epoch": "1"}),
        "export.safetensors": lambda: reference_checkpoint.create_whole(
            path, partial(checkpoint.save_tensors, tensors)
        ),
        "export.pth": lambda: reference_checkpoint.create_whole(path, partial(torch.save, tensors)),
    }
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(UserError, match="cannot be written"):
            writers[kind]()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["export.pth", "export[1].safetensors"])
def test_an_export_deletes_what_a_killed_one_left_of_the_same_file_and_nothing_that_is_being_written(
    tmp_path: Path, name: str
) -> None:
    for left in (f".tmp-{name}-{'0' * 16}", f".tmp-other-{'0' * 16}"):
        (tmp_path / left).mkdir()
        (tmp_path / left / name).write_bytes(b"half")

    def write(path: Path) -> None:  # meanwhile another command exports the same
        assert reference_checkpoint.create_whole(tmp_path / name, lambda other: other.write_bytes(b"first"))
        path.write_bytes(b"second")

    assert not reference_checkpoint.create_whole(tmp_path / name, write)
    assert (tmp_path / name).read_bytes() == b"first"
    assert {path.name for path in tmp_path.iterdir()} == {name, f".tmp-other-{'0' * 16}"}


class Interrupting(Silent):
    """Send signals to this process once the training has begun, and note the leases in the cache."""

    def __init__(self, cache: Path, *signals: int) -> None:
        self.cache, self.signals = cache, signals
        self.leases: list[tuple[str, tuple[str, ...]]] = []

    def advance(self, stage: str, units: int) -> None:
        if units and not self.leases:
            self.leases = [(lease.work, lease.features) for lease in read_leases(self.cache).live]
            for number in self.signals:
                os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_training_ends_with_the_code_of_its_signal(
    cache: Path, tmp_path: Path, number: int, code: int
) -> None:
    with pytest.raises(StoppedError, match=r"stopped in epoch 1 and saved\. Continue with --resume") as stopped:
        train(cache, tmp_path / "run", progress=Interrupting(cache, number))
    assert stopped.value.exit_code == code


def test_a_second_ctrl_c_ends_at_once_and_says_what_is_kept(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(StoppedError, match=r"stopped; the state after step 0 \(epoch 0\) is kept") as stopped:
        train(cache, tmp_path / "run", progress=Interrupting(cache, signal.SIGINT, signal.SIGINT))
    assert stopped.value.exit_code == 130
    assert train(cache, tmp_path / "run", resume=True)["epochs"] == 2


def test_ctrl_c_before_the_first_step_says_that_nothing_is_lost(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "open_session", interrupted)
    with pytest.raises(StoppedError, match=r"run: stopped before the first step, so nothing is lost"):
        train(cache, tmp_path / "run")


def test_a_training_holds_a_lease_on_the_features_that_it_reads(cache: Path, tmp_path: Path) -> None:
    progress = Interrupting(cache)
    train(cache, tmp_path / "run", progress=progress)
    ((work, features),) = progress.leases
    assert work == "train"
    assert {name.rpartition("-")[0] for name in features} == {"image", "eps", "teacher"}
    assert read_leases(cache).live == ()


def test_an_evaluation_holds_a_lease(
    cache: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    predict = evaluate.predict

    def looking(*arguments: Any, **options: Any) -> Any:
        seen.extend(lease.work for lease in read_leases(cache).live)
        return predict(*arguments, **options)

    monkeypatch.setattr(evaluate, "predict", looking)
    run_evaluation(Path(shutil.copytree(trained, tmp_path / "run")), cache, "pictures")
    assert seen == ["evaluate"]


def test_a_cached_value_that_is_no_number_is_named_with_its_image_and_shard(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epoch = FeatureDataset.epoch
    keys: list[str] = []

    def spoilt(self: FeatureDataset, *arguments: Any) -> Iterator[Batch]:
        for batch in epoch(self, *arguments):
            batch.features["eps"][3, 0, 0, 0] = np.inf
            keys.append(self.table["key"][int(batch.rows[3])].as_py())
            yield batch

    monkeypatch.setattr(FeatureDataset, "epoch", spoilt)
    (folder,) = cache.glob("features/eps-*")
    with pytest.raises(UserError, match=r"eps of image .* has values that are no finite numbers") as refused:
        train(cache, tmp_path / "run")
    assert f"image {keys[0]} (shard " in str(refused.value)
    assert f" in {folder})" in str(refused.value)
    assert "--lr" not in str(refused.value)


def no_locks(handle: int, operation: int) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_without_locks_a_lease_keeps_a_second_command_out_and_a_dead_ones_lease_does_not(
    cache: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", no_locks)
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    with RunLock(run) as lock:
        lock.take()
        with pytest.raises(UserError, match=rf"another command is using this run \(process {os.getpid()} on "):
            train(cache, run, resume=True, epochs=3)
    (run / FOLDER).mkdir(exist_ok=True)
    dead = run / FOLDER / f"host-1-{'0' * 16}.json"
    dead.write_text("{}")
    os.utime(dead, (0, 0))
    assert train(cache, run, resume=True, epochs=3)["epochs"] == 3
    assert list((run / FOLDER).iterdir()) == []


@pytest.mark.parametrize(("epoch", "free"), [("0", True), ("3", False)])
def test_what_a_killed_import_left_is_taken_over_and_a_student_of_a_training_is_not(
    tmp_path: Path, epoch: str, *, free: bool
) -> None:
    folder = RunFolder(tmp_path / "run")
    save_weights(folder.checkpoints / "best.safetensors", PixelStudent.of("small", 3), {"epoch": epoch})
    assert folder.is_free() is free


@pytest.mark.parametrize("can_exchange", [True, False])
def test_an_evaluation_replaces_another_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, can_exchange: bool
) -> None:
    new, target = tmp_path / "new", tmp_path / "evaluations" / "d-test-crop"
    for folder, text in ((new, "new"), (target, "old")):
        folder.mkdir(parents=True)
        (folder / "evaluation.json").write_text(text)
    (target / "gallery").mkdir()
    moved: list[bool] = []

    def watched(one: Path, other: Path) -> bool:
        moved.append(can_exchange and exchange(one, other))
        assert (other / "evaluation.json").exists()
        return moved[-1]

    monkeypatch.setattr(evaluate, "exchange", watched)
    evaluate._put(new, target)
    assert moved == [can_exchange]
    assert (target / "evaluation.json").read_text() == "new"
    assert [path.name for path in tmp_path.rglob("*")] == ["evaluations", "d-test-crop", "evaluation.json"]


def test_names_are_exchanged_at_once_or_nothing_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("1")
    other.write_text("2")
    assert exchange(one, other)
    assert (one.read_text(), other.read_text()) == ("2", "1")
    with pytest.raises(FileNotFoundError):
        exchange(one, tmp_path / "absent")
    monkeypatch.setattr(atomic.ctypes, "CDLL", lambda *arguments, **options: object())
    assert not exchange(one, other)
    assert (one.read_text(), other.read_text()) == ("2", "1")
