"""Progress that tests look at afterwards."""

from __future__ import annotations

import os
from collections import Counter

from distil_cache.progress import Silent


class Recorded(Silent):
    """Keeps each stage's total, how much of it is done, and what was said."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}
        self.done: Counter[str] = Counter()
        self.said: list[str] = []

    def start(self, stage: str, total: int) -> None:
        self.totals[stage] = total

    def advance(self, stage: str, units: int) -> None:
        self.done[stage] += units

    def say(self, text: str) -> None:
        self.said.append(text)


class Signalling(Silent):
    """Sends this process a signal when such a share of a stage is done."""

    def __init__(self, share: float, number: int) -> None:
        self.share, self.number, self.left = share, number, 0.0

    def start(self, stage: str, total: int) -> None:
        self.left = self.share * total

    def advance(self, stage: str, units: int) -> None:
        before, self.left = self.left, self.left - units
        if self.left <= 0 < before:
            os.kill(os.getpid(), self.number)
