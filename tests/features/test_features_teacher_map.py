"""A teacher whose map has little to teach is noticed."""

from __future__ import annotations

import numpy as np
import pytest
from distil_cache.features.builtin import teacher
from distil_cache.features.builtin.teacher import Teacher, TeacherSpec
from small_cache import make_specs


def spec_of(**changes: object) -> TeacherSpec:
    spec = make_specs()["teacher"]
    assert isinstance(spec, TeacherSpec)
    return spec.model_copy(update=changes)


def test_a_map_of_one_position_is_noted_and_a_larger_one_is_not() -> None:
    assert Teacher().warnings(spec_of(backbone="efficientnet_lite0", size=96)) == []
    (note,) = Teacher().warnings(spec_of(backbone="efficientnet_lite0", size=28))
    assert "efficientnet_lite0 at 28 pixels has a single position (1x1)" in note
    assert "--train-size" in note


def test_maps_of_almost_only_zeros_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.zeros((6, 2, 5, 3, 2), np.float16)
    rows[:, 0, 0] = 1
    monkeypatch.setattr(teacher, "MOST_ZEROS", 0.9)
    assert Teacher().warnings_about(rows, spec_of()) == []
    monkeypatch.setattr(teacher, "MOST_ZEROS", 0.899)
    (note,) = Teacher().warnings_about(rows, spec_of())
    assert "are 90.0% zeros over the first 6 images" in note
