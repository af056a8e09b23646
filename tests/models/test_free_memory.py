"""What is left of memory: of the machine, and of the containers around the process."""

from __future__ import annotations

from pathlib import Path

import pytest
from distil_cache.models import free_memory
from distil_cache.models.free_memory import available_bytes, resident_bytes

GIB = 2**30


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GiB available and no control groups, whose files a test may add to."""
    (tmp_path / "meminfo").write_text("MemTotal: 16777216 kB\nMemFree: 1024 kB\nMemAvailable: 8388608 kB\n")
    for name, path in {"_MACHINE": "meminfo", "_GROUPS_OF_PROCESS": "cgroup", "_GROUPS": "groups"}.items():
        monkeypatch.setattr(free_memory, name, tmp_path / path)
    return tmp_path


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_a_machine_without_containers_has_what_its_kernel_calls_available(system: Path) -> None:
    assert available_bytes() == 8 * GIB


def test_the_limit_of_a_container_counts_and_files_in_memory_do_not(system: Path) -> None:
    (system / "cgroup").write_text("0::/\n")
    group(system / "groups", memory__max=4 * GIB, memory__current=3 * GIB, memory__stat=f"inactive_file {GIB}")
    assert available_bytes() == 2 * GIB


def test_a_group_around_the_own_one_may_have_the_limit(system: Path) -> None:
    (system / "cgroup").write_text("0::/pod/job\n")
    group(system / "groups" / "pod" / "job", memory__max="max", memory__current=GIB)
    group(system / "groups" / "pod", memory__max=3 * GIB, memory__current=GIB)
    assert available_bytes() == 2 * GIB


def test_groups_of_the_first_version_count_too(system: Path) -> None:
    (system / "cgroup").write_text("5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n")
    stat = f"total_inactive_file {GIB // 2}"
    group(
        system / "groups" / "memory",
        memory__limit_in_bytes=2 * GIB, memory__usage_in_bytes=GIB, memory__stat=stat,
    )  # fmt: skip
    assert available_bytes() == 3 * GIB // 2


def test_a_group_that_is_over_its_limit_leaves_nothing(system: Path) -> None:
    (system / "cgroup").write_text("0::/\n")
    group(system / "groups", memory__max=GIB, memory__current=2 * GIB)
    assert available_bytes() == 0


def test_a_group_that_cannot_be_read_is_left_out(system: Path) -> None:
    (system / "cgroup").write_text("0::/gone\nnonsense\n")
    assert available_bytes() == 8 * GIB


def test_this_process_takes_memory_and_some_is_left() -> None:
    assert available_bytes() > 0
    assert resident_bytes() > 2**20
