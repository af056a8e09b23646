"""Choosing the CPU: from then on freed memory stays in the process, whatever the environment says."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PAGE = 4096
TIMES, BYTES = 20, 16 << 20
COUNT_FAULTS = f"""
import resource
import torch
from distil_cache.models.device import choose_device

torch.set_num_threads(1)
if {{chosen}}:
    choose_device("cpu")
for _ in range(8):  # until the heap has grown
    torch.ones({BYTES // 4})
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({TIMES}):
    torch.ones({BYTES // 4})
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(chosen: bool) -> int:
    """Pages asked of the system by making the same tensor again and again, under the setting of Dask's nanny."""
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536"}
    program = COUNT_FAULTS.replace("{chosen}", str(chosen))
    return int(subprocess.check_output([sys.executable, "-c", program], env=environment, text=True))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_memory_that_was_freed_is_used_again_once_the_cpu_is_chosen() -> None:
    pytest.importorskip("torch")
    pages = TIMES * BYTES // PAGE
    assert faults(chosen=True) < pages / 20
    assert faults(chosen=False) > pages / 2, "otherwise this test shows nothing"
