"""Interleaved rounds, medians and a table: what every benchmark here shares."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from distil_cache.cache.shards.format import Rows
from distil_cache.cache.store import FeatureStore
from distil_cache.models.device import device_name

Ways = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Comparison:
    """Ways to do the same work on ``items`` items; the first is what the others are compared with."""

    title: str
    ways: Ways
    items: int
    rounds: int | None = None


@dataclass(frozen=True)
class Timing:
    """Median milliseconds an item: on the clock, and of this process' CPU time, which other programs disturb less."""

    wall: float
    cpu: float


def compare(comparison: Comparison, rounds: int) -> dict[str, Timing]:
    """Run each way once to warm up, then ``rounds`` times in turn."""
    for way in comparison.ways.values():
        way()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in comparison.ways}
    for _ in range(comparison.rounds or rounds):
        for name, way in comparison.ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            way()
            spent = time.perf_counter() - wall, time.process_time() - cpu
            times[name].append((spent[0] / comparison.items * 1e3, spent[1] / comparison.items * 1e3))
    return {
        name: Timing(*(statistics.median(values) for values in zip(*spent, strict=True)))
        for name, spent in times.items()
    }


def show(comparison: Comparison, medians: dict[str, Timing]) -> list[dict[str, object]]:
    """Print a table and return its rows."""
    first = next(iter(medians.values()))
    print(f"{comparison.title}\n{'':46}{'ms':>9}{'ratio':>7}{'CPU ms':>9}{'ratio':>7}")
    rows: list[dict[str, object]] = []
    for way, median in medians.items():
        wall, cpu = median.wall / first.wall, median.cpu / max(first.cpu, 1e-9)
        print(f"  {way:44}{median.wall:9.3f}{wall:7.2f}{median.cpu:9.3f}{cpu:7.2f}", flush=True)
        rows.append(
            {
                "comparison": comparison.title,
                "way": way,
                "ms": median.wall,
                "ratio": wall,
                "cpu_ms": median.cpu,
                "cpu_ratio": cpu,
            }
        )
    print(flush=True)
    return rows


def conditions() -> dict[str, str]:
    """Where and when this is measured, and what."""
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )  # fmt: skip
    return {
        "machine": f"{device_name(torch.device('cpu'))}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip() or "unknown",
    }


def first_rows(store: FeatureStore, count: int) -> Rows:
    """The first rows of the feature, over as many shards as it takes."""
    parts: list[Rows] = []
    for shard in store.marker_ids():
        if sum(map(len, parts)) < count:
            parts.append(store.read(shard))
    return np.concatenate(parts)[:count]
