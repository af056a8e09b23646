"""What it costs on a CPU to give freed memory back to the system: calls and training steps under three ways of freeing.

    python benchmarks/freed_memory.py [--rounds 3] [--json FILE]

``glibc`` as it is; ``Dask's nanny``, which lowers glibc's threshold for its workers; ``kept``, as every command of this
package does that computes on the CPU. Every measurement is a process of its own, because the ways cannot be mixed in one,
with one thread; the ways take turns, and the medians of the rounds are compared. Faults: pages asked of the system.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from adm_call import medium_adm
from compare import conditions
from distil_cache.models.device import keep_freed_memory
from distil_cache.models.diffusion.checkpoints import load_adm
from distil_cache.models.diffusion.unet import Adm
from distil_cache.pipeline.execution.networks import placed
from distil_cache.train.students.pixels import PixelStudent

WAYS: dict[str, dict[str, str]] = {
    "glibc": {},
    "Dask's nanny": {"MALLOC_TRIM_THRESHOLD_": "65536"},
    "kept": {},
}
REPEATS = 6


def calls(model: Adm, images: int) -> Callable[[], object]:
    """ADM calls as a build makes them."""
    size = model.config.image_size
    here, x, t = (
        placed(model, "fp32", torch.device("cpu")),
        torch.randn(images, 3, size, size),
        torch.full((images,), 50),
    )

    def call() -> object:
        with torch.inference_mode():
            return here(x, t)

    return call


def steps(backbone: str, images: int, size: int) -> Callable[[], object]:
    """Training steps of a student on image and eps."""
    student = PixelStudent.of(backbone, 6).train()
    optimizer = torch.optim.Adam(student.parameters(), 1e-4)
    x, label = torch.randn(images, 6, size, size), torch.rand(images).round()

    def step() -> object:
        loss = torch.nn.functional.binary_cross_entropy_with_logits(student({"x": x})[0].flatten(), label)
        optimizer.zero_grad()
        loss.backward()
        return optimizer.step()

    return step


WORK: dict[str, Callable[[], Callable[[], object]]] = {
    "demo ADM, 16 images of 32 pixels": lambda: calls(load_adm("demo").model, 16),
    "ADM of 25 M parameters, 8 images of 64 pixels": lambda: calls(medium_adm(), 8),
    "training step, small32, 32 images of 32 pixels": lambda: steps("small32", 32, 32),
    "training step, resnet50, 16 images of 64 pixels": lambda: steps("resnet50", 16, 64),
}


def measure(work: str, way: str) -> dict[str, float]:
    """Median processor milliseconds of one piece of work, its page faults, and the most memory of the process."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    if way == "kept":
        keep_freed_memory(torch.device("cpu"))
    run = WORK[work]()
    for _ in range(2):
        run()
    faults, spent = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, []
    for _ in range(REPEATS):
        began = time.process_time()
        run()
        spent.append(1e3 * (time.process_time() - began))
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "cpu_ms": statistics.median(spent),
        "faults": (used.ru_minflt - faults) / REPEATS,
        "most_mib": used.ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return
    rows: list[dict[str, Any]] = []
    for work in WORK:
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(options.rounds):
            for way, environment in WAYS.items():
                command = [sys.executable, __file__, "--measure", work, way]
                text = subprocess.check_output(command, env={**os.environ, **environment}, text=True)
                found[way].append(json.loads(text))
        print(work)
        for way, runs in found.items():
            medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
            rows.append({"work": work, "way": way, **medians})
            ratio = medians["cpu_ms"] / rows[-1 - list(WAYS).index(way)]["cpu_ms"]
            print(
                f"  {way:14}{medians['cpu_ms']:9.1f} ms of CPU {ratio:5.2f}{medians['faults']:11,.0f} faults"
                f"{medians['most_mib']:8,.0f} MiB at most",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps({"conditions": conditions(), "results": rows}, indent=2))


if __name__ == "__main__":
    main()
