"""Processes that are really killed at every stage of a commit, and processes that really race.

The file is also the program that the tests start: it forks one child for each kill, so that importing costs once.
"""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
import zarr
from distil_cache.cache.maintenance.verify import list_garbage, verify
from distil_cache.cache.records.datasets import SCHEMA, DatasetStore
from distil_cache.cache.spec import Spec
from distil_cache.cache.store import Cache

FSYNCS = 10
"""zarr.json, the data file, five folders of the array, shards/, the temporary marker, shards/ after the link."""
STAGES = [
    "before-cache", "before-spec", "before-create", "before-data", "torn-data",
    *(f"fsync-{n}" for n in range(1, FSYNCS + 1)), "before-link", "after-link", "before-unlink",
]  # fmt: skip
PATIENCE = 600
"""Seconds after which a child is stuck. (As a program, this file does not find the helpers of the tests.)"""
COMMITTED = ("fsync-10", "after-link", "before-unlink")


class Toy(Spec):
    feature: Literal["toy"] = "toy"
    algorithm: Literal[1] = 1


KEYS = [hashlib.sha256(bytes([n])).hexdigest()[:32] for n in range(12)]
ROWS = np.random.default_rng(1).normal(size=(12, 3, 8, 8)).astype(np.float16)


def write_everything(root: Path, before_commit: Callable[[], None] = lambda: None) -> str:
    store = Cache.create(root).feature(Toy())
    before_commit()
    return store.commit(KEYS, ROWS).data


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying_at_call(number: int, function: Callable[..., Any], *, after: bool = False) -> Callable[..., Any]:
    calls = 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and not after:
            die()
        result = function(*arguments, **options)
        if calls == number:
            die()
        return result

    return counted


def arm(stage: str) -> None:
    """Let this process die at a stage of the commit that follows."""
    write = zarr.Array.__setitem__

    def torn(array: Any, selection: Any, value: Any) -> None:
        write(array, selection, value)
        path = next(path for path in Path(str(array.store.root)).glob("c/**/*") if path.is_file())
        os.truncate(path, path.stat().st_size // 2)
        die()

    match stage.split("-"):
        case ["before", "create"]:
            zarr.create_array = die  # type: ignore[assignment]
        case ["before", "data"]:
            zarr.Array.__setitem__ = die  # type: ignore[method-assign]
        case ["torn", "data"]:
            zarr.Array.__setitem__ = torn  # type: ignore[method-assign]
        case ["fsync", number]:
            os.fsync = dying_at_call(int(number), os.fsync)
        case ["before", "link"]:
            os.link = die
        case ["after", "link"]:
            os.link = dying_at_call(1, os.link, after=True)
        case ["before", "unlink"]:
            Path.unlink = die  # type: ignore[method-assign]


def killed_child(root: Path, stage: str) -> int:
    """Fork a child that dies at ``stage`` of its commit and return the signal that ended it (0: none)."""
    child = os.fork()
    if child == 0:
        if stage in ("before-cache", "before-spec"):
            os.link = dying_at_call(1 if stage == "before-cache" else 2, os.link)
        write_everything(root, lambda: arm(stage))
        os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def race(root: Path, kind: str, racers: int = 3) -> list[str]:
    """Let several children come to ``os.link`` of the last step together; return what each then holds to be true."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(racers)
    answers = context.Queue()

    def racer(number: int) -> None:
        link = os.link

        def together(source: Any, target: Any) -> None:
            if Path(target).name.startswith("HEAD-000001") or Path(target).parent.name == "shards":
                barrier.wait(PATIENCE)
            link(source, target)

        os.link = together  # type: ignore[assignment]
        if kind == "commit":
            answers.put(write_everything(root))
        else:
            answers.put(DatasetStore(root / "datasets").write("d", table(number)))

    Cache.create(root).feature(Toy())
    children = [context.Process(target=racer, args=(number,)) for number in range(racers)]
    for child in children:
        child.start()
    found = [answers.get(timeout=PATIENCE) for _ in children]
    for child in children:
        child.join()
    return found


def table(number: int) -> pa.Table:
    row = dict.fromkeys(SCHEMA.names, "x") | {"key": KEYS[number], "label": 0, "width": 1, "height": 1, "bytes": 1}
    return pa.Table.from_pylist([row], schema=SCHEMA)


def run_this_file(*arguments: str) -> Any:
    result = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def kills(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    folder = tmp_path_factory.mktemp("kills")
    return folder, run_this_file("kill", str(folder), *STAGES)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    store = Cache.create(tmp_path_factory.mktemp("undisturbed")).feature(Toy())
    return store.commit(KEYS, ROWS).sha256


@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_any_stage_the_next_build_makes_the_undisturbed_bytes(
    kills: tuple[Path, dict[str, int]], undisturbed: str, stage: str
) -> None:
    folder, signals = kills
    assert signals[stage] == signal.SIGKILL
    cache = Cache.create(folder / stage)
    assert verify(cache) == []
    store = cache.feature(Toy())
    assert store.has(store.shard_id(KEYS)) == (stage in COMMITTED)
    marker = store.commit(KEYS, ROWS)
    assert marker.sha256 == undisturbed
    np.testing.assert_array_equal(store.read(marker.shard), ROWS)
    assert verify(cache) == []


def test_the_stages_are_all_the_flushes_that_a_commit_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Cache.create(tmp_path).feature(Toy())
    calls: list[None] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: calls.append(fsync(handle)))
    store.commit(KEYS, ROWS)
    assert len(calls) == FSYNCS


def test_what_a_killed_writer_left_is_counted_as_garbage(kills: tuple[Path, dict[str, int]]) -> None:
    folder, _ = kills
    store = Cache.create(folder / "before-link").feature(Toy())
    names = [path.name for path in list_garbage(Cache.open(folder / "before-link"))]
    assert len(names) == 2
    assert any(name.startswith(".tmp-") for name in names)
    assert any(name.startswith(store.shard_id(KEYS)) for name in names)


def test_processes_that_race_for_one_shard_agree_on_the_first_and_leave_no_second(tmp_path: Path) -> None:
    answers = run_this_file("race", str(tmp_path), "commit")
    cache = Cache.open(tmp_path)
    (marker,) = cache.feature(Toy()).markers()
    assert answers == [marker.data] * 3
    assert verify(cache) == []
    assert list_garbage(cache) == []


def test_processes_that_race_for_a_datasets_head_all_get_a_revision_and_one_is_the_head(tmp_path: Path) -> None:
    answers = run_this_file("race", str(tmp_path), "dataset")
    datasets = Cache.open(tmp_path).datasets()
    assert sorted(answers) == datasets.revisions("d")
    assert len(set(answers)) == 3
    heads = sorted((tmp_path / "datasets" / "d").glob("HEAD-*.json"))
    assert [path.name for path in heads] == [f"HEAD-00000{n}.json" for n in (1, 2, 3)]
    assert datasets.head("d") == json.loads(heads[-1].read_text())["revision"]


def test_a_link_that_was_made_although_it_was_said_to_exist_counts_as_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system that loses its answer asks again, and finds the name that it has just made."""
    store = Cache.create(tmp_path).feature(Toy())
    link = os.link

    def answer_lost(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    with monkeypatch.context() as patched:
        patched.setattr(os, "link", answer_lost)
        marker = store.commit(KEYS, ROWS)
    np.testing.assert_array_equal(store.read(marker.shard), ROWS)
    assert verify(Cache.open(tmp_path)) == []


def test_a_line_that_a_killed_writer_left_half_done_does_not_swallow_the_next(tmp_path: Path) -> None:
    store = Cache.create(tmp_path).feature(Toy())
    store.log({"event": "first"})
    with (store.folder / "log.jsonl").open("ab") as file:
        file.write(b'{"event": "ha')
    store.log({"event": "second"})
    lines = (store.folder / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in (lines[0], lines[2])] == ["first", "second"]


def test_a_forked_worker_reads_what_its_parent_has_open(tmp_path: Path) -> None:
    assert run_this_file("fork", str(tmp_path)) == 0


def read_in_fork(root: Path) -> int:
    """Read a shard, fork, and read it in the child too; return the child's exit status (0: read and equal)."""
    store = Cache.create(root).feature(Toy())
    shard = store.commit(KEYS, ROWS).shard
    store.read(shard)
    child = os.fork()
    if child == 0:
        signal.alarm(PATIENCE)
        os._exit(0 if np.array_equal(store.read(shard), ROWS) else 1)
    return os.waitpid(child, 0)[1]


if __name__ == "__main__":
    command, where, *rest = sys.argv[1:]
    if command == "kill":
        print(json.dumps({stage: killed_child(Path(where) / stage, stage) for stage in rest}))
    elif command == "fork":
        print(json.dumps(read_in_fork(Path(where))))
    else:
        print(json.dumps(race(Path(where), rest[0])))
