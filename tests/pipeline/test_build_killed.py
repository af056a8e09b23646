"""A real build in a process of its own, killed with SIGKILL while it works, and started again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from distil_cache.cache.maintenance.verify import verify
from distil_cache.cache.store import Cache
from fault_injection import heed_interrupts, signalled_at
from maintained_cache import checksums
from small_models import STEPS, write_material


def command(folder: Path, cache: Path, before: str = "") -> list[str]:
    return [
        sys.executable, "-c", before + "from distil_cache.cli import main; main()",
        "build", str(folder / "images"), "--cache", str(cache), "--dataset", "d", "--json", "--steps", STEPS,
        "--adm", str(folder / "adm.safetensors"), "--teacher", "small",
        "--teacher-weights", str(folder / "teacher.safetensors"), "--shard-size", "8", "--device", "cpu",
    ]  # fmt: skip


def built(folder: Path, cache: Path) -> dict[str, int]:
    done = subprocess.run(command(folder, cache), capture_output=True, text=True, check=True)
    return {name: row["computed"] for name, row in json.loads(done.stdout)["features"].items()}


def kill_at(folder: Path, cache: Path, event: str, pattern: str) -> None:
    """Start a build that dies when it is about to do this to a path of this pattern."""
    dying = signalled_at(event, f"{cache}/{pattern}", signal.SIGKILL)
    done = subprocess.run(command(folder, cache, dying), capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_build_says_that_what_was_finished_is_kept(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    write_material(tmp_path, {"train": 8})
    cache = tmp_path / "cache"
    interrupted = signalled_at("os.link", f"{cache}/features/eps-*/shards/*.json", number)
    done = subprocess.run(
        command(tmp_path, cache, interrupted), capture_output=True, text=True, check=False, preexec_fn=heed_interrupts
    )
    assert done.returncode == code
    assert "Finished work is kept" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((cache / "builders").glob("*.json")) == []


def test_a_killed_build_goes_on_where_it_was_and_makes_the_bytes_of_an_undisturbed_one(tmp_path: Path) -> None:
    write_material(tmp_path, {"train": 12, "test": 4})
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    computed = built(tmp_path, whole)
    assert computed == {"image": 32, "eps": 32, "dire": 24, "teacher": 24}

    for event, pattern in (
        ("os.mkdir", "features/eps-*/shards/*.zarr/*"),
        ("os.mkdir", "features/teacher-*/shards/*.zarr"),
        ("os.link", "features/teacher-*/shards/*.json"),
    ):
        kill_at(tmp_path, killed, event, pattern)
    kept = {store.feature: len(store.index()) for store in Cache.open(killed).features()}
    assert kept["dire"] >= 8

    rest = built(tmp_path, killed)
    assert rest == {name: count - kept[name] for name, count in computed.items()}
    assert checksums(killed) == checksums(whole)
    assert verify(Cache.open(killed)) == []
