"""Find the features that an earlier ``ImageSpec.algorithm`` left in the cache, whose rows a build may take over.

A row of a derived feature follows from the pixels of its image. Where a file decodes to the same pixels as before, the
old row is therefore right under the new spec. Whether it does is known only once the file is decoded, so a plan can
say no more than how many rows may be taken over; :mod:`..execution.takeover` decides row by row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ...cache.spec import Spec
from ...cache.store import Cache, FeatureStore
from ...choices import IMAGE_ALGORITHMS
from ...features.registry import with_image_algorithm
from .plan import Plan, Task


def find_predecessors(cache: Cache | None, specs: Mapping[str, Spec]) -> dict[str, FeatureStore]:
    """Return feature -> store of the same feature of images of the algorithm before.

    Only stores that the cache has are returned, and none without the one of the images, which tells what is still
    right. Nothing is created.
    """
    if cache is None:
        return {}
    there = {folder.name for folder in cache.feature_folders()}
    for algorithm in IMAGE_ALGORITHMS:
        if algorithm >= specs["image"].algorithm:
            continue
        earlier = {feature: with_image_algorithm(spec, algorithm) for feature, spec in specs.items()}
        if earlier["image"].folder in there:
            return {feature: cache.feature(spec) for feature, spec in earlier.items() if spec.folder in there}
    return {}


def without_predecessors(plan: Plan, predecessors: Mapping[str, FeatureStore]) -> Plan:
    """Return the plan as it would be if each file decoded as before, so that every old row could be taken over."""
    if "image" not in predecessors:
        return plan
    tasks = tuple(_reduced(task, predecessors) for task in plan.tasks)
    missing = {feature: sum(len(task.missing.get(feature, ())) for task in tasks) for feature in plan.missing}
    return replace(plan, tasks=tasks, missing=missing)


def _reduced(task: Task, predecessors: Mapping[str, FeatureStore]) -> Task:
    missing = {}
    for feature, keys in task.missing.items():
        rest = np.flatnonzero(~held_by_all([predecessors.get("image"), predecessors.get(feature)], keys))
        if len(rest):
            missing[feature] = tuple(keys[number] for number in rest)
    return Task(task.image_shard, task.keys, missing)


def held_by_all(stores: list[FeatureStore | None], keys: tuple[str, ...] | list[str]) -> NDArray[np.bool_]:
    """Return a bool mask (N,) of the keys that have a row in each of these stores; none if a store is absent."""
    held = np.full(len(keys), all(store is not None for store in stores))
    for store in stores:
        if store is not None and held.any():
            held &= store.index().locate(keys)[0] >= 0
    return held
