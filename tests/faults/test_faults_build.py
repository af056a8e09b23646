"""Faults under the real program with a small ADM: a model that gives NaN, files that change, a full or read-only disk."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from distil_cache.cache.store import Cache
from distil_cache.cli import main
from distil_cache.models.diffusion.unet import Adm
from fault_checks import differences, problems, rows, snapshot
from fault_disk import can_mount, small_disk
from image_bytes import noise, saved
from small_models import STEPS, write_material

Program = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_material(tmp_path_factory.mktemp("material"), {"train": 4, "test": 2})


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Program:
    def run(*arguments: object) -> tuple[int, str, str]:
        """Run ``distil-cache`` in this process; return its exit code and what it said."""
        monkeypatch.setattr(sys, "argv", ["distil-cache", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err.strip().splitlines()[-1] if code else ""

    return run


def building(material: Path, cache: Path, *, images: Path | None = None, features: str = "") -> list[object]:
    asked = ["--features", features] if features else []
    return [
        "build", images or material / "images", "--cache", cache, "--dataset", "d", "--json", "--device", "cpu",
        "--adm", material / "adm.safetensors", "--steps", STEPS, "--teacher", "small",
        "--teacher-weights", material / "teacher.safetensors", "--shard-size", "4", "--batch-size", "4", *asked,
    ]  # fmt: skip


@pytest.fixture
def whole(material: Path, program: Program) -> tuple[Path, dict[str, Any]]:
    """An undisturbed build, made once."""
    cache = material / "whole"
    if not cache.exists():
        assert program(*building(material, cache))[0] == 0
    return cache, snapshot(cache)


@contextmanager
def readable_only(folder: Path) -> Iterator[Path]:
    """A copy of a cache that may only be read: on a read-only mount, or, without the right to mount, by its modes."""
    if can_mount(folder.parent):
        with small_disk(folder.parent / "mounted", 64 << 20) as remount:
            copied = shutil.copytree(folder, folder.parent / "mounted" / "cache")
            remount("ro")
            yield Path(copied)
    elif os.geteuid():
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield folder
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)
    else:
        pytest.skip("this process may write everywhere and may not mount a file system")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("features", "call"), [("", 3), ("image,dire", 6), ("image,recon,noise", 2)])
def test_a_number_that_is_none_from_the_model_is_stored_nowhere(
    material: Path,
    tmp_path: Path,
    program: Program,
    monkeypatch: pytest.MonkeyPatch,
    value: float,
    features: str,
    call: int,
) -> None:
    """DIRE and the reconstruction are stored as 8 bits, which could not show it."""
    forward = Adm.forward
    calls = 0

    def failing(model: Adm, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        result = forward(model, x, t)
        if calls == call:
            result[1, 0, 3, 3] = value
        return result

    with monkeypatch.context() as patched:
        patched.setattr(Adm, "forward", failing)
        code, _, said = program(*building(material, tmp_path / "cache", features=features))
    assert code == 1
    assert "NaN or Inf" in said
    assert "--precision" in said
    made = {store.feature: len(store.markers()) for store in Cache.open(tmp_path / "cache").features()}
    assert made["image"] >= 1
    assert not any(count for feature, count in made.items() if feature not in ("image", "eps"))
    assert problems(tmp_path / "cache") == []


def test_after_a_nan_the_next_build_makes_the_undisturbed_bytes(
    material: Path,
    tmp_path: Path,
    program: Program,
    monkeypatch: pytest.MonkeyPatch,
    whole: tuple[Path, dict[str, Any]],
) -> None:
    cache = tmp_path / "cache"
    with monkeypatch.context() as patched:
        patched.setattr(Adm, "forward", lambda model, x, t: torch.full((len(x), 6, *x.shape[2:]), torch.nan))
        assert program(*building(material, cache))[0] == 1
    assert program(*building(material, cache))[0] == 0
    assert problems(cache) == []
    assert differences(snapshot(cache), whole[1]) == []


def test_a_file_rewritten_with_its_size_and_time_after_the_scan_is_left_out_and_in_the_next_build_again(
    material: Path, tmp_path: Path, program: Program
) -> None:
    images = Path(shutil.copytree(material / "images", tmp_path / "images"))
    cache = tmp_path / "cache"
    asked = building(material, cache, images=images, features="image,eps")
    assert program(*asked)[0] == 0
    victim = images / "train" / "gen" / "0_real" / "late.png"
    one, other = saved(noise(20, 24, 12345)), saved(noise(20, 24, 54321))
    size = max(len(one), len(other))  # bytes after a PNG's end do no harm
    victim.write_bytes(one.ljust(size, b"\0"))
    time = victim.stat().st_mtime_ns
    assert json.loads(program(*asked, "--dry-run")[1])["opened"] == 1
    victim.write_bytes(other.ljust(size, b"\0"))
    os.utime(victim, ns=(time, time))

    missed = json.loads(program(*asked)[1])
    assert (missed["samples"], missed["opened"]) == (12, 0)
    assert [reject["reason"] for reject in missed["rejects"]] == ["changed"]
    found = json.loads(program(*asked)[1])
    assert (found["samples"], found["opened"], found["rejects"]) == (13, 1, [])

    whole = tmp_path / "whole"
    assert program(*building(material, whole, images=images, features="image,eps"))[0] == 0
    assert problems(cache) == []
    assert rows(cache) == rows(whole)


def test_a_full_disk_ends_a_build_with_one_sentence_and_with_more_room_it_goes_on(
    material: Path, tmp_path: Path, program: Program, whole: tuple[Path, dict[str, Any]]
) -> None:
    if not can_mount(tmp_path):
        pytest.skip("this process may not mount a file system")
    with small_disk(tmp_path / "disk", 160 << 10) as remount:
        cache = tmp_path / "disk" / "cache"
        code, _, said = program(*building(material, cache))
        assert code == 1
        assert said.startswith(f"distil-cache: {cache}")
        assert "No space left on device). Free some space there and run the command again" in said
        assert problems(cache) == []
        remount("size=64m")
        assert program(*building(material, cache))[0] == 0
        assert problems(cache) == []
        assert differences(snapshot(cache), whole[1]) == []


def test_a_read_only_cache_serves_builds_of_nothing_training_and_evaluation(
    material: Path,
    tmp_path: Path,
    program: Program,
    whole: tuple[Path, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path(shutil.copytree(whole[0], tmp_path / "cache"))
    calls: list[None] = []
    with readable_only(tmp_path / "cache") as cache:
        names = sorted(cache.rglob("*"))
        code, out, _ = program(*building(material, cache))
        assert (code, json.loads(out)["adm_calls"]) == (0, 0)
        with monkeypatch.context() as patched:
            patched.setattr(Adm, "forward", lambda *_: calls.append(None))
            code, _, said = program(*building(material, cache, features="image,eps,dire"))
        assert code == 1
        assert "may only be read" in said
        assert calls == []
        run = tmp_path / "run"
        code, _, said = program(
            "train", "--cache", cache, "--dataset", "d", "--run", run, "--method", "eps", "--backbone", "small",
            "--epochs", "1", "--batch-size", "4", "--device", "cpu",
        )  # fmt: skip
        assert (code, said) == (0, "")
        assert program("evaluate", run, "--cache", cache, "--dataset", "d", "--device", "cpu")[0] == 0
        assert program("cache", "ls", cache)[0] == 0
        assert program("cache", "verify", cache)[0] == 0
        assert sorted(cache.rglob("*")) == names
