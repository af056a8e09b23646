"""The specs by which a student's images are made, for runs that were trained on imported files."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Literal

import pytest
from distil_cache.cache.spec import Spec
from distil_cache.features.imported import ImportedDireSpec, ImportedEpsSpec, ImportedFiles, ImportedImageSpec
from distil_cache.inference.feature_specs import read_feature_specs


@pytest.mark.parametrize(("kind", "preset"), [("distildire", "distildire"), ("dire", "dire-center-crop")])
@pytest.mark.parametrize("feature", ["image", "eps", "dire"])
def test_images_of_a_student_of_imported_files_are_prepared_as_its_script_did(
    kind: Literal["distildire", "dire"], preset: str, feature: str
) -> None:
    files = ImportedFiles(kind=kind, origin="theirs")
    specs: dict[str, Spec] = {
        "image": ImportedImageSpec(imported=files, size=16),
        "eps": ImportedEpsSpec(imported=files, size=16),
        "dire": ImportedDireSpec(imported=files, size=16),
    }
    spec = specs[feature]
    record: Any = SimpleNamespace(
        imported=None, run="r", specs={feature: spec.canonical()}, fingerprints={feature: spec.fingerprint()}
    )
    found = read_feature_specs(record, None)
    assert (found.image.preset, found.image.size) == (preset, 16)
    assert "trained on imported files" in found.assumption
