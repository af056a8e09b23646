"""System calls of a process, watched: it can die before any of them or half way through a write, or be refused one.

The code under test stays as it is. Only what it asks of the operating system below one folder passes through here:
making, linking, removing, renaming and flushing names, opening files to write, and writing. Each call is an event of
the stage that its path tells, and ``STAGE:N`` names the N-th event of a stage.
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

STAGES = (
    "cache.json", "scan memory", "lease", "spec", "data", "marker", "dataset", "build record", "head", "log", "index", "ref",
    "removal",
)  # fmt: skip
"""The write stages of a build, in the order in which it comes to them, and what gc adds."""

_NAMED = ("mkdir", "unlink", "rmdir", "fsync", "utime")
_MOVING = ("link", "rename", "replace")
Act = Callable[[], None]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def disk_full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def broken_disk() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def heed_interrupts() -> None:
    """Undo what a shell does to the programs that it starts in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


ACTS: dict[str, Act] = {"kill": die, "full": disk_full, "broken": broken_disk, "interrupt": interrupt}


def stage_of(relative: str, call: str, before: str) -> str:
    """Return the stage of a path below the cache; flushing a folder belongs to what was done in it, ``before``."""
    parts = Path(relative).parts
    name = parts[-1].removeprefix(".tmp-") if parts else ""
    match parts:
        case ():
            return before if call == "fsync" else "cache.json"
        case [*_, "removed"] | [*_, "removed", _]:
            return "removal"
        case ["features", _, "shards", top, *inner]:
            return "data" if inner or not (top.endswith(".json") or ".json-" in top) else "marker"
        case ["features", _, "index", *_]:
            return "index"
        case ["features", _, "log.jsonl"]:
            return "log"
        case [folder, *_] if call == "fsync" and "." not in name and folder != "builders":
            return before
        case ["features", *_]:
            return "spec"
        case ["datasets", _, _] if name.startswith("HEAD"):
            return "head"
        case ["datasets", _, _] if not name.startswith("scan"):
            return "dataset"
        case ["datasets", *_]:
            return "scan memory"
        case [("builds" | "refs" | "builders") as folder, *_]:
            return {"builds": "build record", "refs": "ref", "builders": "lease"}[folder]
    return "cache.json"


class Watch:
    """Watches the calls below ``root`` from now on in this process.

    at : ``STAGE:N``, the event before which ``act`` is called (a half written block counts as an event of its own).
    trace : a file outside the cache that gets a JSON line for each finished call: stage, call, paths.
    tell : is told each stage as it comes.
    """

    reads_too = False
    """Whether opening a file to read is an event, too."""

    def __init__(
        self,
        root: Path,
        *,
        at: str | None = None,
        act: Act = die,
        trace: Path | None = None,
        tell: Callable[[str], None] = lambda stage: None,
    ) -> None:
        self.root = str(root)
        stage, _, number = (at or ":0").rpartition(":")
        self.target = (stage, int(number))
        self.act, self.tell = act, tell
        if act is interrupt:
            heed_interrupts()
        self.counts: Counter[str] = Counter()
        self.stage = "cache.json"
        self.trace = -1 if trace is None else os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.real_write, self.real_open = os.write, io.open
        self.file: type[WatchedFile] = WatchedFile
        for name in _NAMED:
            self._wrap(name, getattr(os, name))
        for name in _MOVING:
            self._wrap(name, getattr(os, name), paths=2)
        self._wrap("open", os.open, only=lambda flags, *_: flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        self._wrap("write", os.write)
        io.open = builtins.open = self._opened  # type: ignore[assignment]

    def below(self, path: Any, dir_fd: int | None = None) -> str | None:
        """Return a path or an open file's path relative to the root, or None outside it."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")  # noqa: PTH115
        elif dir_fd is not None:
            path = f"{os.readlink(f'/proc/self/fd/{dir_fd}')}/{os.fspath(path)}"  # noqa: PTH115
        path = os.path.abspath(os.fsdecode(path))  # noqa: PTH100  (Path costs much more)
        if path == self.root:
            return "."
        return path[len(self.root) + 1 :] if path.startswith(self.root + "/") else None

    def due(self, relative: str, call: str) -> bool:
        """Note the event that comes next and say whether it is the one."""
        self.stage = stage_of(relative, call, self.stage)
        self.tell(self.stage)
        self.counts[self.stage] += 1
        return (self.stage, self.counts[self.stage]) == self.target

    def done(self, call: str, *paths: str) -> None:
        """Note a finished call in the trace."""
        if self.trace >= 0:
            self.real_write(self.trace, json.dumps([self.stage, call, *paths]).encode() + b"\n")

    def _wrap(
        self, name: str, real: Callable[..., Any], *, paths: int = 1, only: Callable[..., int] = lambda *_: 1
    ) -> None:
        def watched(path: Any, *rest: Any, **options: Any) -> Any:
            relative = self.below(path, options.get("dir_fd"))
            if relative is None or not only(*rest):
                return real(path, *rest, **options)
            if self.due(relative, name):
                self.act()
            result = real(path, *rest, **options)
            self.done(name, relative, *([self.below(rest[0]) or ""] if paths == 2 else []))
            return result

        setattr(os, name, watched)

    def _opened(self, file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **options: Any) -> Any:
        writes = bool(set(mode) & set("wxa+"))
        relative = None if isinstance(file, int) or not (writes or self.reads_too) else self.below(file)
        if relative is None:
            return self.real_open(file, mode, buffering, *rest, **options)
        if self.due(relative, self.opening(writes)):
            self.act()
        raw = self.file(
            self, relative, file, mode.replace("b", "").replace("t", ""), opener=options.pop("opener", None)
        )
        self.done("open", relative)
        if buffering == 0:
            return raw
        size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
        kind = io.BufferedRandom if "+" in mode else io.BufferedWriter if writes else io.BufferedReader
        buffered = kind(raw, size)  # type: ignore[type-var]
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *rest, **options)

    def opening(self, writes: bool) -> str:
        """Name the event of opening a file."""
        return "open"


class WatchedFile(io.FileIO):
    """A file of the cache whose writes are events: before each, and half way through it."""

    def __init__(self, watch: Watch, relative: str, file: Any, mode: str, opener: Any = None) -> None:
        super().__init__(file, mode, opener=opener)
        self.watch, self.relative = watch, relative

    def write(self, data: Any) -> int:
        if self.watch.due(self.relative, "write"):
            self.watch.act()
        if self.watch.due(self.relative, "half"):
            super().write(memoryview(data)[: len(data) // 2])
            self.watch.act()
        written = super().write(data)
        self.watch.done("write", self.relative)
        return written


def events(trace: Path) -> list[tuple[str, str, list[str]]]:
    """Return what a traced process did: stage, call, paths relative to the cache."""
    return [(stage, call, paths) for stage, call, *paths in map(json.loads, trace.read_text().splitlines())]


def lose_unflushed(root: Path, trace: Path) -> int:
    """Do to a cache what a power failure may do: drop the names and empty the files that nobody flushed.

    trace : what all processes did to the cache since it was last known to be on the disk. Returns how much was lost.
    """
    names: set[str] = set()  # not flushed
    contents: set[int] = set()  # inodes, not flushed
    inode: dict[str, int] = {}
    moved: dict[str, str] = {}
    for number, (_, call, paths) in enumerate(events(trace)):
        match call, paths:
            case "mkdir", [path]:
                names.add(path)
            case "open", [path]:
                if path not in inode:
                    inode[path] = number
                    names.add(path)
            case "write", [path]:
                contents.add(inode[path])
            case (("link" | "rename" | "replace"), [source, target]):
                inode[target] = inode.get(source, number)
                names.add(target)
                if call != "link":
                    moved[target] = source
            case (("unlink" | "rmdir"), [path]):
                names.discard(path)
                inode.pop(path, None)
            case "fsync", [path] if path in inode:
                contents.discard(inode[path])
            case "fsync", [path]:
                names = {name for name in names if path not in (_folder(name), _folder(moved.get(name, name)))}
    lost = 0
    for path, number in inode.items():
        if number in contents and (root / path).is_file():
            os.truncate(root / path, 0)
            lost += 1
    for name in sorted(names):
        if name in moved and (root / name).exists():  # a move is one step: it has happened or it has not
            if not (root / moved[name]).exists():
                (root / moved[name]).parent.mkdir(exist_ok=True)  # its deletion came later, and is undone, too
                (root / name).rename(root / moved[name])
                lost += 1
        elif (root / name).is_dir():
            shutil.rmtree(root / name)
            lost += 1
        elif (root / name).exists():
            (root / name).unlink()
            lost += 1
    return lost


def _folder(name: str) -> str:
    return str(Path(name).parent)


def in_child(work: Callable[[], Any]) -> tuple[int, Any]:
    """Fork, work, and return (the signal that ended the child or 0, what ``work`` returned, as JSON gives it back).

    An error that the child did not expect is raised here with its text.
    """
    with tempfile.TemporaryFile() as answer:
        child = os.fork()
        if child == 0:
            status = 1
            heed_interrupts()
            try:
                text = json.dumps(work())
                status = 0
            except BaseException as error:  # a child never returns
                import traceback

                text = json.dumps("".join(traceback.format_exception(error)))
            os.pwrite(answer.fileno(), text.encode(), 0)
            os._exit(status)
        state = os.waitpid(child, 0)[1]
        answer.seek(0)
        text = answer.read().decode()
    if os.WIFEXITED(state) and os.WEXITSTATUS(state):
        raise RuntimeError(json.loads(text))
    return (os.WTERMSIG(state), None) if os.WIFSIGNALED(state) else (0, json.loads(text))


def signalled_at(event: str, path: str, number: int) -> str:
    """Return the beginning of a program that sends itself a signal, once, just before Python's audit event over such a path.

    event : e.g. ``open``, ``os.mkdir`` or ``os.link``. path : a pattern.
    """
    return f"""
import os, sys
from fnmatch import fnmatchcase
due = [{number}]
def hear(event, arguments):
    if due and event == {event!r} and any(fnmatchcase(str(one), {path!r}) for one in arguments):
        os.kill(os.getpid(), due.pop())
sys.addaudithook(hear)
"""
