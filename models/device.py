"""The device that a stage computes on."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

import torch

from ..errors import UsageError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's ``mallopt``."""


def choose_device(name: str) -> torch.device:
    """Find the device to compute on: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    If it is the CPU, this process keeps freed memory from now on: see :func:`keep_freed_memory`.
    Raises UsageError if the device is unknown or not there.
    """
    device = _device(name)
    if device.type == "cpu":
        keep_freed_memory()
    return device


def keep_freed_memory() -> None:
    """Let the C library keep what is freed for what is allocated next, instead of giving it back to the system.

    A network on a CPU frees and allocates the same maps over and over. By default glibc gives much of it back each time,
    under Dask's nanny nearly all, and every page that is used again costs a fault: a tenth to a half of all the time
    (``benchmarks/freed_memory.py``). Where there is no glibc, nothing happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that it takes
    library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}: unknown; use auto, cpu or cuda:N.")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise UsageError(f"--device {name}: {count} CUDA devices are visible here; use a lower number or cpu.")
        return torch.device("cuda", device.index or 0)
    return device


def device_title(device: torch.device) -> str:
    """What a device is called: the GPU's name, or the processor's where the system tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8", errors="replace").splitlines() if about.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
