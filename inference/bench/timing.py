"""Timing of several ways in turn, round after round, so that what a machine does besides disturbs all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from .result import Warm

ROUND_SECONDS = 0.2
"""A way repeats its pass this long in each round, at least once: a pass of a millisecond alone would be mostly noise."""


@dataclass
class PassTimer:
    """Times one pass by its stages. ``wait`` returns when the device has done all that was asked of it."""

    wait: Callable[[], None]
    stages: dict[str, float] = field(default_factory=dict)
    cpu: float = 0.0

    def __post_init__(self) -> None:
        self.wait()
        self._began = time.perf_counter()
        self._cpu_began = time.process_time()

    def mark(self, stage: str) -> None:
        """End a stage, once the device has finished it."""
        self.wait()
        now = time.perf_counter()
        self.stages[stage] = self.stages.get(stage, 0.0) + now - self._began
        self._began = now
        self.cpu = time.process_time() - self._cpu_began

    @property
    def seconds(self) -> float:
        """All stages together."""
        return sum(self.stages.values())


Work = Callable[[PassTimer], object]


def time_interleaved(
    works: Mapping[str, Work],
    rounds: int,
    *,
    wait: Callable[[], None] = lambda: None,
    least: float = ROUND_SECONDS,
    done: Callable[[], None] = lambda: None,
) -> dict[str, list[PassTimer]]:
    """Run every work once to warm up, then all of them in turn ``rounds`` times; return the passes of each.

    A work marks its stages on the clock that it gets. least : seconds that each has in a round. done : called after
    each work of each round.
    """
    for work in works.values():
        work(PassTimer(wait))
    passes: dict[str, list[PassTimer]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            passes[name] += _for_a_while(work, wait, least)
            done()
    return passes


def _for_a_while(work: Work, wait: Callable[[], None], least: float) -> list[PassTimer]:
    passes: list[PassTimer] = []
    while not passes or sum(one.seconds for one in passes) < least:
        passes.append(PassTimer(wait))
        work(passes[-1])
        if not passes[-1].stages:
            raise ValueError("a work has to mark at least one stage")
    return passes


def medians(passes: Sequence[PassTimer], images: int) -> Warm:
    """Sum up the passes over batches of ``images`` images into seconds an image."""
    seconds = [one.seconds / images for one in passes]
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    return Warm(
        passes=len(passes),
        seconds=statistics.median(seconds),
        cpu_seconds=statistics.median(one.cpu / images for one in passes),
        quartiles=(low, high),
        stages={stage: statistics.median(one.stages[stage] / images for one in passes) for stage in passes[0].stages},
    )


def device_waiter(device: torch.device) -> Callable[[], None]:
    """Return what waits for a device: nothing to wait for on a CPU."""
    if device.type != "cuda":
        return lambda: None
    return lambda: torch.cuda.synchronize(device)
