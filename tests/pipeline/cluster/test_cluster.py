"""Builds on Dask workers: the bytes of the loop, small messages, and what happens when tasks or workers fail.

The workers here are threads of this process; tests/pipeline/cluster/test_cluster_processes.py has real ones.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cluster_help import (
    SHARD,
    BlindPlugin,
    RaisingPlugin,
    SmallDevicePlugin,
    config_of,
    first_shard,
    scheduler_here,
    wait_for,
    work_on,
)
from distil_cache.cache.lease import read_leases
from distil_cache.cache.maintenance.verify import verify
from distil_cache.cache.store import Cache
from distil_cache.errors import UsageError, UserError
from distil_cache.pipeline.build import run_build
from distil_cache.pipeline.cluster.client import TaskFailure, TaskOutcome, connect
from distil_cache.pipeline.cluster.messages import (
    OpenBuild,
    read_entries,
    read_files,
    read_report,
    read_task,
    write_entries,
    write_files,
    write_report,
    write_task,
)
from distil_cache.pipeline.cluster.placement import Placement
from distil_cache.pipeline.cluster.worker import open_build
from distil_cache.pipeline.execution import tasks
from distil_cache.pipeline.execution.tasks import TaskReport, TaskResult
from distil_cache.pipeline.planning.plan import Task
from distil_cache.pipeline.scan.memory import ScanEntry
from distil_cache.pipeline.sources.file import ParquetMember, SourceFile, TarMember, ZipMember
from distil_cache.progress import Silent
from distil_cache.storage import to_path
from maintained_cache import checksums
from recorded_progress import Recorded
from small_models import write_material

TRAIN, TEST = 10, 2


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_material(tmp_path_factory.mktemp("material"), {"train": TRAIN, "test": TEST})


@pytest.fixture(scope="module")
def loop(material: Path) -> dict[str, Any]:
    """What the loop of one process makes of the material, in the cache ``loop``."""
    return run_build(config_of(material, material / "loop"), Silent())


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    with scheduler_here(2) as address:
        yield address


def test_workers_make_the_bytes_and_the_record_of_the_loop_and_leave_nothing_to_do(
    material: Path, loop: dict[str, Any], scheduler: str, tmp_path: Path
) -> None:
    config = config_of(material, tmp_path / "cache")
    built = run_build(config, Silent(), placement=Placement(scheduler))
    own = {"seconds": 0, "rejects_file": "", "device_busy": 0}
    assert {**built, **own} == {**loop, **own}
    assert checksums(tmp_path / "cache") == checksums(material / "loop")
    assert verify(Cache.open(tmp_path / "cache")) == []
    assert read_leases(tmp_path / "cache").live == ()
    again = run_build(config, Silent(), placement=Placement(scheduler))
    assert (again["build"], again["adm_calls"], again["decoded"], again["opened"]) == (loop["build"], 0, 0, 0)


def test_workers_find_a_cache_in_an_object_store_by_its_url(
    material: Path, loop: dict[str, Any], scheduler: str, tmp_path: Path
) -> None:
    cache = to_path(f"memory://{tmp_path.name}/cache")
    built = run_build(config_of(material, cache), Silent(), placement=Placement(scheduler))
    assert (built["build"], built["adm_calls"]) == (loop["build"], loop["adm_calls"])
    assert checksums(cache) == checksums(material / "loop")
    assert read_leases(cache).live == ()


def test_the_log_says_how_fast_the_workers_device_was(material: Path, scheduler: str, tmp_path: Path) -> None:
    built = run_build(config_of(material, tmp_path, features=("image,eps",)), Silent(), placement=Placement(scheduler))
    event = json.loads((tmp_path / "features" / folder_of("eps", built) / "log.jsonl").read_text())
    (speed,) = event["speed"]
    assert speed["adm_calls"] == event["adm_calls"] == 2 * (TRAIN + TEST)
    assert speed["device"].startswith("CPU of ")
    assert 0 < speed["seconds"] <= event["seconds"]


def test_half_precision_is_compared_with_float32_by_a_worker(material: Path, scheduler: str, tmp_path: Path) -> None:
    config = config_of(material, tmp_path, features=("image,eps",), precision="bf16")
    built = run_build(config, Silent(), placement=Placement(scheduler))
    event = json.loads((tmp_path / "features" / folder_of("eps", built) / "log.jsonl").read_text())
    assert event["deviation_from_float32"]["samples"] == 4
    assert 0 < event["deviation_from_float32"]["eps_relative"] < 0.2


def folder_of(feature: str, result: dict[str, Any]) -> str:
    return f"{feature}-{result['features'][feature]['fingerprint'][:16]}"


def test_a_task_travels_as_keys_and_paths_and_its_size_is_bounded() -> None:
    keys = tuple(f"{number:032x}" for number in range(512))
    files = {
        key: SourceFile("/data/images", f"train/adm/1_fake/{key}.png", 1, "train", "adm", "diffusion", "")
        for key in keys
    }
    missing = {"image": keys, "eps": keys, "dire": keys, "teacher": keys[::2]}
    text = write_task(Task(None, keys, missing), files)
    assert len(text) < 512 * 250
    assert read_task(text) == (Task(None, keys, missing), files)
    reuse = write_task(Task("0" * 32, keys, {"dire": keys}), files)
    assert len(reuse) < 512 * 40
    assert read_task(reuse) == (Task("0" * 32, keys, {"dire": keys}), {})


def test_messages_come_back_as_they_were_with_odd_names_and_members_of_archives() -> None:
    known = ScanEntry(5, 6, "k")
    for member in (
        TarMember("x.tar", 10240, 7, 512, 9),
        ZipMember("x.zip", 10240, 7, 512, 5, 9, 20, 8, 0xFFFFFFFF),
        ParquetMember("x.parquet", 10240, 7, "image.bytes", 2, 99),
    ):
        odd = SourceFile("/d", "a \udcff é\n.png", 0, "test", "", "", "", member)
        assert read_files(write_files([odd, odd], [known, None])) == [(odd, ScanEntry(5, 6, "")), (odd, None)]
    assert read_entries(write_entries([known, True, False])) == [known, True, False]
    report = TaskReport(
        TaskResult({"image": 3}, {"image": 1}, 12, {"a": "missing: gone"}, {"image": "0" * 32}, 1.5, 4),
        "tcp://w:1",
        "CPU of x",
    )
    assert read_report(write_report(report)) == report


def test_a_shard_that_raises_is_tried_on_each_worker_then_named_and_made_by_the_next_build(
    material: Path, loop: dict[str, Any], scheduler: str, tmp_path: Path
) -> None:
    config, heard = config_of(material, tmp_path / "cache"), Recorded()
    shard, keys = first_shard(material / "loop")
    with (
        connect(scheduler) as pool,
        work_on(pool, config, RaisingPlugin.at(keys[0]), tries=2, progress=heard) as work,
        pytest.raises(UserError) as told,
    ):
        list(work.reports())
    assert str(told.value).startswith(f"1 of 6 shards failed in each of 2 tries: {shard[:16]} (its first")
    assert "RuntimeError: a bug over this picture" in str(told.value)
    assert "Run the same command again" in str(told.value)
    assert work.failures == 2
    assert len(set(RaisingPlugin.where)) == 2
    assert [said for said in heard.said if said.startswith(f"shard {shard[:16]} is given up")]
    lacking = checksums(material / "loop").keys() - checksums(tmp_path / "cache").keys()
    assert len(lacking) == 4  # image, eps, dire and teacher of that shard
    rest = run_build(config, Silent(), placement=Placement(scheduler))
    assert (rest["features"]["image"]["computed"], rest["build"]) == (SHARD, loop["build"])
    assert checksums(tmp_path / "cache") == checksums(material / "loop")


def test_a_device_that_runs_out_of_memory_halves_its_batch_and_remembers(
    material: Path, loop: dict[str, Any], scheduler: str, tmp_path: Path
) -> None:
    SmallDevicePlugin.refused = 0
    with connect(scheduler) as pool, work_on(pool, config_of(material, tmp_path), SmallDevicePlugin) as work:
        reports = list(work.reports())
    assert {report.done.batch_size for report in reports} == {2}
    assert len({report.worker for report in reports}) == SmallDevicePlugin.refused == 2
    assert sum(report.done.adm_calls for report in reports) == loop["adm_calls"]


def test_what_another_builder_made_meanwhile_is_not_made_again(
    material: Path, loop: dict[str, Any], scheduler: str, tmp_path: Path
) -> None:
    config = config_of(material, tmp_path)
    with connect(scheduler) as pool, work_on(pool, config, SmallDevicePlugin) as work:
        run_build(config, Silent())  # everything comes after the plan was made
        reports = list(work.reports())
    assert sum(report.done.adm_calls for report in reports) == 0
    made = {name: row["computed"] for name, row in loop["features"].items()}
    assert {
        name: sum(report.done.computed[name] for report in reports if name in report.done.computed) for name in made
    } == made


def test_a_worker_must_find_the_same_cache_models_and_version(material: Path, loop: dict[str, Any]) -> None:
    config = config_of(material, material / "loop")
    told = {feature: row["fingerprint"] for feature, row in loop["features"].items()}
    request = OpenBuild(
        version="0.0.0", config=config.model_dump(mode="json", exclude_unset=True), fingerprints=told, lease="x.json", pictures=None
    )  # fmt: skip
    with pytest.raises(UserError, match=r"runs distil-cache .* the build 0\.0\.0"):
        open_build(request, {})
    from distil_cache import __version__

    same = request.model_copy(update={"version": __version__})
    with pytest.raises(UserError, match="not the same folder on the worker"):
        open_build(same, {})
    (material / "loop" / "builders" / "x.json").write_text("{}")
    assert open_build(same, {}).specs.keys() == told.keys()
    other = same.model_copy(update={"fingerprints": {**told, "eps": "0" * 64}})
    with pytest.raises(UserError, match="eps: the worker's model files are not those"):
        open_build(other, {})
    (material / "loop" / "builders" / "x.json").unlink()


def test_a_worker_whose_gpu_does_not_start_says_so_and_does_not_compute_on_its_cpu(
    material: Path, loop: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distil_cache import __version__
    from distil_cache.models import device

    config = config_of(material, material / "loop").model_copy(update={"device": "auto"})
    told = {feature: row["fingerprint"] for feature, row in loop["features"].items()}
    request = OpenBuild(
        version=__version__, config=config.model_dump(mode="json", exclude_unset=True) | {"device": "auto"}, fingerprints=told,
        lease="x.json", pictures=None,
    )  # fmt: skip
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(device, "_DEVICE_FILES", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def init() -> None:
        raise RuntimeError("Found no NVIDIA driver on your system.\nPlease check")

    monkeypatch.setattr(torch.cuda, "init", init)
    with pytest.raises(UserError, match=r"CUDA does not start there \(Found no NVIDIA driver on your system\.\)"):
        open_build(request, {})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match="not the same folder on the worker"):  # the next check: the GPU is hidden
        open_build(request, {})


def test_all_builds_of_a_worker_compute_in_one_thread(
    material: Path, loop: dict[str, Any], scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[int] = set()

    def noted(*arguments: Any) -> Any:
        threads.add(threading.get_ident())
        return run(*arguments)

    run = tasks.compute
    monkeypatch.setattr(tasks, "compute", noted)
    for number in range(2):
        config = config_of(material, tmp_path / str(number), features=("image,eps",))
        run_build(config, Silent(), placement=Placement(scheduler))
    assert len(threads) == 1


def test_a_worker_on_which_everything_fails_is_removed_and_the_others_go_on(material: Path, tmp_path: Path) -> None:
    heard = Recorded()
    with scheduler_here(2) as address, connect(address) as pool:
        blind = sorted(pool.workers())[0]
        with work_on(pool, config_of(material, tmp_path, shard_size=2), BlindPlugin.at(blind), progress=heard) as work:
            reports = list(work.reports())
        assert sorted(pool.workers()) != [blind]
    assert {report.worker for report in reports} == {
        worker for worker in {r.worker for r in reports} if worker != blind
    }
    assert sum(report.done.computed["image"] for report in reports) == 2 * (TRAIN + TEST)
    assert [said for said in heard.said if said.startswith(f"worker {blind} is removed")]


def test_an_adaptive_cluster_grows_from_nothing_and_the_build_waits_for_it(
    material: Path, loop: dict[str, Any], tmp_path: Path
) -> None:
    with scheduler_here(0, grow_to=2) as address, connect(address) as pool:
        assert pool.workers() == {}
        with work_on(pool, config_of(material, tmp_path)) as work:
            assert sum(report.done.adm_calls for report in work.reports()) == loop["adm_calls"]
    assert checksums(tmp_path) == checksums(material / "loop")


def test_without_dask_a_build_on_workers_says_how_to_install_it(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distil_cache.pipeline.cluster.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"--workers: needs Dask. Install it with: pip install 'distil-cache\[cluster\]'"
    ):
        run_build(config_of(material, tmp_path), Silent(), placement=Placement(workers=2))


def test_a_task_whose_workers_went_away_before_they_did_it_comes_back_untried(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with scheduler_here(2) as address, connect(address) as pool:
        left, right = sorted(pool.workers())
        try:
            for number in range(4):  # one more than the threads of the only worker that may have them
                pool.submit(wait_for, str(gate), key=f"task-{number}", avoid=[left])
            pool.retire(right)
            outcomes: list[TaskOutcome] = []
            while len(outcomes) < 4:
                outcomes += pool.ended()
        finally:
            gate.touch()
        assert list(pool.workers()) == [left]
    assert {outcome.key for outcome in outcomes} == {f"task-{number}" for number in range(4)}
    assert all(isinstance(outcome.result, TaskFailure) and not outcome.result.tried for outcome in outcomes)


def test_a_build_ends_when_every_worker_was_removed(material: Path, tmp_path: Path) -> None:
    with scheduler_here(1) as address, connect(address) as pool:
        (blind,) = pool.workers()
        with (
            work_on(pool, config_of(material, tmp_path, shard_size=2), BlindPlugin.at(blind)) as work,
            pytest.raises(UserError, match=r"every worker was removed.*OSError: this worker's disk is gone"),
        ):
            list(work.reports())


def test_a_scheduler_that_does_not_answer_is_named(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distil_cache.pipeline.cluster.client.CONNECT_SECONDS", 0.5)
    with pytest.raises(UserError, match=r"--scheduler tcp://127\.0\.0\.1:1: no scheduler answers"):
        run_build(config_of(material, tmp_path), Silent(), placement=Placement("tcp://127.0.0.1:1"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scheduler": "tcp://a:1", "workers": 2}, "Give one of them"),
        ({"scheduler": "localhost:8786"}, "write the scheduler's address"),
        ({"scheduler": "tcp://"}, "write the scheduler's address"),
        ({"workers": 0}, "--workers 0"),
        ({"tries": 0}, "--tries 0"),
        ({"array": "0/3"}, "--array 0/3"),
        ({"array": "4/3"}, "--array 4/3"),
        ({"array": "1/"}, "--array 1/"),
        ({"array": "1/²"}, "write I/N"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Placement.checked(**options)
