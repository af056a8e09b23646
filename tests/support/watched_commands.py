"""Run commands of the program one after another, each in a process that is killed if it waits and may not take much memory.

A server has imported what the commands need, and forks for each: a command takes as long as its own work. It is a
process of its own, because a fork of a process with many threads may hang.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

PATIENCE = 120.0
"""Seconds after which a command waits for ever; none of these takes more than a few, however busy the machine."""
MEMORY = 3 * 2**30
"""Bytes of address space that a command may add to the server's: a build reserves half of that without using it."""
TRACEBACK = 99
MODULES = (
    "pipeline.build", "pipeline.audit.run", "pipeline.verify_sources", "pipeline.importing.importer",
    "train.engine.loop", "train.evaluation.evaluate", "train.runs.reference_checkpoint", "train.sweep",
    "inference.predict", "inference.bench.run", "report", "report.sections.bench", "cache.export.webdataset",
)  # fmt: skip


class Ended(NamedTuple):
    """How a command ended: its exit code (None if it had to be killed), and all that it printed."""

    code: int | None
    text: str


class Commands:
    """Runs commands on the server."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        self._server = server

    def run(self, *arguments: object) -> Ended:
        """Run a command to its end, or to its killing."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps([str(argument) for argument in arguments]), file=self._server.stdin, flush=True)
        return Ended(*json.loads(self._server.stdout.readline()))


@contextmanager
def watched_commands(folder: Path) -> Iterator[Commands]:
    """Start the server for the length of a ``with`` block; ``folder`` takes what commands print."""
    command = [sys.executable, __file__, str(folder / "printed.txt")]
    # without this each thread reserves addresses of its own, as many as the machine has threads
    environment = {**os.environ, "MALLOC_ARENA_MAX": "2"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True) as server:
        try:
            yield Commands(server)
        finally:
            assert server.stdin is not None
            server.stdin.close()


def _serve(printed: str) -> None:
    import importlib

    import torch

    torch.set_num_threads(1)
    for name in MODULES:
        importlib.import_module(f"distil_cache.{name}")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _command(json.loads(line), printed)
        code = _awaited(child)
        print(json.dumps([code, Path(printed).read_text(errors="replace")]), flush=True)


def _awaited(child: int) -> int | None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _command(arguments: list[str], printed: str) -> None:
    """Run a command as ``distil-cache`` does, in a forked process, and end it."""
    from distil_cache import cli

    output = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream, number in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
        os.dup2(stream, number)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    sys.argv = ["distil-cache", *arguments]
    code: object = 0
    try:
        cli.main()
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
        code = TRACEBACK
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    _serve(sys.argv[1])
