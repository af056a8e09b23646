"""Check the commit protocol for longer than the tests do: all states of the model, and thousands of drawn schedules.

    python tools/check_protocol.py [--model] [--schedules N] [--bugs N]

Without options both instruments run as shortly as in the tests. ``--model`` visits the states of two builders, one gc,
readers and a crash at any step: minutes, and some gigabytes of memory. ``--schedules`` draws so many schedules for the
real code on a simulated disk and in a simulated store, a fifth of a second each. ``--bugs`` plants each bug in the real
code and draws at most so many schedules until it shows itself. Ends with 1 if the protocol as it is fails anywhere, or
a planted bug stays hidden. docs/explanation/protocol.md says what is checked. Needs no torch.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from protocol_machine import MACHINES, PLANTED, Kind, planted
from protocol_model import QUICK, SOUND, Scope, explore, initial_states


def check_model(whole: bool) -> Iterator[bool]:
    """Visit the states of each scope, from one initial state after the other, which takes less memory than from all."""
    gc.disable()  # states hold no cycles, and millions of them are slow to search for any
    for scope in (*QUICK, Scope(crash=False), Scope()) if whole else QUICK:
        for number, beginning in enumerate(initial_states(scope)):
            began = time.monotonic()
            result = explore(SOUND, scope, [beginning])
            seconds = time.monotonic() - began
            print(f"{scope}, beginning {number}: {result.states:,} states in {seconds:.0f} s", flush=True)
            if result.fault or result.stuck:
                print(f"  {result.fault or f'{result.stuck:,} states without a way to the end'}")
                print(*result.trace, sep="\n  ")
            yield not result.fault and not result.stuck


def drawn(kind: Kind, most: int, bug: str | None = None) -> tuple[int, BaseException | None]:
    """Draw schedules; return how many, and what went wrong."""
    count = 0

    class Counted(MACHINES[kind]):  # type: ignore[misc]
        def __init__(self) -> None:
            nonlocal count
            count += 1
            super().__init__()

    phases = [Phase.generate] if bug else [Phase.generate, Phase.shrink]
    try:
        with planted(bug) if bug else nullcontext():
            run_state_machine_as_test(
                Counted,
                settings=settings(
                    max_examples=most, stateful_step_count=15, deadline=None, database=None, phases=phases,
                    suppress_health_check=list(HealthCheck), print_blob=False, report_multiple_bugs=False,
                ),
            )  # fmt: skip
    except Exception as error:
        return count, error
    return count, None


def check_schedules(most: int) -> Iterator[bool]:
    """Draw schedules for the code as it is."""
    for kind in MACHINES:
        began = time.monotonic()
        count, error = drawn(kind, most)
        print(f"{kind}: {count:,} schedules in {time.monotonic() - began:.0f} s", flush=True)
        if error is not None:
            print(f"  {error}", *getattr(error, "__notes__", ()), sep="\n  ")
        yield error is None


def find_bugs(most: int) -> Iterator[bool]:
    """Plant each bug and draw schedules until it shows itself on the disk or in the store."""
    for bug in PLANTED:
        began = time.monotonic()
        found = {kind: drawn(kind, most, bug) for kind in MACHINES}
        answer = ", ".join(
            f"{kind}: {f'found by schedule {count}' if error else f'not found in {count}'}"
            for kind, (count, error) in found.items()
        )
        print(f"{bug}: {answer} ({time.monotonic() - began:.0f} s)", flush=True)
        yield any(error is not None for _, error in found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="store_true", help="visit all states of the whole model")
    parser.add_argument("--schedules", type=int, default=20, help="schedules to draw on the disk and in the store each")
    parser.add_argument("--bugs", type=int, default=0, help="most schedules to draw for each planted bug")
    asked = parser.parse_args()
    fine = [*check_model(asked.model), *check_schedules(asked.schedules)]
    fine += find_bugs(asked.bugs) if asked.bugs else []
    raise SystemExit(0 if all(fine) else 1)


if __name__ == "__main__":
    main()
