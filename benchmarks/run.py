"""Compare ways to do the same work, in one process, in interleaved rounds; print medians and the ratio to the first way.

    python benchmarks/run.py [--rounds 5] [--only adm build scan shards loader] [--compile] [--json FILE]

Machines are noisy: read the ratios, not the milliseconds. CPU time is that of all threads of this process.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from adm_call import adm_calls, medium_adm, shipped_calls
from compare import Comparison, compare, conditions, show
from loader import loader_comparisons
from scanning import cold_scans
from shards import shard_comparisons
from whole_build import warm_build, whole_build

SUBJECTS: dict[str, Callable[[Path, bool], list[Comparison]]] = {
    "adm": lambda _, compiled: [
        shipped_calls(compiled=compiled),
        adm_calls(medium_adm(), "25 M parameters", compiled=compiled, rounds=3),
    ],
    "build": lambda folder, _: [whole_build(folder)],
    "scan": lambda folder, _: [*cold_scans(folder / "cold"), warm_build(folder)],
    "shards": lambda folder, _: shard_comparisons(folder),
    "loader": lambda folder, _: loader_comparisons(folder),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--compile", action="store_true", help="also compile the ADMs, which takes minutes")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    where = conditions()
    print(", ".join(f"{name} {value}" for name, value in where.items()), "\n")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for subject in options.only:
            for comparison in SUBJECTS[subject](Path(folder), options.compile):
                rows += show(comparison, compare(comparison, options.rounds))
    if options.json:
        options.json.write_text(json.dumps({"conditions": where, "results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
