"""Processes of a simulation: real code in threads of which one runs at a time, from one call of the disk or store to the next.

Who drives the simulation decides which process takes how many steps, so a schedule can be drawn, repeated and shrunk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

_MOST_STEPS = 20_000


class Killed(BaseException):
    """Ends a killed process wherever it is. Calls after it have no effect either, so no ``finally`` tidies up."""


class Call(NamedTuple):
    """The call before which a process waits: the stage that its path tells, and the operation."""

    stage: str
    operation: str


class Process(threading.Thread):
    """Real code that stops before each call.

    Attributes
    ----------
    coming
        The call before which it waits.
    ended, result, error
        Whether it has ended, what the work returned, and what it raised.
    """

    def __init__(self, name: str, work: Callable[[], Any]) -> None:
        super().__init__(name=name, daemon=True)
        self.work = work
        self.coming = Call("", "")
        self.ended = False
        self.killed = False
        self.result: Any = None
        self.error: BaseException | None = None
        self._turn, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self.start()

    def run(self) -> None:
        self._turn.acquire()
        try:
            if not self.killed:
                self.result = self.work()
        except Killed:
            pass
        except BaseException as error:
            self.error = error
        self.ended = True
        self._back.release()

    def pause(self, call: Call) -> None:
        """Wait before a call for the next turn; called by the code that runs in this process."""
        if self.killed:
            raise Killed
        self.coming = call
        self._back.release()
        self._turn.acquire()
        if self.killed:
            raise Killed

    def step(self) -> None:
        """Let it go on to its next call, or its end."""
        if not self.ended:
            self._turn.release()
            self._back.acquire()

    def advance(self, reached: Callable[[Call], bool] = lambda call: False, most: int = _MOST_STEPS) -> None:
        """Let it go on until it waits before a call that is asked for; at most so many steps."""
        for _ in range(most):
            self.step()
            if self.ended or reached(self.coming):
                return
        if most == _MOST_STEPS:
            raise AssertionError(f"{self.name} does not end; it waits before {self.coming}")

    def kill(self) -> None:
        """End it as SIGKILL would: it does nothing more."""
        self.killed = True
        self.step()
        self.join()


def pause(stage: str, operation: str) -> None:
    """Let the process in which this code runs wait before a call; other threads go on."""
    current = threading.current_thread()
    if isinstance(current, Process):
        current.pause(Call(stage, operation))
