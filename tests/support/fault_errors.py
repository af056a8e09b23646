"""Commands of which one file operation after the other fails with an error of the system: EACCES, EIO, EMFILE, ENOSPC, ESTALE.

Each failure has a copy of the cache and a process of its own, in which the command line runs as a user starts it. After it
nothing that is needed may be missing, nothing beside the cache may have changed, and the command must have said in a
sentence that it failed. Then the same command runs undisturbed, and the cache must be what it would have been.

As a program it prints one JSON line for each failure: ``python fault_errors.py FOLDER COMMANDS ERRORS MODES CALLS EVERY SEED``,
lists with commas.
"""

from __future__ import annotations

import errno
import functools
import gc
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import typer.main
from distil_cache import cli
from distil_cache.commands.show import cache as _cache  # noqa: F401  (what a command imports is shared with the children)
from distil_cache.commands.show import train as _train  # noqa: F401
from fault_checks import contents, lacking
from fault_injection import in_child
from fault_refusals import CALLS, EXHAUSTED, Refusal, Refused, kind_of
from fault_scenarios import OLD, Prepared, prepare

MODES = ("once", "lasting", "shut")
"""One operation fails; the same one fails from then on; all that lies below one folder is out of reach."""
SHUTTING = (errno.EACCES, errno.EIO, errno.ESTALE)
SECONDS = 300
"""After which a command counts as hung."""
DOCUMENTED = (0, 1, 4)
PROGRESS = re.compile(r".*: [\d,]+ done in .*\n")
"""A line on stderr that says how far a command has come, and nothing about what failed."""

Contents = dict[str, tuple[int, int, str]]

typer.main.get_command = functools.cache(typer.main.get_command)  # making it anew takes longer than most commands do
typer.main.get_command(cli.app)


@dataclass(frozen=True)
class Scenario:
    """A command to disturb, with what it does undisturbed.

    code, answer : its exit code and what it prints. expected : what it makes. seen : the operations that can fail, by error.
    before, after : what is lacking at the start already, and after it has run.
    """

    prepared: Prepared
    code: int
    answer: str
    expected: dict[str, Any]
    before: list[str]
    after: list[str]
    seen: dict[int, list[tuple[str, str]]] = field(repr=False)


def run_command(work: Path, arguments: Sequence[str], refusal: Refusal | None = None) -> dict[str, Any]:
    """Run the command line in this process, which must be a child's, in the folder ``work``.

    Returns ``code``, ``said`` (on stderr), ``printed`` (on stdout), ``seen`` and ``hit`` as :class:`Refused` has them.
    """
    signal.alarm(SECONDS)
    said, printed = io.StringIO(), io.StringIO()
    os.chdir(work)
    before = sys.argv, sys.stdout, sys.stderr
    sys.argv, sys.stdout, sys.stderr = ["distil-cache", *arguments], printed, said
    watch = Refused(work, refusal) if refusal is not None else None
    code: Any = 0
    try:
        cli.main()
    except SystemExit as error:
        code = error.code or 0
    except BaseException:  # what Python itself would do
        traceback.print_exc(file=said)
        code = 1
    sys.argv, sys.stdout, sys.stderr = before
    told = {"code": code, "said": said.getvalue(), "printed": printed.getvalue(), "seen": [], "hit": None}
    return told | ({"seen": watch.seen, "hit": watch.hit} if watch else {})


def undisturbed(prepared: Prepared, folder: Path) -> Scenario:
    """Run a command without a failure, and once more for each error to list the operations that can fail with it."""
    work = copied(prepared.start, folder / "undisturbed") / "work"
    before = in_child(lambda: lacking(work / "cache", prepared.needs))[1]
    done = in_child(lambda: run_command(work, prepared.arguments))[1]
    assert done["code"] in DOCUMENTED, done
    expected, after = in_child(lambda: [prepared.looks(work), lacking(work / "cache", prepared.needs)])[1]
    shutil.rmtree(work.parent)
    seen = {}
    for error in CALLS:
        work = copied(prepared.start, folder / "undisturbed") / "work"
        refusal = Refusal(error)
        watched = in_child(lambda work=work, refusal=refusal: run_command(work, prepared.arguments, refusal))[1]
        assert watched["code"] == done["code"], watched
        seen[error] = [(call, path) for call, path in watched["seen"]]
        shutil.rmtree(work.parent)
    return Scenario(prepared, done["code"], done["printed"], expected, before, after, seen)


def points(scenario: Scenario, error: int, mode: str, calls: Sequence[str] = ()) -> list[Refusal]:
    """Return all that can fail in one way. calls : only these.

    A lasting failure begins with the first of its operations, and there is none where they are the only one of their kind.
    """
    if mode == "shut":
        work = scenario.prepared.start / "work"
        folders = [".", *(path.relative_to(work).as_posix() for path in sorted(work.rglob("*")) if path.is_dir())]
        return [Refusal(error, shut=folder) for folder in folders] if error in SHUTTING else []
    seen = list(enumerate(scenario.seen[error], 1))
    if mode == "lasting" and error not in EXHAUSTED:
        kinds = [kind_of(*operation) for _, operation in seen]
        first: dict[tuple[str, str], int] = {}
        for place, kind in enumerate(kinds):
            first.setdefault(kind, place)
        seen = [seen[place] for kind, place in first.items() if kinds.count(kind) > 1]
    numbers = [number for number, (call, _) in seen if not calls or call in calls]
    return [Refusal(error, number, lasting=mode == "lasting") for number in numbers]


class Checker:
    """Fails operations of one command. What was found of what it left holds for all copies that it left the same."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario, self.place = scenario, folder / "disturbed"
        self.before: Contents = {}
        self.known: dict[str, list[str]] = {}

    def fail(self, refusal: Refusal) -> dict[str, Any]:
        """Let an operation fail, look at what is left, run the command again, look again.

        Returns what happened: ``ended`` in a word or two, what it ``said`` on stderr, or in its answer beyond what it says
        undisturbed, and the list ``wrong``, which should be empty.
        """
        prepared, work = self.scenario.prepared, self.place / "work"
        if not self.before:
            copied(prepared.start, self.place)
            self.before = contents(self.place)
        touch_leases(self.place)
        killed, told = in_child(lambda: run_command(work, prepared.arguments, refusal))
        ended = "hung" if killed else self.ending(told)
        said = f"signal {killed}" if killed else told["said"]
        wrong = [WRONG[ended].format(said=last_line(said), code=told and told["code"])] if ended in WRONG else []
        after = contents(self.place)
        if beside(after) != beside(self.before):
            wrong.append("something beside the cache has changed")
        complete = ended in ("no effect", "not reached", "silent")
        state = json.dumps([complete, aged(after)])
        if state not in self.known:
            self.known[state] = in_child(lambda: self.left(work, complete=complete))[1]
            after = {}  # the next run has changed it
        wrong += self.known[state]
        if unleased(after) != unleased(self.before):
            shutil.rmtree(self.place)
            self.before = {}
        hit = told["hit"] if told else None
        if ended == "told":
            said += "\n".join(sorted(words(told["printed"]) - words(self.scenario.answer)))
        return {
            "command": prepared.name, "error": errno.errorcode[refusal.error], "mode": mode_of(refusal),
            "refusal": asdict(refusal), "hit": refusal.shut or (" ".join(hit) if hit else ""),
            "ended": ended, "said": said[-2000:], "wrong": wrong,
        }  # fmt: skip

    def ending(self, told: dict[str, Any]) -> str:
        """Say in a word how a command ended: with or without a word about what failed, a traceback, a sentence."""
        code, said, printed = told["code"], told["said"], told["printed"]
        if "Traceback (most recent call last)" in said:
            return "traceback"
        if code not in DOCUMENTED:
            return "code"
        if code == 1 or (code == 4 and not printed):
            return "sentence" if re.fullmatch(r"(.+\n)*distil-cache: \S.*\n", said) else "no sentence"
        if code == self.scenario.code and same_answer(printed, self.scenario.answer):
            return "no effect" if told["hit"] else "not reached"
        told_of = PROGRESS.sub("", said) or words(printed) - words(self.scenario.answer)
        return "told" if told_of and (code or not self.scenario.code) else "silent"

    def left(self, work: Path, *, complete: bool) -> list[str]:
        """Say what is wrong with what a disturbed command left, and after the same command again. In a child.

        complete : it claimed to have done its work.
        """
        one = self.scenario
        needs, looks = one.prepared.needs, one.prepared.looks
        wrong = [f"lost: {what}" for what in lacking(work / "cache", needs) if what not in one.before]
        if complete:
            wrong += [f"done without a word, but {what}" for what in differing(lambda: looks(work), one.expected)]
        told = run_command(work, one.prepared.arguments)
        if told["code"] != one.code:
            wrong.append(f"the next run ended with {told['code']}: {last_line(told['said'] or told['printed'])}")
        wrong += [
            f"after the next run, lost: {what}" for what in lacking(work / "cache", needs) if what not in one.after
        ]
        return wrong + [f"after the next run, {what}" for what in differing(lambda: looks(work), one.expected)]


WRONG = {
    "traceback": "traceback: {said}",
    "hung": "it hung: {said}",
    "code": "exit code {code}: {said}",
    "no sentence": "exit code {code} and no sentence: {said}",
    "silent": "the answer differs without a word",
}
"""Endings that are wrong, and in which words."""


def differing(look: Callable[[], dict[str, Any]], expected: dict[str, Any]) -> list[str]:
    """Say in which parts what was made differs from what is expected, or why it cannot be looked at."""
    try:
        made = json.loads(json.dumps(look()))
    except Exception as error:
        return [f"it cannot be read: {type(error).__name__}: {error}"]
    return [f"{part} differ" for part in expected if made[part] != expected[part]]


def mode_of(refusal: Refusal) -> str:
    return "shut" if refusal.shut else "lasting" if refusal.lasting else "once"


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1][:400] if text.strip() else ""


def same_answer(printed: str, expected: str) -> bool:
    """Say whether two answers are equal but for what is drawn at random."""
    return plain(printed) == plain(expected)


def plain(text: str) -> str:
    """Take the random part out of the names of data, and the times out of what builds and trainings print."""
    text = re.sub(r'"(seconds|images_per_second|run)": [^\n]*', "", text)
    return re.sub(r"-[0-9a-f]{16}\.(zarr|tar)", r".\1", text)


def words(printed: str) -> set[str]:
    """Return the texts in an answer, which is JSON."""
    found: set[str] = set()

    def collect(value: Any) -> None:
        if isinstance(value, dict):
            value = [*value, *value.values()]
        if isinstance(value, list):
            for item in value:
                collect(item)
        elif isinstance(value, str):
            found.add(plain(value))

    collect(json.loads(printed) if printed else {})
    return found


@functools.cache
def _tree(start: Path) -> list[tuple[str, int, bytes | None]]:
    """Return what lies below a folder: path, mode, content (None: a folder)."""
    return [
        (path.relative_to(start).as_posix(), path.stat().st_mode, None if path.is_dir() else path.read_bytes())
        for path in sorted(start.rglob("*"))
    ]


def copied(start: Path, target: Path) -> Path:
    """Copy a start, all of it old but for the leases, whose holders live."""
    then = time.time() - OLD
    target.mkdir()
    tree = _tree(start)
    for name, mode, data in tree:
        path = target / name
        if data is None:
            path.mkdir(mode)
        else:
            path.write_bytes(data)
    for name, _, _ in reversed(tree):
        os.utime(target / name, (then, then))
    touch_leases(target)
    return target


def touch_leases(place: Path) -> None:
    for path in place.glob("work/cache/builders/*.json"):
        os.utime(path)


def beside(found: Contents) -> Contents:
    """Return the part of a start that no command may change."""
    return {name: what for name, what in found.items() if not name.startswith("work")}


def aged(found: Contents) -> dict[str, tuple[int, bool, str]]:
    """Return what of a start counts for the next run: of the times only whether they are old."""
    old = (time.time() - OLD / 2) * 1e9
    return {name: (mode, changed < old, digest) for name, (mode, changed, digest) in found.items()}


def unleased(found: Contents) -> dict[str, tuple[Any, ...]]:
    """Return what lies in a start with all times but those of leases, and of their folder, where clocks are read."""
    return {name: what[::2] if "cache/builders" in name else what for name, what in found.items()}


def campaign(
    folder: Path,
    names: Sequence[str],
    errors: Sequence[str],
    modes: Sequence[str] = MODES,
    calls: Sequence[str] = (),
    every: int = 1,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Let each operation of each command fail, or of ``every`` so many one, drawn at random."""
    draw = random.Random(seed)
    for name in names:
        place = folder / name
        place.mkdir()
        scenario = undisturbed(prepare(name, place), place)
        checker = Checker(scenario, place)
        for error in errors:
            for mode in modes:
                all_of_them = points(scenario, getattr(errno, error), mode, calls)
                for number in sorted(draw.sample(range(len(all_of_them)), -(-len(all_of_them) // every))):
                    yield checker.fail(all_of_them[number])
        shutil.rmtree(place)


def main() -> None:
    folder, *lists, every, seed = sys.argv[1:]
    names, errors, modes, calls = ([part for part in text.split(",") if part] for text in lists)
    gc.freeze()  # what was imported is shared with the children
    for result in campaign(Path(folder), names, errors, modes, calls, int(every), int(seed)):
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
