"""The device that a stage computes on: which one, what it is called, how exactly it computes, and its process' memory."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

import torch

from ..choices import Precision
from ..errors import UsageError

HALF_TYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions in which the networks' weights are not float32."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's ``mallopt``."""


def choose_device(name: str) -> torch.device:
    """Find the device to compute on: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises UsageError if the device is unknown or not there.
    """
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


def device_name(device: torch.device, *, of_machine: bool = False) -> str:
    """Return what a device is called: the GPU's name, or the processor's where the system tells it.

    of_machine : for what is remembered of a device. Two machines with one kind of processor differ in cores and memory, so a
    CPU is then named after its machine.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if of_machine:
        return f"CPU of {platform.node()}"
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8", errors="replace").splitlines() if about.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def set_precision(precision: Precision, device: torch.device) -> None:
    """Make float32 mean float32 (or TF32 where that was asked for) and the same input give the same bytes.

    cuDNN uses TF32 for convolutions unless told otherwise, and its benchmark mode may pick other kernels in every
    process. Raises UsageError for tf32 without a CUDA device, where nothing would honour it.
    """
    if precision == "tf32" and device.type != "cuda":
        raise UsageError(f"--precision tf32 needs a CUDA device, this build runs on {device.type}; use fp32.")
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def keep_freed_memory(device: torch.device) -> None:
    """Let this process keep what is freed for what is allocated next, if it computes on a CPU.

    A network on a CPU frees and allocates the same maps over and over. By default glibc gives much of it back to the system
    each time, under Dask's nanny nearly all, and every page that is used again costs a fault: a tenth to a half of all the
    time (``benchmarks/freed_memory.py``). Where there is no glibc, nothing happens. For the start of a process that is the
    program's own: in anybody else's it would change how all their code allocates.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that it takes
    library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
