"""A whole build into a cache on S3, through a bad network too, and a training from it: the same bytes as on a disk."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from distil_cache.cache.lease import read_leases
from distil_cache.cache.maintenance.verify import list_garbage, verify
from distil_cache.cache.store import Cache
from distil_cache.cli import main
from distil_cache.errors import UserError
from distil_cache.pipeline.build import run_build
from distil_cache.pipeline.config import BuildConfig
from distil_cache.progress import Silent
from distil_cache.storage import AnyPath, RemotePath, to_path
from distil_cache.train.config import TrainConfig
from distil_cache.train.engine.loop import run_training
from faulty_proxy import Chance, FaultyProxy, Kind
from maintained_cache import checksums
from patience import PATIENCE
from s3_server import point_at
from safetensors.torch import load_file
from small_models import STEPS, computed, write_material

ALL = {"image": 12, "eps": 12, "dire": 8, "teacher": 8}
MARKER = f"shards/{'[0-9a-f]' * 32}.json"


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ADM, a small teacher, and 8 train and 4 test images."""
    return write_material(tmp_path_factory.mktemp("material"), {"train": 4, "test": 2})


@pytest.fixture(scope="module")
def whole(material: Path) -> Path:
    """The cache of the same build on a disk."""
    build(material, material / "cache")
    return material / "cache"


@pytest.fixture
def cache(s3_bucket: str) -> RemotePath:
    place = to_path(f"{s3_bucket}/a cache")
    assert isinstance(place, RemotePath)
    return place


@pytest.fixture
def proxied(cache: RemotePath, s3_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> FaultyProxy:
    patience = {"read_timeout": 1, "connect_timeout": 1, "retries": {"total_max_attempts": 3}}
    point_at(s3_proxy.address, monkeypatch, config_kwargs=patience)
    return s3_proxy


def build(material: Path, cache: AnyPath | str) -> dict[str, Any]:
    return run_build(
        BuildConfig.checked(
            sources=(material / "images",), cache=cache, dataset="noise", adm=str(material / "adm.safetensors"),
            teacher="small", teacher_weights=material / "teacher.safetensors", steps=STEPS, batch_size=4, shard_size=4,
            train_size=16, device="cpu",
        ),
        Silent(),
    )  # fmt: skip


def command(material: Path, cache: AnyPath | str) -> list[str]:
    return [
        sys.executable, "-c", "from distil_cache.cli import main; main()", "build", str(material / "images"),
        "--cache", str(cache), "--dataset", "noise", "--json", "--adm", str(material / "adm.safetensors"),
        "--teacher", "small", "--teacher-weights", str(material / "teacher.safetensors"), "--steps", STEPS,
        "--batch-size", "4", "--shard-size", "4", "--train-size", "16", "--device", "cpu",
    ]  # fmt: skip


def test_two_builds_at_once_leave_one_of_each_as_on_a_disk_and_a_third_computes_nothing(
    material: Path, whole: Path, cache: RemotePath
) -> None:
    process = subprocess.Popen(command(material, cache), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (cache / "builders").exists() and process.poll() is None:
        time.sleep(0.05)
    here = build(material, cache)
    out, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    there = json.loads(out)
    assert [here["build"], there["build"]] == Cache.open(whole).builds().ids() * 2
    assert all(computed(here)[name] + computed(there)[name] >= rows for name, rows in ALL.items())
    assert checksums(cache) == checksums(whole)
    assert (verify(Cache.open(cache)), list_garbage(Cache.open(cache))) == ([], [])
    assert read_leases(cache).live == ()

    again = build(material, cache)
    assert (again["adm_calls"], again["decoded"], again["opened"]) == (0, 0, 0)
    assert again["build"] == here["build"]


def test_a_build_through_a_bad_network_makes_the_same_bytes(
    material: Path, whole: Path, cache: RemotePath, proxied: FaultyProxy
) -> None:
    kinds: tuple[Kind, ...] = ("500", "503", "reset", "lost", "cut", "slow", "stall")
    proxied.chance = Chance(seed=0, share=0.06, kinds=kinds)
    result = build(material, cache)
    assert len(proxied.injected) >= 4
    proxied.calm()
    assert computed(result) == ALL
    assert checksums(cache) == checksums(whole)
    assert (verify(Cache.open(cache)), list_garbage(Cache.open(cache))) == ([], [])


def test_a_build_killed_in_the_middle_goes_on_and_makes_the_same_bytes(
    material: Path, whole: Path, cache: RemotePath, proxied: FaultyProxy
) -> None:
    proxied.inject("hold", "PUT", f"*/eps-*/{MARKER}", skip=1, times=10**6)
    process = subprocess.Popen(command(material, cache), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not proxied.injected["hold"] and process.poll() is None:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert proxied.injected["hold"] > 0
    proxied.calm()
    kept = {store.feature: len(store.index()) for store in Cache.open(cache).features()}
    assert verify(Cache.open(cache)) == []
    assert 0 < kept["eps"] < kept["image"]

    assert computed(build(material, cache)) == {name: rows - kept[name] for name, rows in ALL.items()}
    assert checksums(cache) == checksums(whole)
    assert verify(Cache.open(cache)) == []


def test_training_from_s3_gives_the_weights_of_training_from_a_disk(
    material: Path, whole: Path, cache: RemotePath, tmp_path: Path
) -> None:
    cache.upload(whole)
    config = TrainConfig.checked(dataset="noise", backbone="small", epochs=2, batch_size=4, lr=1e-3, val_fraction=0.25)
    weights = {}
    for name, place in {"here": whole, "there": cache}.items():
        run_training(config, place, tmp_path / name, device="cpu", workers=1 if name == "there" else 0)
        (last,) = (tmp_path / name / "checkpoints").glob("last.json")
        weights[name] = load_file(last.parent / json.loads(last.read_text())["weights"])
    assert weights["here"].keys() == weights["there"].keys()
    assert all(torch.equal(value, weights["there"][name]) for name, value in weights["here"].items())


def test_a_store_that_never_answers_ends_the_command_with_one_sentence(
    material: Path, cache: RemotePath, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    point_at("http://127.0.0.1:9", monkeypatch, config_kwargs={"retries": {"total_max_attempts": 1}})
    monkeypatch.setattr(sys, "argv", ["distil-cache", *command(material, cache)[3:]])
    with pytest.raises(SystemExit) as ended:
        main()
    said = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 1
    assert "Traceback" not in said
    assert f"{cache}/cache.json: " in said
    assert "Could not connect" in said


def test_a_store_that_refuses_in_the_middle_is_a_user_error_and_what_was_finished_is_kept(
    material: Path, cache: RemotePath, proxied: FaultyProxy
) -> None:
    proxied.inject("403", "PUT", f"*/dire-*/{MARKER}", times=10**6)
    with pytest.raises(UserError, match=r"dire-.* cannot be written .*Get write permission"):
        build(material, cache)
    proxied.calm()
    assert read_leases(cache).live == ()
    kept = {store.feature: len(store.index()) for store in Cache.open(cache).features()}
    assert kept["eps"] > 0 == kept["dire"]
    assert verify(Cache.open(cache)) == []
