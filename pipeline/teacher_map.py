"""Notes on a teacher whose feature map has little to teach: a single position, or almost only zeros."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import numpy as np

from ..cache.gather import gather
from ..cache.store import FeatureStore
from .planning.estimate import teacher_shape
from .specs import TeacherSpec

FIRST_ROWS = 32
"""Rows whose zeros are counted."""
MOST_ZEROS = 0.95
_ADVICE = "Choose a larger --train-size or another --teacher, or take those of --profile small."


def single_position(spec: TeacherSpec) -> list[str]:
    """Return a note if the teacher's map is 1x1, so that it says nothing about where in an image something is."""
    height, width = teacher_shape(spec)[-2:]
    if (height, width) != (1, 1):
        return []
    return [f"The map of teacher {spec.backbone} at {spec.size} pixels has a single position (1x1). {_ADVICE}"]


def mostly_zeros(spec: TeacherSpec, store: FeatureStore, keys: Iterable[str]) -> list[str]:
    """Return a note if more than 95 % of the values are zero in the first rows that are stored of these keys."""
    index = store.index(refresh=True)
    first = list(islice((key for key in keys if key in index), FIRST_ROWS))
    if not first:
        return []
    share = float(np.mean(gather(store, first) == 0))
    if share <= MOST_ZEROS:
        return []
    return [
        f"The maps of teacher {spec.backbone} at {spec.size} pixels are {share:.1%} zeros over the first "
        f"{len(first)} images, so a student learns little from them. {_ADVICE}"
    ]
