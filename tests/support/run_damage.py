"""Runs whose files are not what they should be, and the commands that read them.

Each command runs as the command line in a child of its own, on a copy of the run. It may end well or with a sentence,
never with a traceback, and never wait for ever.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fault_errors import run_command
from fault_injection import in_child
from fault_scenarios import cache_to_train_from
from image_bytes import noise, saved
from run_state import best, newest

OWN = ("--cache", "cache", "--dataset", "pictures")
TRAIN = ("train", *OWN, "--method", "cnndet", "--backbone", "small", "--batch-size", "4", "--lr", "0.001", "--val-fraction", "0.4",
         "--initial-weights", "scratch", "--schedule", "constant", "--device", "cpu", "--json")  # fmt: skip
FINE_TUNING = tuple(one for one in TRAIN if one not in ("--initial-weights", "scratch"))
COMMANDS = {
    "resume": (*TRAIN, "--run", "run", "--epochs", "3", "--resume"),
    "finished": (*TRAIN, "--run", "run", "--epochs", "2", "--resume"),
    "init-from": (*FINE_TUNING, "--run", "next", "--epochs", "1", "--init-from", "run"),
    "evaluate": ("evaluate", "run", *OWN, "--split", "val", "--device", "cpu"),
    "predict": ("predict", "../image.png", "--run", "run", "--device", "cpu"),
    "checkpoint export": ("checkpoint", "export", "run", "out.safetensors", "--json"),
    "checkpoint import": ("checkpoint", "import", "../image.png", "--run", "run", "--json"),
    "report": ("report", "run", "--out", "report", "--json"),
    "cache ls": ("cache", "ls", "cache", "--json"),
}  # fmt: skip
"""Commands that read a run, or might."""

Damage = Callable[[Path], None]


def prepare(folder: Path) -> Path:
    """Train a small student, evaluate it, and return the folder to copy: ``work``, and what is read beside it."""
    start = folder / "start"
    in_child(lambda: cache_to_train_from(start) and None)
    (start / "image.png").write_bytes(saved(noise(40, 40)))
    for arguments in (COMMANDS["finished"], COMMANDS["evaluate"]):
        done = in_child(lambda arguments=arguments: run_command(start / "work", arguments))[1]
        assert done["code"] == 0, done
    return start


def files(run: Path) -> dict[str, Path]:
    """The files of a run, by what they are."""
    saved_state, (evaluation,) = newest(run), (run / "evaluations").iterdir()
    checkpoints = run / "checkpoints"
    return {
        "configuration": run / "config.json",
        "record": checkpoints / "last.json",
        "weights": checkpoints / saved_state.weights,
        "optimiser": checkpoints / saved_state.optimiser,
        "best": checkpoints / best(run).weights.name,
        "scores": checkpoints / best(run).scores.name,
        "evaluation": evaluation / "evaluation.json",
        "journal": run / "metrics.jsonl",
    }


def _write(content: bytes) -> Damage:
    def damage(path: Path) -> None:
        path.unlink()
        path.write_bytes(content)

    return damage


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _link_out(path: Path) -> None:
    path.rename(_work(path) / "elsewhere")
    path.symlink_to(_work(path) / "elsewhere")


def _work(path: Path) -> Path:
    return next(parent for parent in path.parents if parent.name == "work")


def _link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _link_to_a_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _huge(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(1 << 40)


DAMAGES: dict[str, Damage] = {
    "missing": Path.unlink,
    "empty": _write(b""),
    "cut": _cut,
    "deep": _write(b'{"a":' + b"[" * 100_000),
    "not UTF-8": _write(b'{"a": "\xff\xfe"}'),
    "a surrogate": _write(b'{"a": "\\ud800"}'),
    "a number": _write(b"7"),
    "a list": _write(b"[]"),
    "an object": _write(b"{}"),
    "NaN": _write(b"NaN"),
    "a pipe": _fifo,
    "a folder": _folder,
    "a link out": _link_out,
    "a link to itself": _link_to_itself,
    "a link to a device": _link_to_a_device,
    "huge": _huge,
}
"""What may happen to a file as a whole."""

VALUES: tuple[Any, ...] = (None, "text", "1", -1, 1e308, float("nan"), 10**30, [], {}, [{}], True, "../../x", "\0")
"""What may stand in the place of any value."""


def places(content: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place in a JSON document; of a long list the first item."""
    if path:
        yield path
    items = (
        content.items() if isinstance(content, dict) else enumerate(content[:1]) if isinstance(content, list) else ()
    )
    for key, value in items:
        yield from places(value, (*path, key))


def changed(text: str, place: tuple[str | int, ...], value: Any) -> str:
    """Put another value into a place; ``...`` deletes it."""
    content = json.loads(text)
    parent = content
    for key in place[:-1]:
        parent = parent[key]
    if value is ...:
        del parent[place[-1]]
    else:
        parent[place[-1]] = value
    return json.dumps(content)


def outcome(start: Path, command: str, damage: Callable[[Path], None], place: Path) -> dict[str, Any]:
    """Damage a copy of the run, run a command, and return its end: ``code``, ``said``, ``wrong``."""
    shutil.copytree(start, place, symlinks=True)
    work = place / "work"
    damage(work / "run")
    killed, told = in_child(lambda: run_command(work, COMMANDS[command]))
    shutil.rmtree(place)
    if killed:
        return {"code": -killed, "said": "", "wrong": f"signal {killed}"}
    said = told["said"]
    wrong = ""
    if "Traceback" in said:
        wrong = said.strip().splitlines()[-1]
    elif told["code"] not in (0, 1, 2, 4):
        wrong = f"code {told['code']}"
    elif told["code"] and sum(line.startswith("distil-cache: ") for line in said.splitlines()) != 1:
        wrong = f"no sentence: {said}"
    return {"code": told["code"], "said": said, "wrong": wrong}
