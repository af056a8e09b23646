"""``--memory``: the batch size that a bound allows on a CPU, and what the plan says a build takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cluster_help import config_of
from distil_cache.commands.show.build import show_build
from distil_cache.errors import UsageError
from distil_cache.images.budget import BUDGET_BYTES, PIXELS_IN_FLIGHT
from distil_cache.models.diffusion.call_memory import CallMemory
from distil_cache.pipeline.build import run_build
from distil_cache.pipeline.config import BuildConfig, parse_size
from distil_cache.pipeline.execution import batches, networks
from distil_cache.pipeline.planning import host_memory
from distil_cache.pipeline.planning.host_memory import PROGRAM, HostMemory, check_memory
from distil_cache.progress import Silent
from small_models import write_material

GIB = 2**30
ADM256 = CallMemory(weights=2_211_256_344, sums=961_019_904, image=603_979_776)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_material(tmp_path_factory.mktemp("material"), {"train": 4})


@pytest.fixture(autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("home")))
    yield
    PIXELS_IN_FLIGHT.resize(BUDGET_BYTES)


def run(material: Path, cache: Path, *, dry_run: bool = False, **changes: Any) -> dict[str, Any]:
    changes = {"batch_size": "auto", "device": "cpu", "features": ("image,eps",), "shard_size": 4, **changes}
    return run_build(config_of(material, cache, **changes), Silent(), dry_run=dry_run)


def memory(limit: int | None = None) -> HostMemory:
    return HostMemory(limit=limit, rows=GIB, backbones=0, decoding=0, call=ADM256)


def test_the_measured_peaks_of_adm256_lie_within_the_count() -> None:
    counted = HostMemory(limit=None, rows=0, backbones=0, decoding=0, call=ADM256)
    for batch, measured in ((0, 4798), (2, 4923), (4, 6261)):  # MiB; 0: loading the weights
        assert measured * 2**20 <= counted.total(batch) < 1.15 * measured * 2**20


def test_the_largest_batch_is_the_largest_power_of_two_within_the_limit() -> None:
    for batch in (1, 2, 4, 8):
        exactly = memory().total(batch)
        assert memory().largest_batch(exactly) == batch or exactly == memory().total(2 * batch)
        assert memory(limit=exactly - 1).largest_batch(exactly - 1) < batch
    assert memory().largest_batch(1 << 60) == batches.CPU_BATCH
    assert memory().largest_batch(GIB) == 0


def test_a_bound_below_one_image_is_refused_with_what_it_takes() -> None:
    with pytest.raises(UsageError, match=r"takes [\d,]+ MiB with one image at a time, 1,024 MiB are allowed"):
        memory(limit=GIB).bounded_batch()


@pytest.mark.parametrize(
    ("text", "size"), [("8GiB", 8 * GIB), ("1.5 GB", 1_500_000_000), ("900MiB", 900 * 2**20), ("1TB", 10**12)]
)
def test_a_size_has_a_unit(text: str, size: int) -> None:
    assert parse_size("--memory", text) == size


@pytest.mark.parametrize("text", ["8", "8G", "0GiB", "-1GiB", "50%", "GiB", "1e9MB", "8 kB", "", "٨GiB"])
def test_what_is_no_size_is_refused_before_anything_starts(text: str) -> None:
    with pytest.raises(UsageError, match=r"--memory .*is not a size\. Write a number and a unit"):
        BuildConfig.checked(cache="c", dataset="d", sources=("s",), memory=text)


def test_a_build_takes_the_batch_that_its_plan_says_and_tries_none(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "remembered_size", lambda *_: pytest.fail("no size may be searched for"))
    plan = run(material, tmp_path / "c", dry_run=True, image_size=64, memory="2GiB")["estimate"]["memory"]
    assert (plan["limit"], plan["batch_size"]) == (2 * GIB, 8)
    assert plan["bytes"] <= plan["limit"]
    of_three = plan["bytes"] - plan["decoding"] - 5 * plan["image"]
    tight = f"{of_three * 8 / 7 / 2**20:.3f}MiB"  # an eighth of the bound is for decoding
    less = run(material, tmp_path / "c", dry_run=True, image_size=64, memory=tight)["estimate"]["memory"]
    assert less["batch_size"] == 2
    run(material, tmp_path / "c", image_size=64, memory=tight)
    assert PIXELS_IN_FLIGHT.total == less["limit"] // 8
    (log,) = (tmp_path / "c" / "features").glob("eps-*/log.jsonl")
    assert json.loads(log.read_text().splitlines()[-1])["batch_size"] == 2


def test_a_bound_that_cannot_hold_is_refused_before_anything_is_computed(material: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="with one image at a time, 500 MiB are allowed"):
        run(material, tmp_path / "c", memory="500MiB")
    with pytest.raises(UsageError, match=r"--memory 1GiB: --batch-size 5000 takes [\d,]+ MiB"):
        run(material, tmp_path / "c", memory="1GiB", batch_size=5000)
    assert not list((tmp_path / "c").glob("features/*/shards/*.json"))


def test_a_gpu_is_no_place_for_the_bound() -> None:
    config = BuildConfig.checked(cache="c", dataset="d", sources=("s",), memory="8GiB")
    with pytest.raises(UsageError, match="bounds builds on a CPU, and this one computes on cuda:0"):
        check_memory(config, torch.device("cuda", 0), {})


def test_the_plan_says_what_a_process_takes_and_warns_if_less_is_free(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host_memory, "available_bytes", lambda: 64 * 2**20)
    monkeypatch.setattr(host_memory, "resident_bytes", lambda: 0)
    plan = run(material, tmp_path / "c", dry_run=True)
    found = plan["estimate"]["memory"]
    assert (found["limit"], found["batch_size"], found["program"]) == (None, 1, PROGRAM)
    assert found["bytes"] > found["free"] == 64 * 2**20
    show_build(plan)
    printed = " ".join(capsys.readouterr().out.split())
    assert "Memory: up to 7" in printed
    assert "1 x " in printed
    assert "only 64.0 MiB are free here" in printed


def test_images_alone_take_no_diffusion_model(material: Path, tmp_path: Path) -> None:
    found = run(material, tmp_path / "c", dry_run=True, features=("image",))["estimate"]["memory"]
    assert (found["batch_size"], found["weights"], found["image"]) == (None, 0, 0)


def test_without_a_bound_a_remembered_size_is_lowered_to_what_is_free(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    cpu = torch.device("cpu")
    monkeypatch.setattr(batches, "_free_bytes", lambda device: 1 << 60)
    assert batches.remembered_size({"model": "m"}, cpu, tried.append).size == 8
    assert batches.remembered_size({"model": "m"}, cpu, tried.append, 2).size == 2
    assert batches.remembered_size({"model": "m"}, cpu, tried.append).size == 8
    assert tried == [1, 2]
