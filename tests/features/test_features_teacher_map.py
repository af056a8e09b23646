"""A teacher whose map has little to teach is noticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from distil_cache.cache.store import Cache
from distil_cache.pipeline import teacher_map
from distil_cache.pipeline.specs import TeacherSpec
from small_cache import make_cache, make_specs, rows


def spec_of(**changes: object) -> TeacherSpec:
    teacher = make_specs()["teacher"]
    assert isinstance(teacher, TeacherSpec)
    return teacher.model_copy(update=changes)


def test_a_map_of_one_position_is_noted_and_a_larger_one_is_not() -> None:
    assert teacher_map.single_position(spec_of(backbone="efficientnet_lite0", size=96)) == []
    (note,) = teacher_map.single_position(spec_of(backbone="efficientnet_lite0", size=28))
    assert "efficientnet_lite0 at 28 pixels has a single position (1x1)" in note
    assert "--train-size" in note


def test_maps_of_almost_only_zeros_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, build = make_cache(tmp_path / "cache", rows("train", 3, {"adm": 3}))
    store = Cache.open(cache.root).open_feature(build.features["teacher"].folder)
    keys = cache.datasets().read("pictures")["key"].to_pylist()
    assert teacher_map.mostly_zeros(spec_of(), store, ["0" * 64]) == []
    share = float(np.mean(teacher_map.gather(store, keys) == 0))
    monkeypatch.setattr(teacher_map, "MOST_ZEROS", share)
    assert teacher_map.mostly_zeros(spec_of(), store, keys) == []
    monkeypatch.setattr(teacher_map, "MOST_ZEROS", share - 0.001)
    (note,) = teacher_map.mostly_zeros(spec_of(), store, keys)
    assert f"are {share:.1%} zeros over the first 6 images" in note
