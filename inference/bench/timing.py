"""Time several functions in turn, round after round, so that other load on the machine affects all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from .result import Warm

ROUND_SECONDS = 0.2
"""Least seconds per function and round: a single pass of a millisecond would be mostly noise."""


@dataclass
class PassTimer:
    """Times one pass by its stages.

    Attributes
    ----------
    wait : callable
        Waits until the device has finished all work.
    stages : dict
        Stage -> seconds of wall time.
    cpu : float
        Seconds of CPU time.
    """

    wait: Callable[[], None]
    stages: dict[str, float] = field(default_factory=dict)
    cpu: float = 0.0

    def __post_init__(self) -> None:
        self.wait()
        self._began = time.perf_counter()
        self._cpu_began = time.process_time()

    def mark(self, stage: str) -> None:
        """End a stage when the device has finished it."""
        self.wait()
        now = time.perf_counter()
        self.stages[stage] = self.stages.get(stage, 0.0) + now - self._began
        self._began = now
        self.cpu = time.process_time() - self._cpu_began

    @property
    def seconds(self) -> float:
        """Wall time of all stages."""
        return sum(self.stages.values())


Work = Callable[[PassTimer], object]
"""A function that is timed; it marks its stages on the timer."""


def time_interleaved(
    works: Mapping[str, Work],
    rounds: int,
    *,
    wait: Callable[[], None] = lambda: None,
    least: float = ROUND_SECONDS,
    done: Callable[[], None] = lambda: None,
) -> dict[str, list[PassTimer]]:
    """Run every function once to warm up, then all in turn ``rounds`` times.

    Parameters
    ----------
    works : Mapping
        Name -> function to time.
    rounds : int
    wait : callable
        Waits for the device.
    least : float
        Seconds per function and round, at least one pass.
    done : callable
        Called after each function in each round.

    Returns
    -------
    dict
        Name -> passes.
    """
    for work in works.values():
        work(PassTimer(wait))
    passes: dict[str, list[PassTimer]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            passes[name] += _repeat(work, wait, least)
            done()
    return passes


def _repeat(work: Work, wait: Callable[[], None], least: float) -> list[PassTimer]:
    passes: list[PassTimer] = []
    while not passes or sum(one.seconds for one in passes) < least:
        passes.append(PassTimer(wait))
        work(passes[-1])
        if not passes[-1].stages:
            raise ValueError("a timed function must mark at least one stage")
    return passes


def medians(passes: Sequence[PassTimer], images: int) -> Warm:
    """Summarise passes over batches of ``images`` images in seconds per image."""
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
    """Return a function that waits for a device; on a CPU it returns at once."""
    if device.type != "cuda":
        return lambda: None
    return lambda: torch.cuda.synchronize(device)
