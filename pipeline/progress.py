"""What a long step tells about itself; rendering is the caller's."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives stages, such as ``scan`` or ``ADM calls``, and how far each has come."""

    def start(self, stage: str, total: int) -> None:
        """Begin a stage of ``total`` units."""

    def advance(self, stage: str, units: int) -> None:
        """Note that ``units`` more are done."""


class Silent:
    """Progress that nobody looks at."""

    def start(self, stage: str, total: int) -> None:
        """Do nothing."""

    def advance(self, stage: str, units: int) -> None:
        """Do nothing."""
