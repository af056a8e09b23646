"""Builds on real worker processes: killed ones, deadly shards, Ctrl-C, and a scheduler that goes away."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from cluster_help import (
    LethalPlugin,
    arguments_of,
    checksums,
    config_of,
    first_shard,
    work_on,
    write_material,
)
from distil_cache.cache.store import Cache
from distil_cache.cache.verify import verify
from distil_cache.errors import UsageError, UserError
from distil_cache.pipeline import Silent, run_build
from distil_cache.pipeline.cluster import Placement
from distil_cache.pipeline.cluster.crew import Crew, start_here
from distil_cache.pipeline.cluster.local import environments, threads_each
from distributed import Worker
from fault_injection import heed_interrupts

LONG = 180.0
"""Seconds after which something is stuck, however busy the machine is."""
COMMAND = [sys.executable, "-c", "from distil_cache.cli import main; main()"]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_material(tmp_path_factory.mktemp("material"), {"train": 16, "test": 4})
    run_build(config_of(folder, folder / "loop"), Silent())
    return folder


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    with start_here(3, "cpu") as crew:
        yield crew


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


async def work_for(scheduler: str) -> None:
    """Be a worker until the scheduler goes away."""
    async with Worker(scheduler, nthreads=3, memory_limit=0, silence_logs=logging.CRITICAL) as worker:
        await worker.finished()


def until(happened: Callable[[], object], process: subprocess.Popen[Any] | None = None) -> None:
    end = time.monotonic() + LONG
    while not happened():
        assert time.monotonic() < end, "waited too long"
        assert process is None or process.poll() is None, "the process ended early"
        time.sleep(0.02)


def test_everything_of_a_local_cluster_listens_on_loopback_alone_and_threads_are_bounded(crew: Crew) -> None:
    everybody = [psutil.Process(), *workers_of(os.getpid())]
    assert len(everybody) == 4
    listening = [c.laddr.ip for one in everybody for c in one.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert len(listening) >= 4
    assert set(listening) == {"127.0.0.1"}
    assert crew.dashboard.startswith("http://127.0.0.1:")
    assert all(address.startswith("tls://127.0.0.1:") for address in crew.workers())
    for worker in everybody[1:]:
        there = worker.environ()
        assert there["OMP_NUM_THREADS"] == os.environ.get("OMP_NUM_THREADS", str(threads_each(3)))


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
    with pytest.raises(UsageError, match="takes a GPU of its own"):
        environments(1, "cuda:1")
    assert environments(4, "cpu") == [{"CUDA_VISIBLE_DEVICES": ""}] * 4


def test_a_shard_that_kills_its_worker_is_told_from_its_neighbours_and_set_aside(
    material: Path, crew: Crew, tmp_path: Path
) -> None:
    shard, keys = first_shard(material / "loop")
    with (
        work_on(crew, config_of(material, tmp_path), LethalPlugin.at(keys[0]), tries=2) as work,
        pytest.raises(UserError, match=r"1 of 10 shards failed in each of 2 tries .*the worker process died"),
    ):
        list(work.reports())
    lacking = checksums(material / "loop").keys() - checksums(tmp_path).keys()
    assert [name for name in lacking if name.startswith("image ")] == [f"image {shard}"]


def test_workers_that_are_killed_at_random_cost_time_and_no_byte(material: Path, crew: Crew, tmp_path: Path) -> None:
    config, chance = config_of(material, tmp_path / "cache"), random.Random(7)
    kills, reports = 0, 0
    with work_on(crew, config, tries=50) as work:
        for report in work.reports():
            reports += report.done.computed["image"]
            if kills < 2:
                chance.choice(workers_of(os.getpid())).kill()
                kills += 1
    assert (kills, reports) == (2, 40)
    assert work.failures > 0
    assert checksums(tmp_path / "cache") == checksums(material / "loop")
    assert verify(Cache.open(tmp_path / "cache")) == []


def test_ctrl_c_ends_the_workers_and_releases_the_lease(material: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    process = subprocess.Popen(
        [*COMMAND, *arguments_of(material, cache), "--workers", "1", "--shard-size", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heed_interrupts,
    )  # fmt: skip
    until(lambda: list(cache.glob("features/eps-*/shards/*.json")), process)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, said = process.communicate(timeout=LONG)
    assert process.returncode == 130
    assert "What was finished is kept" in said
    assert "Traceback" not in said
    until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family))
    assert list((cache / "builders").glob("*.json")) == []


def test_a_killed_scheduler_ends_the_build_with_a_sentence_and_the_next_one_goes_on(
    material: Path, tmp_path: Path
) -> None:
    cache, file = tmp_path / "cache", tmp_path / "scheduler.json"
    loopback = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(file)]
    scheduler = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", *loopback],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until(file.exists, scheduler)
    try:
        address = json.loads(file.read_text())["address"]
        threading.Thread(target=asyncio.run, args=(work_for(address),), daemon=True).start()
        config = config_of(material, cache, shard_size=1)
        killer = threading.Thread(
            target=lambda: (until(lambda: list(cache.glob("features/eps-*/shards/*.json"))), scheduler.kill())
        )
        killer.start()
        with pytest.raises(UserError, match=f"the scheduler at {address} went away. What was finished is kept"):
            run_build(config, Silent(), place=Placement(address))
        killer.join()
    finally:
        scheduler.kill()
        scheduler.wait()
    assert list((cache / "builders").glob("*.json")) == []
    rest = run_build(config, Silent())
    assert 0 < rest["features"]["eps"]["reused"] < 40
    assert rest["samples"] == 40
    assert verify(Cache.open(cache)) == []
