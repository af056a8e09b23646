"""Kill builds, compactions and collections some hundred times, in every stage of what they write, on both formats.

After each kill (every second one with a power failure on top, which loses what was not flushed) the cache must be sound;
after the same work is done again, all that lies in it must equal, to the bit, what undisturbed work makes. Prints how many
kills hit each stage, and ends with 1 if anything differed. Needs no torch. 660 kills take two and a half minutes of one core:

    python tools/kill_campaign.py [--per-stage 8] [--random 12] [--in-a-row 11] [--formats zarr webdataset]
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from fault_injection import STAGES
from fault_kills import campaign

MEMORY = Path("/dev/shm")


def run(forms: list[str], per_stage: int, at_random: int, in_a_row: int, seed: int) -> list[dict[str, Any]]:
    """Run the campaign on each format in a folder that is removed afterwards; every difference is printed at once."""
    results = []
    for form in forms:
        folder = Path(tempfile.mkdtemp(prefix="kills-", dir=MEMORY if MEMORY.is_dir() else None))
        try:
            for result in campaign(folder, form, per_stage, at_random, in_a_row, seed):
                results.append(result)
                if result["wrong"]:
                    print(json.dumps(result), file=sys.stderr, flush=True)
        finally:
            shutil.rmtree(folder)
    return results


def table(results: list[dict[str, Any]], forms: list[str]) -> str:
    """Return kills by stage: for each format those at chosen events and those at random moments."""
    columns = [(form, chosen) for form in forms for chosen in (True, False)]
    counts = Counter(
        (result["stage"] or "before the first", result["format"], bool(result["at"]))
        for result in results
        if result["killed"]
    )
    head = ["stage", *(f"{form}, {'chosen' if chosen else 'random'}" for form, chosen in columns), "together"]
    lines = []
    for stage in (*STAGES, "before the first"):
        row = [counts[stage, form, chosen] for form, chosen in columns]
        lines.append([stage, *row, sum(row)])
    lines.append(["together", *(sum(line[n] for line in lines) for n in range(1, len(columns) + 2))])
    widths = [max(len(str(line[n])) for line in [head, *lines]) for n in range(len(head))]
    return "\n".join(
        "| " + " | ".join(str(cell).ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in [head, ["-" * width for width in widths], *lines]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-stage", type=int, default=8, help="events to kill at in each stage of each kind of work")
    parser.add_argument("--random", type=int, default=12, help="kills at random moments of each kind of work")
    parser.add_argument(
        "--in-a-row", type=int, default=11, help="kills of each kind of work on one cache, before it is done"
    )
    parser.add_argument("--formats", nargs="+", default=["zarr", "webdataset"])
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    gc.freeze()  # what was imported is shared with the children
    began = time.monotonic()
    results = run(asked.formats, asked.per_stage, asked.random, asked.in_a_row, asked.seed)
    wrong = [result for result in results if result["wrong"]]
    power = [result for result in results if result["power"]]
    print(table(results, asked.formats))
    print(
        f"{sum(result['killed'] for result in results)} kills in {time.monotonic() - began:.0f} s, {len(power)} of them with "
        f"a power failure, which lost something {sum(result['lost'] > 0 for result in power)} times; {len(wrong)} differences"
    )
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
