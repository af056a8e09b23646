"""The device of a stage: which one, its name, its numerical precision, and the memory of its process."""

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
    """Return the device named by ``--device``.

    Parameters
    ----------
    name
        ``auto`` (the first GPU, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises
    ------
    UsageError
        The device is unknown or not present.
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
    """Return the name of the GPU, or of the processor where the system reports it.

    Parameters
    ----------
    device
        The device.
    of_machine
        Name a CPU after its machine instead. This is for measurements that are stored: two machines with the same
        processor differ in cores and memory.
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
    """Set up float32 arithmetic (TF32 if requested) in which the same input gives the same bytes.

    cuDNN uses TF32 for convolutions by default, and its benchmark mode may pick other kernels in every process.

    Raises
    ------
    UsageError
        TF32 is requested without a CUDA device.
    """
    if precision == "tf32" and device.type != "cuda":
        raise UsageError(f"--precision tf32 needs a CUDA device, this build runs on {device.type}; use fp32.")
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def keep_freed_memory(device: torch.device) -> None:
    """Let this process reuse freed memory instead of returning it to the system, if it computes on a CPU.

    A network on a CPU frees and allocates the same feature maps over and over. By default glibc returns much of that
    memory to the system each time, under Dask's nanny nearly all of it, and every page that is used again costs a page
    fault: a tenth to a half of the run time (``benchmarks/freed_memory.py``). Without glibc, nothing happens. Call this
    only at the start of the program's own processes: it changes how all code in the process allocates.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that it takes
    library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
