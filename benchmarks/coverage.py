"""Measure how often the report's 95 % intervals hold the truth, on simulated scores whose true measures are known.

    python benchmarks/coverage.py [--replicates 2000] [--images 20,80,1000] [--ap 0.6,0.9,0.99] [--clusters 0,10,20,50]

Logits of real and generated images are normal, apart by what gives the AP. With ``--clusters N`` the images of each class
are in N scenes that explain half of the variance, and whole scenes are resampled; 0 is independent images. ``paired
difference`` is that of the AP of two detectors that share half of their variance. A cell is the share of the intervals
that hold the truth; behind it, if any, the share that have no width. At 2,000 replicates a share of 95 % has a standard
error of 0.5 points.
"""

from __future__ import annotations

import argparse
from collections import Counter
from functools import cache

import numpy as np
from distil_cache.metrics.bootstrap import interval
from distil_cache.metrics.measures import Interval, average_precision, measures
from distil_cache.metrics.per_generator import GeneratorScores, per_generator

SHOWN = ("accuracy", "average_precision", "auc", "tpr_at_fpr_1", "tpr_at_fpr_5", "calibration_error")
DIFFERENCE = "paired difference"
POPULATION = 200_000
WITHIN = 0.5
"""Share of the variance between scenes, and of that which two detectors share."""

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def logits(labels: Floats, distance: float, scene: Floats, rng: np.random.Generator) -> Floats:
    """Return the logits of images whose scenes' part (variance ``WITHIN``) is given."""
    own = rng.normal(size=len(labels)) * np.sqrt(1 - WITHIN)
    return np.asarray(distance * (labels - 0.5) + scene + own)


def scores(values: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-values)))


def large_sample(distance: float) -> tuple[Floats, Floats]:
    """Return labels and scores of so many images that their measures are the true ones."""
    rng = np.random.default_rng(1)
    labels = np.repeat([0.0, 1.0], POPULATION // 2)
    return labels, scores(logits(labels, distance, rng.normal(size=POPULATION) * np.sqrt(WITHIN), rng))


@cache
def distance_of(ap: float) -> float:
    """Return the distance of the classes that gives an AP, by bisection."""
    low, high = 0.0, 8.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if (average_precision(*large_sample(middle)) or 0.0) < ap else (low, middle)
    return (low + high) / 2


@cache
def truth_of(ap: float) -> dict[str, float]:
    """Return the true measures of detectors with an AP, and the difference of two."""
    found = measures(*large_sample(distance_of(ap)))
    return {name: value for name, value in found.items() if value is not None} | {DIFFERENCE: 0.0}


def measured(values: Floats, labels: Floats, names: list[str] | None) -> GeneratorScores:
    generators = np.where(labels == 1, "generator", "")
    return per_generator(labels.astype(int), scores(values), generators, np.full(len(labels), "g"), clusters=names)[
        "generator"
    ]


def coverage(images: int, ap: float, clusters: int, replicates: int) -> dict[str, str]:
    """Return the share of intervals that hold the truth, and of those without width, by measure."""
    distance = distance_of(ap)
    truth = truth_of(ap)
    held: Counter[str] = Counter()
    flat: Counter[str] = Counter()
    given: Counter[str] = Counter()
    labels = np.repeat([0.0, 1.0], images)
    count = clusters or images
    number = np.concatenate([np.arange(images) % count, count + np.arange(images) % count])
    names = [str(one) for one in number] if clusters else None
    for replicate in range(replicates):
        rng = np.random.default_rng([replicate, images, clusters])
        scene = (rng.normal(size=2 * count) * np.sqrt(WITHIN))[number]
        first, second = (measured(logits(labels, distance, scene, rng), labels, names) for _ in range(2))
        found: dict[str, Interval | None] = {name: first.interval(name) for name in SHOWN}
        found[DIFFERENCE] = interval(second.replicates["average_precision"] - first.replicates["average_precision"])
        for name, one in found.items():
            if one is not None:
                given[name] += 1
                held[name] += one.low <= truth[name] <= one.high
                flat[name] += one.high == one.low
    cells = {}
    for name in (*SHOWN, DIFFERENCE):
        empty = f" ({100 * flat[name] / given[name]:.0f})" if flat[name] else ""
        cells[name] = f"{100 * held[name] / given[name]:.1f}{empty}" if given[name] else "none"
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicates", type=int, default=2000)
    parser.add_argument("--images", default="20,80,1000", help="images of each class")
    parser.add_argument("--ap", default="0.6,0.9,0.99")
    parser.add_argument("--clusters", default="0,10,20,50", help="scenes of each class; 0: independent images")
    options = parser.parse_args()
    names = (*SHOWN, DIFFERENCE)
    print("|".join(["", " images a class, scenes a class, AP ", *(f" {name} " for name in names), ""]))
    print("|".join(["", *["---"] * (len(names) + 1), ""]))
    for images in map(int, options.images.split(",")):
        for clusters in map(int, options.clusters.split(",")):
            if clusters > images:
                continue
            for ap in map(float, options.ap.split(",")):
                cells = coverage(images, ap, clusters, options.replicates)
                head = f" {images}, {clusters or '-'}, {ap:g} "
                print("|".join(["", head, *(f" {cells[name]} " for name in names), ""]), flush=True)


if __name__ == "__main__":
    main()
