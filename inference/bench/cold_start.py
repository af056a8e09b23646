"""Measure a cold start: a fresh process that loads one method and scores its first image.

Run as a module, this is that process: it reads a `MethodJob` as JSON from stdin and prints its measurements as JSON.
The parent calls :func:`cold_start`.
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
from ...models.device import is_out_of_memory
from .method_runner import MethodJob, load_job_adm, load_method_runner, noise_images, set_up_process
from .timing import PassTimer, device_waiter


class ColdStart(BaseModel):
    """The measurements of one process.

    Attributes
    ----------
    start, load, first : float
        Seconds for starting the interpreter and importing, for loading the networks, and for the first image.
    peak_bytes : int
        Peak memory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: float
    load: float
    first: float
    peak_bytes: int


def cold_start(job: MethodJob) -> ColdStart:
    """Measure a job in a fresh process.

    Raises
    ------
    UserError
        If the process fails, with its last message.
    """
    began = time.time()
    request = json.dumps({"began": began, "job": job.plain()})
    command = [sys.executable, "-m", __name__]
    done = subprocess.run(command, input=request, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"bench: the process that measures {job.method} failed: {last}")
    return ColdStart.model_validate_json(done.stdout.strip().splitlines()[-1])


def measure(job: MethodJob, began: float) -> ColdStart:
    """Load a job's networks, score one image, then a full batch for its memory.

    Parameters
    ----------
    job : MethodJob
    began : float
        Time at which the process was started, in seconds since the epoch.
    """
    start = time.time() - began
    loading = time.perf_counter()
    device = set_up_process(job)
    wait = device_waiter(device)
    runner = load_method_runner(job, device, lambda: load_job_adm(job, device))
    wait()
    load = time.perf_counter() - loading
    images = noise_images(job.batch_size, job.size)
    clock = PassTimer(wait)
    runner(images[:1], clock)
    if job.batch_size > 1:
        runner(images, PassTimer(wait))
    return ColdStart(start=max(start, 0.0), load=load, first=clock.seconds, peak_bytes=peak_bytes(device))


def peak_bytes(device: torch.device) -> int:
    """Return the peak memory of this process in bytes: allocated by torch on CUDA, else resident.

    On Linux it is read from the kernel's status of the process, since ``getrusage`` returns the parent's peak if that
    is higher.
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
    """Run the measuring process."""
    request = json.load(sys.stdin)
    try:
        found = measure(MethodJob(**request["job"]), request["began"])
    except UserError as error:
        raise SystemExit(str(error)) from None
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise SystemExit("out of device memory. Choose a smaller --batch-size or free memory.") from None
    print(found.model_dump_json())


if __name__ == "__main__":
    main()
