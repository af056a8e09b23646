"""What a long step tells about itself; rendering is the caller's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """Receives stages, such as ``scan`` or ``training``, how far each has come, and what it has to say."""

    def start(self, stage: str, total: int) -> None:
        """Begin a stage of ``total`` units."""

    def advance(self, stage: str, units: int) -> None:
        """Note that ``units`` more are done."""

    def note(self, stage: str, text: str) -> None:
        """Show a text beside a stage, such as its losses."""

    def say(self, text: str) -> None:
        """Show a line that stays, such as an address to look at."""


class Silent:
    """Progress that nobody looks at."""

    def start(self, stage: str, total: int) -> None:
        """Do nothing."""

    def advance(self, stage: str, units: int) -> None:
        """Do nothing."""

    def note(self, stage: str, text: str) -> None:
        """Do nothing."""

    def say(self, text: str) -> None:
        """Do nothing."""


def counter(progress: Progress, stage: str) -> Callable[[int, int], None]:
    """Return a function that takes (done, total) and reports the stage, which begins with its first call."""
    before: int | None = None

    def tell(done: int, total: int) -> None:
        nonlocal before
        if before is None:
            progress.start(stage, total)
        progress.advance(stage, done - (before or 0))
        before = done

    return tell
