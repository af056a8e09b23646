"""Builds on real worker processes: killed ones, deadly shards, and signals that end the build."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from cluster_help import LethalPlugin, arguments_of, config_of, first_shard, work_on
from distil_cache.cache.maintenance.verify import verify
from distil_cache.cache.store import Cache
from distil_cache.errors import UsageError, UserError
from distil_cache.pipeline.build import run_build
from distil_cache.pipeline.cluster import local_workers
from distil_cache.pipeline.cluster.client import WorkerPool, start_local_pool
from distil_cache.pipeline.cluster.executor import _request
from distil_cache.pipeline.cluster.local_workers import environments
from distil_cache.pipeline.cluster.placement import Placement
from distil_cache.pipeline.config import threads_each
from distil_cache.pipeline.planning.prepare import prepare
from distil_cache.progress import Silent
from fault_injection import heed_interrupts
from maintained_cache import checksums
from patience import PATIENCE, until
from small_models import write_material

COMMAND = [sys.executable, "-c", "from distil_cache.cli import main; main()"]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_material(tmp_path_factory.mktemp("material"), {"train": 16, "test": 4})
    run_build(config_of(folder, folder / "loop"), Silent())
    return folder


def listening(process: psutil.Process) -> set[tuple[str, int]]:
    """Return host and port of the sockets on which a process listens."""
    found = process.net_connections("inet")
    return {(c.laddr.ip, c.laddr.port) for c in found if c.status == psutil.CONN_LISTEN}


@pytest.fixture(scope="module")
def of_others() -> set[tuple[str, int]]:
    """The sockets of this process before the pool is there: servers of other tests."""
    return listening(psutil.Process())


@pytest.fixture(scope="module")
def pool(of_others: set[tuple[str, int]]) -> Iterator[WorkerPool]:
    with start_local_pool(2, "cpu") as pool:
        yield pool


def workers_of(process: int) -> list[psutil.Process]:
    """Return the worker processes below a process."""
    found = []
    for child in psutil.Process(process).children(recursive=True):
        try:
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def test_everything_of_a_local_cluster_listens_on_loopback_alone_and_threads_are_bounded(
    pool: WorkerPool, of_others: set[tuple[str, int]]
) -> None:
    everybody = [psutil.Process(), *workers_of(os.getpid())]
    assert len(everybody) == 3
    sockets = set.union(*map(listening, everybody)) - of_others
    assert {host for host, _ in sockets} == {"127.0.0.1"}
    assert len(sockets) == len(everybody) + 2  # a socket of each, and of each worker's nanny here; none speaks HTTP
    assert pool.dashboard == ""
    assert all(address.startswith("tls://127.0.0.1:") for address in pool.workers())
    for worker in everybody[1:]:
        there = worker.environ()
        assert there["OMP_NUM_THREADS"] == os.environ.get("OMP_NUM_THREADS", str(threads_each(2)))


def test_a_process_takes_a_gpu_of_its_own_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environments(2, "cpu") == [{"CUDA_VISIBLE_DEVICES": ""}] * 2
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert environments(2, "auto") == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-ab,6")
    assert environments(3, "cuda") == [{"CUDA_VISIBLE_DEVICES": name} for name in ("4", "GPU-ab", "6")]
    with pytest.raises(UsageError, match="this machine has 3 GPUs"):
        environments(4, "auto")
    with pytest.raises(UsageError, match="uses its own GPU"):
        environments(1, "cuda:1")
    assert environments(4, "cpu") == [{"CUDA_VISIBLE_DEVICES": ""}] * 4


def test_instances_of_a_divided_gpu_are_counted_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)  # a process sees one of them
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a1, MIG-b2,MIG-c3")
    assert environments(3, "auto") == [{"CUDA_VISIBLE_DEVICES": name} for name in ("MIG-a1", "MIG-b2", "MIG-c3")]
    with pytest.raises(UsageError, match="this machine has 3 MIG instances in CUDA_VISIBLE_DEVICES"):
        environments(4, "cuda")


@pytest.mark.parametrize(
    ("asked", "there", "told"),
    [("auto", True, "cuda"), ("cuda", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu")],
)
def test_worker_processes_are_told_where_to_compute_so_that_none_takes_its_cpu_in_silence(
    material: Path, asked: str, there: bool, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(material, tmp_path, device="cpu")
    with ExitStack() as held:
        ready = prepare(config, Silent(), held, dry_run=False)
        monkeypatch.setattr("torch.cuda.is_available", lambda: there)
        request = _request(config.model_copy(update={"device": asked}), ready, Placement(workers=1))
    assert request.config["device"] == told


def test_a_shard_that_kills_its_worker_is_distinguished_from_its_neighbours_and_given_up(
    material: Path, pool: WorkerPool, tmp_path: Path
) -> None:
    shard, keys = first_shard(material / "loop")
    with (
        work_on(pool, config_of(material, tmp_path), LethalPlugin.at(keys[0]), tries=2) as work,
        pytest.raises(UserError, match=r"1 of 10 shards failed in each of 2 tries: .*the worker process died"),
    ):
        list(work.reports())
    lacking = checksums(material / "loop").keys() - checksums(tmp_path).keys()
    assert [name for name in lacking if name.startswith("image ")] == [f"image {shard}"]


@pytest.mark.slow
def test_workers_that_are_killed_at_random_cost_time_and_no_byte(
    material: Path, pool: WorkerPool, tmp_path: Path
) -> None:
    config, chance = config_of(material, tmp_path / "cache"), random.Random(7)
    kills, reports = 0, 0
    with work_on(pool, config, tries=50) as work:
        for report in work.reports():
            reports += report.done.computed["image"]
            if kills < 2 or not work.failures:  # whom it hits may just be idle
                chance.choice(workers_of(os.getpid())).kill()
                kills += 1
    assert kills >= 2
    assert reports == 40
    assert work.failures > 0
    assert checksums(tmp_path / "cache") == checksums(material / "loop")
    assert verify(Cache.open(tmp_path / "cache")) == []


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_a_signal_ends_the_workers_and_releases_the_lease(
    material: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    cache = tmp_path / "cache"
    process = subprocess.Popen(
        [*COMMAND, *arguments_of(material, cache), "--workers", "1", "--shard-size", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heed_interrupts,
    )  # fmt: skip
    until(lambda: list(cache.glob("features/eps-*/shards/*.json")), process)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    os.killpg(process.pid, number)  # as a terminal or a job system does
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert "Finished work is kept" in said
    assert "Traceback" not in said
    until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family))
    assert list((cache / "builders").glob("*.json")) == []


def test_a_worker_that_is_killed_while_it_starts_is_started_again_and_the_build_goes_on_with_the_others(
    material: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {one.pid for one in workers_of(os.getpid())}  # those of the pool of this module
    said: list[str] = []

    def kill_one() -> None:
        until(lambda: {one.pid for one in workers_of(os.getpid())} - before)
        next(one for one in workers_of(os.getpid()) if one.pid not in before).kill()

    killer = threading.Thread(target=kill_one)
    killer.start()
    with start_local_pool(2, "cpu", said.append) as pool, work_on(pool, config_of(material, tmp_path)) as work:
        killer.join()
        list(work.reports())
        assert said == ["1 of 2 workers died while they started; they are started again"]
        until(lambda: pool.ended() or len(pool.workers()) == 2)
    assert checksums(tmp_path) == checksums(material / "loop")
    assert "Traceback" not in (printed := capfd.readouterr().err)
    assert "never retrieved" not in printed


def test_workers_of_which_none_starts_end_the_build_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_workers, "_IGNORE_ENDINGS", "import os; os._exit(3)")
    monkeypatch.setattr(local_workers, "STARTS", 2)
    with pytest.raises(UserError, match=r"--workers 1: the workers did not start \("), start_local_pool(1, "cpu"):
        pass


def test_semaphores_that_killed_workers_leave_are_removed_without_a_word(tmp_path: Path) -> None:
    program = """
import multiprocessing, os, signal
from distil_cache.pipeline.cluster.local_workers import _start_quiet_tracker
_start_quiet_tracker()
lock = multiprocessing.get_context("spawn").Lock()
assert "PYTHONWARNINGS" not in os.environ
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    ended = subprocess.run(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, timeout=PATIENCE, env=environment
    )
    assert (ended.returncode, ended.stderr) == (-signal.SIGKILL, "")
