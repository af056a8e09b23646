"""Memory that is left for this process: what the machine has available, within the limits of its containers.

A container limits memory by its control group (cgroup, version 1 or 2), and so may each group around it. Pages of files
that the kernel can drop at any time do not count as taken, as in ``MemAvailable`` of the machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_GROUPS_OF_PROCESS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")
_MACHINE = Path("/proc/meminfo")
_RESIDENT = Path("/proc/self/statm")
_FILES = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""By version: the files with the limit and the use, and the entry of ``memory.stat`` with what can be dropped."""


def available_bytes() -> int:
    """Return the bytes that this process can still take without swapping or reaching a container's limit."""
    return max(0, min([_of_machine(), *_of_groups()]))


def resident_bytes() -> int:
    """Return the bytes of memory that this process takes; 0 where the system does not say."""
    try:
        return int(_RESIDENT.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _of_machine() -> int:
    """Return the available memory; where the system does not tell it, the free memory, else all of it."""
    entries = _entries(_MACHINE)
    if "MemAvailable:" in entries:
        return entries["MemAvailable:"] * 1024
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def _of_groups() -> Iterator[int]:
    """Yield what each control group of this process that has a limit still allows."""
    try:
        lines = _GROUPS_OF_PROCESS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            yield from _up(_GROUPS, name, 2)
        elif "memory" in controllers.split(","):
            yield from _up(_GROUPS / "memory", name, 1)


def _up(root: Path, name: str, version: int) -> Iterator[int]:
    """Yield what a group and those around it allow. Inside a container its own group may appear as the root."""
    limit_file, use_file, droppable = _FILES[version]
    inside = root / name.strip("/")
    for folder in (inside, *inside.parents):
        limit, used = _number(folder / limit_file), _number(folder / use_file)
        if limit is not None and used is not None:
            yield limit - max(0, used - _entries(folder / "memory.stat").get(droppable, 0))
        if folder == root:
            return


def _number(path: Path) -> int | None:
    """Return the number in a file; None if there is none, as for a group without a limit."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _entries(path: Path) -> dict[str, int]:
    """Return the numbers of a file with lines of names and numbers; empty if it cannot be read."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
