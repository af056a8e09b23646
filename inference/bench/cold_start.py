"""The cost of starting from nothing: a fresh process that loads one method and judges its first image.

Run as a module it is that process: it reads a `MethodJob` as JSON from stdin and prints what it measured as JSON. The parent
calls :func:`cold_start`.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from ...errors import UserError
from .method_runner import MethodJob, load_job_adm, load_method_runner, set_up_process, some_images
from .timing import PassTimer, device_waiter


class ColdStart(BaseModel):
    """What one process measured: seconds from being started until its imports were done, of loading, of one image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: float
    load: float
    first: float
    peak_bytes: int


def cold_start(job: MethodJob) -> ColdStart:
    """Start a process for a job and return its figures. Raises UserError with the process' own words if it fails."""
    began = time.time()
    order = json.dumps({"began": began, "job": job.plain()})
    command = [sys.executable, "-m", __name__]
    done = subprocess.run(command, input=order, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"bench: the process that measures {job.method} failed: {last}")
    return ColdStart.model_validate_json(done.stdout.strip().splitlines()[-1])


def measure(job: MethodJob, began: float) -> ColdStart:
    """Load a job's networks, judge one image, then a full batch for the memory that it takes."""
    start = time.time() - began
    loading = time.perf_counter()
    device = set_up_process(job)
    wait = device_waiter(device)
    way = load_method_runner(job, device, lambda: load_job_adm(job, device))
    wait()
    load = time.perf_counter() - loading
    images = some_images(job.batch_size, job.size)
    clock = PassTimer(wait)
    way(images[:1], clock)
    if job.batch_size > 1:
        way(images, PassTimer(wait))
    return ColdStart(start=max(start, 0.0), load=load, first=clock.seconds, peak_bytes=peak_bytes(device))


def peak_bytes(device: torch.device) -> int:
    """Most memory this process has used: what torch allocated on CUDA, else what was resident.

    On Linux the kernel's own mark of the process is read; ``getrusage`` would give that of the parent if it is higher.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else highest * 1024


def main() -> None:
    """Be the process."""
    order = json.load(sys.stdin)
    try:
        found = measure(MethodJob(**order["job"]), order["began"])
    except torch.OutOfMemoryError:
        raise SystemExit("the device's memory does not suffice. Give a smaller --batch-size or free memory.") from None
    except UserError as error:
        raise SystemExit(str(error)) from None
    print(found.model_dump_json())


if __name__ == "__main__":
    main()
