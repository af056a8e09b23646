"""Signals that end a command as Ctrl-C does, and signals that ask a training to stop after its step.

What a command holds is given back, and what was finished is kept.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended."""
REPEAT_SECONDS = 5.0
"""Job systems send a signal to a process and to its group: the second one is not to tear what the first one began."""
_ENDINGS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_STOPS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt in the main thread at a SIGTERM or SIGHUP; those that follow within seconds change nothing.

    A program that leaves the block with the exit code of Ctrl-C leaves it with that of the signal: 143 or 129. A signal that is
    ignored already (``nohup``) or handled by somebody else is left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, float]] = []
    here = os.getpid()

    def end(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != here:  # a child that was forked has nothing to give back
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not came or time.monotonic() - came[-1][1] > REPEAT_SECONDS:
            came.append((number, time.monotonic()))
            raise KeyboardInterrupt

    before: dict[int, Any] = {
        number: signal.SIG_DFL for number in _ENDINGS if signal.getsignal(number) == signal.SIG_DFL
    }
    try:
        _handle(dict.fromkeys(before, end))
        yield
    except SystemExit as error:
        if came and error.code == INTERRUPTED:
            raise SystemExit(128 + came[0][0]) from None
        raise
    except Exception as error:
        if came and getattr(error, "exit_code", None) == INTERRUPTED:
            error.exit_code = 128 + came[0][0]  # type: ignore[attr-defined]
        raise
    finally:
        _handle(before)


class StopRequest(threading.Event):
    """Set by the first signal; ``exit_code`` is that of a command which this signal ends."""

    exit_code = INTERRUPTED


@contextmanager
def interruptible() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C or SIGTERM into an event, so that no step is torn; the second one interrupts as usual."""
    stopped = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in _STOPS}

    def stop(number: int, _frame: FrameType | None) -> None:
        stopped.exit_code = 128 + number
        stopped.set()
        _handle(before)

    try:
        _handle(dict.fromkeys(_STOPS, stop))
        yield stopped
    finally:
        _handle(before)


def _handle(handlers: Mapping[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
