"""The cold scan of small files against reading and hashing them alone, and a build that has nothing to do.

    python benchmarks/scanning.py [--images 100000] [--rounds 5]

The second part makes that many distinct images of 16x16 pixels, builds their cached pictures once, and then times the same
command again, start of the process included.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from compare import Comparison, compare, conditions, show
from distil_cache.pipeline.scan.scan import scan
from distil_cache.pipeline.sources.discover import discover
from distil_cache.pipeline.sources.file import SourceFile
from PIL import Image

KINDS = {"PNG": ("png", 96, {"compress_level": 1}), "JPEG": ("jpg", 192, {"quality": 92})}
"""Format to suffix, side in pixels and options that give smooth random pictures of about 15 kB."""


def cold_scans(folder: Path, images: int = 2000) -> list[Comparison]:
    """One file of 15 kB, read and hashed as barely as Python can, and scanned with the facts that an audit asks for."""
    comparisons = []
    for kind, (suffix, side, options) in KINDS.items():
        files = discover(write_pictures(folder / kind, images, kind, suffix, side, options)).files
        ways = {
            "reading and SHA-256 alone": lambda files=files: bare(files),
            "cold scan, 1 thread": lambda files=files: scan(files, workers=1),
            "cold scan, 2 threads": lambda files=files: scan(files, workers=2),
        }
        size = sum(os.stat(file.location).st_size for file in files) // len(files)  # noqa: PTH116
        comparisons.append(Comparison(f"scanning one {kind} of {size:,} bytes", ways, images))
    return comparisons


def bare(files: Sequence[SourceFile]) -> None:
    for file in files:
        with open(file.location, "rb", buffering=0) as stream:  # noqa: PTH123
            hashlib.sha256(stream.read()).hexdigest()


def warm_builds(folder: Path, images: int, rounds: int) -> None:
    """Time the command that builds ``images`` unchanged images, and check that it opens and decodes none."""
    sources = write_pictures(folder / "tiny", images, "PNG", "png", 16, {"compress_level": 1})
    first = _build(sources, folder / "cache")
    print(
        f"{images:,} images: the first build takes {first[0]:.1f} s ({first[1]:.1f} CPU), {first[2]['opened']:,} opened"
    )
    times = [_build(sources, folder / "cache") for _ in range(rounds)]
    assert all((result["opened"], result["decoded"]) == (0, 0) for _, _, result in times)
    wall, cpu, inside = (
        statistics.median(values) for values in zip(*((t[0], t[1], t[2]["seconds"]) for t in times), strict=True)
    )
    print(
        f"again, unchanged: {wall:.1f} s of the whole process ({cpu:.1f} CPU), {inside:.1f} s of it after the imports; "
        f"0 opened, 0 decoded; fastest {min(t[0] for t in times):.1f} s; load {os.getloadavg()[0]:.1f}"
    )


def _build(sources: Path, cache: Path) -> tuple[float, float, dict[str, int]]:
    """Return seconds on the clock, CPU seconds and the result of one command."""
    command = [
        sys.executable, "-c", "from distil_cache.cli import main; main()", "build", str(sources), "--cache", str(cache),
        "--dataset", "tiny", "--adm", "demo", "--features", "image", "--image-size", "16", "--shard-size", "4096", "--json",
    ]  # fmt: skip
    wall, before = time.perf_counter(), os.times()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - wall, cpu, json.loads(done.stdout)


def write_pictures(folder: Path, images: int, kind: str, suffix: str, side: int, options: dict[str, int]) -> Path:
    """Save distinct pictures, half of them in each class, in the layout of ForenSynths; smooth ones where that is possible."""
    rng = np.random.default_rng(0)
    for label in ("0_real", "1_fake"):
        (folder / "train" / "gen" / label).mkdir(parents=True)
    for number in range(images):
        pixels = rng.integers(0, 256, (max(side // 8, 16),) * 2 + (3,), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
        picture.save(
            folder / "train" / "gen" / ("1_fake" if number % 2 else "0_real") / f"{number:06d}.{suffix}",
            kind,
            **options,
        )
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000, help="of the warm build; 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(", ".join(f"{name} {value}" for name, value in conditions().items()), "\n")
    with tempfile.TemporaryDirectory() as folder:
        for comparison in cold_scans(Path(folder)):
            show(comparison, compare(comparison, options.rounds))
        if options.images:
            warm_builds(Path(folder), options.images, options.rounds)


if __name__ == "__main__":
    main()
