"""Kill builds, compactions and collections some hundred times, in every stage of what they write, on both formats.

After each kill (every second one with a power failure on top, which loses what was not flushed) the cache must be sound;
after the same work is done again, all that lies in it must equal, to the bit, what undisturbed work makes. Prints how many
kills hit each stage, and ends with 1 if anything differed. Needs no torch. 660 kills take two and a half minutes of one core:

    python tools/kill_campaign.py [--per-stage 8] [--random 12] [--in-a-row 11] [--formats zarr webdataset]

With --store compactions and collections of a cache on S3 (a server on loopback, which needs moto and s3fs) are killed: at
requests that write and at requests of any kind, before the store sees them and once it has carried them out, and at random
moments. The cache must be sound then, hold all that is needed, and after another run equal the undisturbed one. A kill takes
a second or two of one core:

    python tools/kill_campaign.py --store [--per-stage 8] [--random 12] [--formats zarr webdataset]

With --errors nothing is killed: one file operation after the other of gc, compact, verify and a build or a training fails
with an error of the operating system (see tests/support/fault_errors.py for what must hold), once, from then on, or for all that lies
below one folder. Prints how the commands ended, and everything that was wrong. ``--every 10`` draws a tenth. A failure of gc,
compact or verify takes a tenth of a second of one core, of a build or a training two seconds; these need torch:

With --stages the commands of stage two are disturbed: train, sweep, evaluate, report, predict, exports and imports are killed, or find
the disk full or too small, and run again (see tests/support/fault_stages.py). A disturbance takes two to five seconds of one core:

    python tools/kill_campaign.py --stages train,sweep,evaluate,report,predict,export,import,"checkpoint import","checkpoint export"
        [--per-stage 8] [--random 12] [--disks 3]

    python tools/kill_campaign.py --errors [--commands gc,compact,repair] [--errno EACCES,EIO] [--modes once,lasting,shut] [--every 1]
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

import fault_errors
import fault_stages
from fault_injection import STAGES
from fault_kills import campaign
from fault_scenarios import COMMANDS

ERRORS = ("EACCES", "EIO", "EMFILE", "ENOSPC", "ESTALE")
LIGHT = ["gc", "gc-no-runs", "compact", "verify", "repair"]
"""Commands that take a twentieth of a second."""
ENDINGS = ("not reached", "no effect", "told", "sentence")
"""How a command may end when an operation of it has failed."""
MEMORY = Path("/dev/shm")


def run(forms: list[str], per_stage: int, at_random: int, in_a_row: int, seed: int) -> list[dict[str, Any]]:
    """Run the campaign on each format."""
    return [
        result
        for form in forms
        for result in collected(lambda folder, form=form: campaign(folder, form, per_stage, at_random, in_a_row, seed))
    ]


def collected(disturb: Callable[[Path], Iterable[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the results of a campaign in a folder that is removed afterwards; what is wrong is printed at once."""
    folder = Path(tempfile.mkdtemp(prefix="kills-", dir=MEMORY if MEMORY.is_dir() else None))
    results = []
    try:
        for result in disturb(folder):
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
    return aligned(head, lines)


def aligned(head: list[str], lines: list[list[Any]]) -> str:
    """Return a table in Markdown."""
    widths = [max(len(str(line[n])) for line in [head, *lines]) for n in range(len(head))]
    return "\n".join(
        "| " + " | ".join(str(cell).ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in [head, ["-" * width for width in widths], *lines]
    )


def run_errors(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Let the operations of each command fail."""
    return collected(
        lambda folder: fault_errors.campaign(
            folder, asked.commands, asked.errno, asked.modes, every=asked.every, seed=asked.seed
        )
    )


def run_stages(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Disturb the commands of stage two."""
    full = max(1, asked.per_stage // 3)
    return collected(
        lambda folder: fault_stages.campaign(
            folder, asked.stages, asked.per_stage, asked.random, full, asked.seed, asked.disks
        )
    )


def run_store(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Kill compactions and collections of a cache on S3."""
    import fault_store_kills

    def disturb(folder: Path) -> Iterable[dict[str, Any]]:
        with fault_store_kills.serving_through_proxy() as server:
            for form in asked.formats:
                place = folder / form
                yield from fault_store_kills.campaign(place, server, form, asked.per_stage, asked.random, asked.seed)

    return collected(disturb)


def store_table(results: list[dict[str, Any]]) -> str:
    """Return kills by work and request: before it, after it, and at random moments."""
    moments = ("before", "after", "random")
    counts = Counter((result["work"], result["request"], result["moment"]) for result in results if result["killed"])
    lines: list[list[Any]] = []
    for work, request in sorted({(work, request) for work, request, _ in counts}):
        row = [counts[work, request, moment] for moment in moments]
        lines.append([work, request, *row, sum(row)])
    lines.append(["together", "", *(sum(line[n] for line in lines) for n in range(2, 6))])
    return aligned(["work", "request", *moments, "together"], lines)


def stage_table(results: list[dict[str, Any]]) -> str:
    """Return kills at chosen events, at random moments, full disks, and how many of them something was wrong with."""
    lines: list[list[Any]] = []
    for stage in dict.fromkeys(result["stage"] for result in results):
        own = [result for result in results if result["stage"] == stage]
        chosen = sum(result["killed"] and bool(result["what"]) for result in own)
        at_random = sum(result["killed"] and not result["what"] for result in own)
        power = sum(result["power"] for result in own)
        full = sum(result["act"] == "full" for result in own)
        small = sum(result["act"] == "disk" for result in own)
        lines.append([stage, chosen, power, at_random, full, small, sum(bool(result["wrong"]) for result in own)])
    lines.append(["together", *(sum(line[n] for line in lines) for n in range(1, 7))])
    head = ["stage", "kills, chosen", "with power failure", "kills, random", "disk full", "disk too small", "wrong"]
    return aligned(head, lines)


def stage_hits(results: list[dict[str, Any]]) -> str:
    """Return at which calls on which files each stage was killed, or found the disk full, and how often."""
    lines = []
    for stage in dict.fromkeys(result["stage"] for result in results):
        hits = Counter(result["what"] for result in results if result["stage"] == stage and result["act"] != "disk")
        shown = ", ".join(f"{what or 'a random moment'} {count}" for what, count in sorted(hits.items()))
        lines.append(f"{stage}: {shown}")
    return "\n".join(lines)


def error_table(results: list[dict[str, Any]]) -> str:
    """Return how the commands ended, by command, error and mode, and how many of the failures something was wrong with."""
    kinds = list(dict.fromkeys((result["command"], result["error"], result["mode"]) for result in results))
    ended = Counter((result["command"], result["error"], result["mode"], result["ended"]) for result in results)
    wrong = Counter((result["command"], result["error"], result["mode"]) for result in results if result["wrong"])
    lines = []
    for kind in kinds:
        counts = [ended[*kind, ending] for ending in ENDINGS]
        failed = sum(count for (*of, _), count in ended.items() if tuple(of) == kind)
        lines.append([*kind, failed, *counts, wrong[kind]])
    lines.append(["together", "", "", *(sum(line[n] for line in lines) for n in range(3, 5 + len(ENDINGS)))])
    return aligned(["command", "error", "mode", "failures", *ENDINGS, "wrong"], lines)


def faults(results: list[dict[str, Any]]) -> str:
    """Return what was wrong, once each with how often, the errors, and the operations that failed."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in results:
        for what in result["wrong"]:
            found.setdefault((result["command"], general(what)), []).append(result)
    lines = []
    for (command, what), of_it in sorted(found.items(), key=lambda item: -len(item[1])):
        errors = ", ".join(sorted({result["error"] for result in of_it}))
        where = list(dict.fromkeys(general(result["hit"]) for result in of_it))
        more = f" and {len(where) - 3} more" if len(where) > 3 else ""
        lines.append(f"{command}, {len(of_it)} times, {errors}: {what}\n    at {'; '.join(where[:3])}{more}")
    return "\n".join(lines)


def general(text: str) -> str:
    """Take ids and paths out of a text."""
    if text.startswith("traceback: "):
        text = text.partition(": '")[0]
    text = re.sub(r"(/[^\s':/]+)*/disturbed/work/", "", text)
    return re.sub(r"[0-9a-f]{16,}", "#", re.sub(r"\.tmp-\S+", ".tmp", text))


def parts(text: str) -> list[str]:
    return text.split(",")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-stage", type=int, default=8, help="events to kill at in each stage of each kind of work")
    parser.add_argument("--random", type=int, default=12, help="kills at random moments of each kind of work")
    parser.add_argument(
        "--in-a-row", type=int, default=11, help="kills of each kind of work on one cache, before it is done"
    )
    parser.add_argument("--formats", nargs="+", default=["zarr", "webdataset"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--store", action="store_true", help="kill compactions and collections of a cache on S3 instead"
    )
    parser.add_argument("--errors", action="store_true", help="let file operations fail instead")
    parser.add_argument("--commands", type=parts, default=LIGHT, help="with --errors: " + ",".join(COMMANDS))
    parser.add_argument("--errno", type=parts, default=list(ERRORS), help="with --errors: " + ",".join(ERRORS))
    parser.add_argument(
        "--modes", type=parts, default=list(fault_errors.MODES), help="with --errors: once,lasting,shut"
    )
    parser.add_argument("--every", type=int, default=1, help="with --errors: of so many operations one fails")
    parser.add_argument(
        "--stages", type=parts, default=[], help="disturb commands of stage two: " + ",".join(fault_stages.STAGES)
    )
    parser.add_argument("--disks", type=int, default=0, help="with --stages: file systems that are too small (as root)")
    asked = parser.parse_args()
    gc.freeze()  # what was imported is shared with the children
    began = time.monotonic()
    if asked.errors:
        results = run_errors(asked)
        print(error_table(results), faults(results), sep="\n\n")
        wrong = [result for result in results if result["wrong"]]
        print(f"\n{len(results)} failures in {time.monotonic() - began:.0f} s; something was wrong with {len(wrong)}")
        raise SystemExit(1 if wrong else 0)
    if asked.stages:
        results = run_stages(asked)
        print(stage_table(results), stage_hits(results), sep="\n\n")
        wrong = [result for result in results if result["wrong"]]
        print(
            f"\n{len(results)} disturbances in {time.monotonic() - began:.0f} s; something was wrong with {len(wrong)}"
        )
        raise SystemExit(1 if wrong else 0)
    if asked.store:
        results = run_store(asked)
        print(store_table(results))
        wrong = [result for result in results if result["wrong"]]
        killed = sum(result["killed"] for result in results)
        print(f"\n{killed} kills in {time.monotonic() - began:.0f} s; something was wrong after {len(wrong)}")
        raise SystemExit(1 if wrong else 0)
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
