"""A long build in a process of its own: how soon the first batch is done, what it costs over the bare arithmetic, memory.

    python benchmarks/long_build.py [--images 512] [--features image,eps,dire]

Smooth random pictures, the demo's ADM at 32 pixels, ``ddim20``. The bare arithmetic, the same passes of the same batches from
memory to memory, is measured before and after the build in this process; of a build everything counts, from the start
of Python on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compare import conditions
from distil_cache.models.diffusion.checkpoints import load_adm
from distil_cache.models.diffusion.noise_schedule import respace
from whole_build import BATCH, STEPS, bare, write_sources

CHILD = Path(__file__).with_name("long_build_child.py")


def build_in_a_child(sources: Path, cache: Path, features: str) -> dict[str, Any]:
    """Run the build; returns its CPU and wall seconds, those until the first batch, and resident MiB as it went on."""
    began = time.time()
    arguments = [sys.executable, str(CHILD), str(sources), str(cache), features, STEPS, str(BATCH)]
    found = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True)
    told: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return {**told, "first_batch": told["first_batch_at"] - began, "wall": time.time() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--features", default="image,eps,dire")
    options = parser.parse_args()
    print(", ".join(f"{name} {value}" for name, value in conditions().items()), "\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = write_sources(folder / "sources", options.images)
        passes = bare(sources, load_adm("demo").model, respace(STEPS, noise_schedule="linear", steps=1000))
        before = _cpu(passes)
        build = build_in_a_child(sources, folder / "cache", options.features)
        after = _cpu(passes)
    arithmetic = (before + after) / 2
    print(f"bare arithmetic: {before:.1f} CPU s before, {after:.1f} after")
    print(
        f"build: {build['cpu']:.1f} CPU s, {build['wall']:.1f} s on the clock; over bare {build['cpu'] / arithmetic:.3f}"
    )
    print(f"  of that before the first batch's work: {build['cpu_before_work']:.1f} CPU s")
    print(
        f"first batch done {build['first_batch']:.1f} s after the start (its passes take {arithmetic * BATCH / options.images:.1f})"
    )
    print("resident MiB at each tenth of the build:", build["resident"])


def _cpu(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
