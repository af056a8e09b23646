"""Peak memory of whole builds of 10,000, 30,000 and 100,000 images: scan, plan, decoding, shards and records, without an ADM.

    python benchmarks/build_memory.py [--images 10_000 30_000 100_000] [--folder DIR]

Distinct PNG files of 16x16 pixels, the feature ``image`` alone, shards of 512. Each command is a process of its own, of
which the peak of the resident memory is read, imports included. Each build is run a second time, with nothing to do.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from compare import conditions
from scanning import write_pictures

PROGRAM = """
import re, sys, time
from pathlib import Path
from distil_cache.cli import main
try:
    main()
finally:
    peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
    print(peak[1], time.process_time(), file=sys.stderr)
"""
"""The command, which says its peak in KiB and its seconds last. ``ru_maxrss`` would count that of this process, too."""


def some_of(pictures: Path, folder: Path, images: int) -> Path:
    """Link the first of the pictures into a folder of the same layout."""
    for path in sorted(pictures.rglob("*.png"), key=lambda path: path.name)[:images]:
        link = folder / path.relative_to(pictures)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.hardlink_to(path)
    return folder


def build(sources: Path, cache: Path) -> tuple[float, float]:
    """Run the command; returns the peak of its resident memory in MiB, and its CPU seconds."""
    command = [
        sys.executable, "-c", PROGRAM, "build", str(sources), "--cache", str(cache), "--dataset", "tiny", "--adm", "demo",
        "--features", "image", "--image-size", "16", "--shard-size", "512", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, seconds = done.stderr.splitlines()[-1].split()
    return int(peak) / 1024, float(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument("--folder", type=Path, help="where the pictures and caches are made and removed again")
    options = parser.parse_args()
    print(", ".join(f"{name} {value}" for name, value in conditions().items()), "\n")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        pictures = write_pictures(folder / "all", max(options.images), "PNG", "png", 16, {"compress_level": 1})
        for images in options.images:
            sources = some_of(pictures, folder / f"{images}", images)
            for what in ("first build", "again, nothing to do"):
                peak, seconds = build(sources, folder / f"cache-{images}")
                print(f"{images:>9,} images, {what}: peak {peak:,.0f} MiB, {seconds:.0f} CPU s", flush=True)


if __name__ == "__main__":
    main()
