"""The device of a stage: which one, its name, its numerical precision, and the memory of its process."""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..choices import Precision
from ..errors import UsageError

HALF_TYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions in which the networks' weights are not float32."""

STUDENT_PRECISION: Precision = "fp32"
"""Precision of every student, in training, evaluation, prediction and bench; ``--amp`` selects parts of a training."""
STUDENT_ARITHMETIC = "float32 without TF32"
"""The same in words, for records."""

_DEVICE_FILES = Path("/dev")
_NEEDS_AMPERE = ("tf32", "bf16")
_AMPERE = (8, 0)
"""Compute capability from which on NVIDIA's GPUs have TF32 and bfloat16."""
_OUT_OF_MEMORY = (
    "out of memory",
    "alloc_failed",
    "unable to find an engine",
    "can't allocate memory",
    "not enough memory",
)
"""What errors of too little memory say, in lower case: CUDA's driver and caches, cuBLAS and cuDNN, and CPUs."""

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


def unusable_gpu() -> str:
    """Return why CUDA does not start where the system has a GPU of NVIDIA; nothing if it starts or there is none.

    Then ``auto`` means the CPU. A GPU that ``CUDA_VISIBLE_DEVICES`` hides is not missed, nor by a PyTorch without CUDA.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1")
    if torch.version.cuda is None or hidden or torch.cuda.is_available() or not any(_DEVICE_FILES.glob("nvidia[0-9]*")):
        return ""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().partition("\n")[0]
    return "no device is found"


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


def check_precision(precision: Precision, device: torch.device) -> None:
    """Refuse a precision that a device does not have; it would compute in another one and say nothing.

    Raises
    ------
    UsageError
        TF32 is requested without a CUDA device, or TF32 or bfloat16 of a GPU that is older than they are.
    """
    if precision == "tf32" and device.type != "cuda":
        raise UsageError(f"--precision tf32 needs a CUDA device, this build runs on {device.type}; use fp32.")
    if is_older_than(precision, device):
        major, minor = torch.cuda.get_device_capability(device)
        raise UsageError(
            f"--precision {precision}: {device_name(device)} does not have it (compute capability "
            f"{major}.{minor}, and {precision} needs {_AMPERE[0]}.{_AMPERE[1]}); use fp16 or fp32."
        )


def is_older_than(kind: str, device: torch.device) -> bool:
    """Return whether a device is a GPU of NVIDIA that is older than ``tf32`` or ``bf16``; no GPU is for other kinds."""
    if kind not in _NEEDS_AMPERE or device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) < _AMPERE


@contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """Compute with float32 as ``precision`` means it, inside a ``with`` block that all networks run in.

    There is one rule for features and students, in every command: float32 is float32. cuDNN uses TF32 for convolutions
    by default; here it does, as matrix products do, only for ``tf32``. Kernels are deterministic and not chosen by a
    benchmark, which may pick others in every process. ``device`` is the current one inside.

    These settings belong to the process, not to a thread. Blocks of the same kind may overlap in several threads; one
    of the other kind waits until they have ended. The settings are restored after the last. A CPU has none of them.

    Raises
    ------
    UsageError
        See :func:`check_precision`.
    """
    check_precision(precision, device)
    if device.type != "cuda":
        yield
        return
    with _FLOAT32.used(tf32=precision == "tf32"), torch.cuda.device(device):
        yield


class _Float32Settings:
    """PyTorch's settings for float32 on CUDA, which all threads of the process share."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._users = 0
        self._tf32 = False
        self._restore: Callable[[], None] = lambda: None

    @contextmanager
    def used(self, *, tf32: bool) -> Iterator[None]:
        """Hold the settings with or without TF32 for the length of a ``with`` block."""
        with self._changed:
            self._changed.wait_for(lambda: self._users == 0 or self._tf32 == tf32)
            if self._users == 0:
                self._restore, self._tf32 = _set_float32(tf32=tf32), tf32
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                if self._users == 0:
                    self._restore()
                self._changed.notify_all()


_FLOAT32 = _Float32Settings()


def _set_float32(*, tf32: bool) -> Callable[[], None]:
    """Change the settings; return a function that restores them.

    Newer versions of PyTorch have a setting for each library (``fp32_precision``) beside the flags ``allow_tf32``, and
    refuse to read a flag that another program has left in contradiction to them. So both are set, and the new are read.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    libraries: list[Any] = [matmul, cudnn.conv, cudnn.rnn] if hasattr(cudnn, "conv") else []
    before = [library.fp32_precision for library in libraries]
    flags = [precision == "tf32" for precision in before[:2]] or [matmul.allow_tf32, cudnn.allow_tf32]
    kernels = cudnn.benchmark, cudnn.deterministic

    def change(flags: Sequence[bool], precisions: Sequence[str], kernels: tuple[bool, bool]) -> None:
        matmul.allow_tf32, cudnn.allow_tf32 = flags
        for library, precision in zip(libraries, precisions, strict=True):
            library.fp32_precision = precision
        cudnn.benchmark, cudnn.deterministic = kernels

    change((tf32, tf32), ["tf32" if tf32 else "ieee"] * len(libraries), (False, True))
    return lambda: change(flags, before, kernels)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of PyTorch means that the device has too little memory for this work.

    Only its own allocator raises ``OutOfMemoryError``. What cuBLAS, cuDNN, the driver and a CPU's allocator cannot get
    arrives as another RuntimeError, which only its text tells apart.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)


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
