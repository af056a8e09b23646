"""Builds that lose their scheduler: another one takes over, none comes, the user does not wait, or only the connection broke."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from cluster_help import GatedPlugin, config_of, scheduler_here, work_on
from distil_cache.cache.maintenance.verify import verify
from distil_cache.cache.store import Cache
from distil_cache.errors import UserError
from distil_cache.pipeline.build import run_build
from distil_cache.pipeline.cluster.client import connect
from distil_cache.pipeline.cluster.placement import Placement
from distil_cache.pipeline.scan.memory import ScanEntry
from distil_cache.pipeline.sources.discover import discover
from distil_cache.progress import Silent
from distributed import Client, Worker
from maintained_cache import checksums
from patience import until
from recorded_progress import Recorded
from small_models import write_material

IMAGES = 16
QUIET: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of which the loop of one process has made shards of one, in the cache ``loop``."""
    folder = write_material(tmp_path_factory.mktemp("material"), {"train": IMAGES // 2})
    run_build(config_of(folder, folder / "loop", shard_size=1), Silent())
    return folder


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def dask(what: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``dask scheduler`` or ``dask worker`` for the length of a ``with`` block."""
    command = [sys.executable, "-m", f"distributed.cli.dask_{what}", *arguments, "--no-dashboard"]
    paths = [str(Path(__file__).parents[2] / "support"), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, **QUIET)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def scheduler_at(port: int) -> Any:
    return dask("scheduler", "--host", "127.0.0.1", "--port", str(port))


def worker_of(port: int, nanny: str = "--no-nanny") -> Any:
    return dask("worker", f"tcp://127.0.0.1:{port}", "--nthreads", "3", "--memory-limit", "0", nanny)


def work_here(port: int) -> None:
    """Be a worker in a thread of this process until the scheduler goes away."""

    async def work() -> None:
        async with Worker(f"tcp://127.0.0.1:{port}", nthreads=3, memory_limit=0, silence_logs=50) as worker:
            await worker.finished()

    threading.Thread(target=asyncio.run, args=(work(),), daemon=True).start()


def complete(cache: Path) -> set[str]:
    """Return the keys of which every feature is there."""
    made: list[set[str]] = [
        {key for marker in store.markers() for key in marker.keys} for store in Cache.open(cache).features()
    ]
    return set.intersection(*made)


def test_a_scheduler_that_is_killed_and_started_again_costs_time_and_nothing_that_was_made(
    material: Path, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, notes, heard = tmp_path / "cache", tmp_path / "notes", Recorded()
    notes.mkdir()
    logged: list[logging.LogRecord] = []
    monkeypatch.setattr(logging.getLogger("distributed.client"), "handle", logged.append)
    config = config_of(material, cache, shard_size=1)
    before: list[set[str]] = []

    def restart(first: subprocess.Popen[bytes], first_worker: subprocess.Popen[bytes], held: ExitStack) -> None:
        until(lambda: len(list(notes.glob("*.done"))) >= 4)
        first.kill()
        until(lambda: [said for said in heard.said if "went away" in said])
        before.append(complete(cache))
        held.enter_context(scheduler_at(port))
        held.enter_context(worker_of(port))
        (notes / "go").touch()  # also for what the first worker is still at
        first_worker.wait()

    with ExitStack() as held:
        first, first_worker = held.enter_context(scheduler_at(port)), held.enter_context(worker_of(port))
        pool = held.enter_context(connect(f"tcp://127.0.0.1:{port}", heard.say))
        with work_on(pool, config, GatedPlugin.at(str(notes)), tries=1) as work:
            again = threading.Thread(target=restart, args=(first, first_worker, held))
            again.start()
            reports = list(work.reports())
            again.join()
    assert logged == []
    assert len(reports) == IMAGES
    assert work.failures == 0
    assert len([said for said in heard.said if said.startswith("connected to the scheduler")]) == 1
    assert checksums(cache) == checksums(material / "loop")
    assert verify(Cache.open(cache)) == []
    assert 4 <= len(before[0]) < IMAGES
    for key in before[0]:
        calls = [int(note.read_text()) for note in notes.glob(f"{key} *.done")]
        assert len([count for count in calls if count]) == 1
    assert run_build(config, Silent())["adm_calls"] == 0


def workers_below(nanny: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return the workers that a nanny has started; Python's helper processes are none."""
    return [child for child in psutil.Process(nanny.pid).children() if "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.slow
def test_a_nanny_that_is_killed_takes_its_worker_with_it_and_another_worker_goes_on(
    material: Path, port: int, tmp_path: Path
) -> None:
    cache, notes = tmp_path / "cache", tmp_path / "notes"
    notes.mkdir()
    workers: list[psutil.Process] = []

    def kill(nanny: subprocess.Popen[bytes]) -> None:
        until(lambda: len(list(notes.glob("*.done"))) >= 4)
        workers.extend(workers_below(nanny))
        nanny.kill()
        until(lambda: not workers[0].is_running() or workers[0].status() == psutil.STATUS_ZOMBIE)
        (notes / "go").touch()

    with ExitStack() as held:
        held.enter_context(scheduler_at(port))
        nannies = [held.enter_context(worker_of(port, "--nanny")) for _ in range(2)]
        pool = held.enter_context(connect(f"tcp://127.0.0.1:{port}", Recorded().say))
        with Client(f"tcp://127.0.0.1:{port}", set_as_default=False) as client:
            client.wait_for_workers(2)
        with work_on(pool, config_of(material, cache, shard_size=1), GatedPlugin.at(str(notes))) as work:
            killer = threading.Thread(target=kill, args=(nannies[0],))
            killer.start()
            reports = list(work.reports())
            killer.join()
    assert len(workers) == 1
    assert len(reports) == IMAGES
    assert checksums(cache) == checksums(material / "loop")
    assert verify(Cache.open(cache)) == []


def when_under_way(cache: Path, then: Callable[[], object]) -> threading.Thread:
    """Do something when the first shard of a build is there."""
    thread = threading.Thread(
        target=lambda: (until(lambda: list(cache.glob("features/eps-*/shards/*.json"))), then()), daemon=True
    )
    thread.start()
    return thread


def test_a_build_whose_scheduler_does_not_come_back_ends_with_a_sentence_and_the_next_one_goes_on(
    material: Path, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distil_cache.pipeline.cluster.connection.RETURN_SECONDS", 1.0)
    cache, address = tmp_path / "cache", f"tcp://127.0.0.1:{port}"
    config = config_of(material, cache, shard_size=1)
    with scheduler_at(port) as scheduler:
        work_here(port)
        when_under_way(cache, scheduler.kill)
        with pytest.raises(UserError, match=f"the scheduler at {address} went away. Finished shards are kept"):
            run_build(config, Silent(), placement=Placement(address))
    assert list((cache / "builders").glob("*.json")) == []
    rest = run_build(config, Silent())
    assert 0 < rest["features"]["eps"]["reused"] <= IMAGES
    assert rest["samples"] == IMAGES
    assert verify(Cache.open(cache)) == []


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt, also where a shell started the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_ctrl_c_ends_a_build_that_waits_for_its_scheduler(material: Path, port: int, tmp_path: Path) -> None:
    heard = Recorded()

    def interrupt() -> None:
        scheduler.kill()
        until(lambda: [said for said in heard.said if "went away" in said])
        os.kill(os.getpid(), signal.SIGINT)

    with scheduler_at(port) as scheduler:
        work_here(port)
        interrupter = when_under_way(tmp_path, interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_build(
                config_of(material, tmp_path, shard_size=1), heard, placement=Placement(f"tcp://127.0.0.1:{port}")
            )
        interrupter.join()
    assert list((tmp_path / "builders").glob("*.json")) == []


def cut(address: str) -> None:
    """Break the connections of the clients of a scheduler."""
    for client in list(Client._instances):
        if client.status == "running" and client.scheduler.address == address:
            client.loop.add_callback(client.scheduler_comm.comm.abort)


def test_a_connection_that_breaks_in_a_build_is_made_again_and_counts_as_no_try(material: Path, tmp_path: Path) -> None:
    heard, notes, reports = Recorded(), tmp_path / "notes", 0
    notes.mkdir()
    config = config_of(material, tmp_path / "cache", shard_size=1)

    def connected() -> list[str]:
        return [said for said in heard.said if said.startswith("connected to the scheduler")]

    with (
        scheduler_here(2) as scheduler,
        connect(scheduler, heard.say) as pool,
        work_on(pool, config, GatedPlugin.at(str(notes)), tries=1) as work,
        ThreadPoolExecutor(1) as other,
    ):
        for _ in work.reports():
            if reports == 0:
                cut(scheduler)
                other.submit(lambda: (until(connected), (notes / "go").touch()))
            reports += 1
    assert (reports, work.failures, len(connected())) == (IMAGES, 0, 1)
    assert checksums(tmp_path / "cache") == checksums(material / "loop")


def test_a_connection_that_breaks_in_a_scan_loses_no_file(material: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distil_cache.pipeline.cluster.client._FILES", 2)
    heard = Recorded()
    files = list(discover(material / "images", None).files)
    with scheduler_here(2) as scheduler, connect(scheduler, heard.say) as pool:
        blocks = pool.scan_files(files, [None] * len(files))
        found = list(next(blocks))
        cut(scheduler)
        found += [scanned for block in blocks for scanned in block]
    assert [said for said in heard.said if said.startswith("connected")]
    assert [scanned.file for scanned in found] == files
    assert all(isinstance(scanned.found, ScanEntry) for scanned in found)
