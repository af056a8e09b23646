"""Signals that end a command: it releases what it holds, and the exit code says which signal it was."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from patience import PATIENCE

COMMAND = """
import os, signal, sys, time
from distil_cache import signals
from distil_cache.signals import ended_by_signals

signals.REPEAT_SECONDS = 600.0  # a busy machine may take longer than seconds between the two
with ended_by_signals():
    try:
        print("under way", flush=True)
        time.sleep(600)
    except KeyboardInterrupt:
        print("giving back", flush=True)
        sys.stdin.readline()
        print("given back", flush=True)
        sys.exit(130)
"""
GIVEN_BACK = "giving back\ngiven back\n"


def start(code: str = COMMAND, before: str = "") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", before + code],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "under way\n"
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_that_comes_twice_ends_a_command_once_as_ctrl_c_does(number: signal.Signals, code: int) -> None:
    process = start()
    process.send_signal(number)
    assert process.stdout is not None
    assert process.stdout.readline() == "giving back\n"
    process.send_signal(number)
    assert process.communicate("go on\n", timeout=PATIENCE) == ("given back\n", "")
    assert process.returncode == code


def test_ctrl_c_keeps_its_exit_code_and_other_ends_keep_theirs() -> None:
    process = start(before="import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=PATIENCE) == (GIVEN_BACK, "")
    assert process.returncode == 130
    failed = start(COMMAND.replace("sys.exit(130)", "sys.exit(4)"))
    failed.send_signal(signal.SIGTERM)
    failed.communicate(timeout=PATIENCE)
    assert failed.returncode == 4


def test_a_signal_that_was_ignored_before_stays_ignored() -> None:
    process = start(
        COMMAND.replace("time.sleep(600)", "sys.stdin.readline()"),
        before="import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n",
    )
    process.send_signal(signal.SIGHUP)
    assert process.communicate("go on\n", timeout=PATIENCE) == ("", "")
    assert process.returncode == 0


def test_a_forked_child_ends_at_once() -> None:
    fork = """
        ready, started = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(started, b".")
            time.sleep(600)
            os._exit(0)
        os.read(ready, 1)
        os.kill(child, signal.SIGTERM)
        _, state = os.waitpid(child, 0)
        sys.exit(os.WTERMSIG(state))"""
    process = start(COMMAND.replace("\n        time.sleep(600)", fork, 1))
    assert process.communicate(timeout=PATIENCE) == ("", "")
    assert process.returncode == signal.SIGTERM
