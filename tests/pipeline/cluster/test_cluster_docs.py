"""The commands of docs/how-to/cluster.md, as a reader would run them."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from distil_cache.cache.store import Cache
from patience import PATIENCE
from small_models import write_images

PAGE = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "cluster.md"


def commands_under(heading: str) -> list[str]:
    """Return the bash blocks of a section."""
    section = PAGE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    assert found
    return found


def run(script: str, folder: Path, **environment: str) -> str:
    """Run a script where the commands it names are those of this environment; returns what it printed."""
    shims = folder / "bin"
    shims.mkdir(exist_ok=True)
    for name, code in (
        ("distil-cache", "from distil_cache.cli import main; main()"),
        ("dask", "from dask.__main__ import main; main()"),
    ):
        (shims / name).write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$@"\n')
        (shims / name).chmod(0o755)
    done = subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=folder,
        env={**os.environ, "PATH": f"{shims}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path / "photos", {"train": 4})
    return tmp_path


def assert_built(folder: Path) -> None:
    (record,) = Cache.open(folder / "cache").builds().all()
    assert len(Cache.open(folder / "cache").open_feature(record.features["eps"].folder).index()) == 8


def test_the_array_job_and_the_build_after_it(folder: Path) -> None:
    job, last = commands_under("Array jobs")
    small = job.replace("--array", "--shard-size 2 --array")
    said = run(small, folder, SLURM_ARRAY_TASK_ID="2", SLURM_ARRAY_TASK_COUNT="2")
    assert "Part 2 of 2 finished" in said
    assert Cache.open(folder / "cache").builds().ids() == []
    run(last, folder)
    assert_built(folder)


@pytest.mark.slow
def test_the_build_in_worker_processes(folder: Path) -> None:
    (command,) = commands_under("Worker processes of one machine")
    run(command, folder)
    assert_built(folder)


@pytest.mark.slow
def test_the_build_on_a_dask_cluster(folder: Path) -> None:
    (commands,) = commands_under("A Dask cluster")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "8786" in commands
    run(commands.replace("8786", str(port)).replace("dask scheduler", "dask scheduler --no-dashboard"), folder)
    assert_built(folder)
