"""Features and methods of other packages: what makes one unusable is said in one sentence that names the package."""

from __future__ import annotations

from pathlib import Path

import pytest
from distil_cache.errors import UserError
from distil_cache.features.registry import FEATURES, about_of, make_specs, with_inputs
from distil_cache.images.spec import ImageSpec
from distil_cache.pipeline.planning.feature_list import list_features
from distil_cache.pipeline.planning.wanted import OTHER_DEFAULT, TRAIN_DEFAULT
from distil_cache.train.methods.registry import METHODS, find_method
from plugin_packages import packages_of, write_package

CODE = """
from typing import Literal
from distil_cache.cache.records.about import Layout
from distil_cache.cache.spec import Spec
from distil_cache.features.contract import SingleFeature
from distil_cache.images.spec import ImageSpec


class GlowSpec(Spec):
    feature: Literal["glow"] = "glow"
    algorithm: Literal[1] = 1
    by: Literal["distil-glow"] = "distil-glow"
    image: ImageSpec


class Glow(SingleFeature[GlowSpec]):
    spec_type = GlowSpec
    description = "brightness"
    unit = "glows"
    built = "always"

    def layout(self, spec):
        return Layout((1,), "float32", "vector")

    def rows(self, network, inputs, spec):
        return inputs["image"].float().mean(dim=(1, 2, 3))[:, None]

    def rate_key(self, spec):
        return {}
"""
METHOD = """
from distil_cache.train.methods.method import Method, MethodDefaults
GLOW = Method("glow", title="glow alone", scales={"glow": "stored"}, defaults=MethodDefaults(epochs=1))
"""


def bring(site: Path, code: str = CODE, *, group: str = "features", target: str = "Glow", name: str = "glow") -> Path:
    write_package(
        site, "distil-glow", "1.0", {f"distil_cache.{group}": {name: f"glow_module:{target}"}}, {"glow_module": code}
    )
    return site


def test_a_feature_of_another_package_is_one_among_others(tmp_path: Path) -> None:
    with packages_of(bring(tmp_path)):
        assert list(with_inputs({"glow": frozenset({"train"})})) == ["image", "glow"]
        spec = make_specs(["glow"], {}, {"image": ImageSpec(size=16)})["glow"]
        assert str(about_of(spec).provider) == "distil-glow 1.0"
        assert spec.canonical()["by"] == "distil-glow"
    assert "glow" not in FEATURES


def test_installing_a_package_changes_nothing_of_what_a_build_makes_unasked(tmp_path: Path) -> None:
    with packages_of(bring(tmp_path)):
        assert FEATURES["glow"].built == "always"
        assert "glow" not in (*TRAIN_DEFAULT, *OTHER_DEFAULT)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("by: Literal", "made_by: Literal", r"must have the field: by: Literal\['distil-glow'\]"),
        ('by: Literal["distil-glow"] = "distil-glow"', 'by: Literal["other"] = "other"', "must have the field: by"),
        ("    image: ImageSpec", "    image: ImageSpec\n    perturb: int = 1", "a field 'perturb'"),
        ('"glow"] = "glow"', '"glows"] = "glows"', "names the feature 'glows', and the entry point 'glow'"),
        ("def rows", "def other", "abstract method"),
        ("spec_type = GlowSpec", "spec_type = dict", "its spec_type is no class"),
        ("class Glow(SingleFeature[GlowSpec])", "class Glow", "no class derived from SingleFeature or WalkFeature"),
        ("import Layout", "import Nothing", r"cannot be loaded \(ImportError"),
    ],
)
def test_a_feature_that_cannot_be_used_is_refused_in_one_sentence(
    tmp_path: Path, before: str, after: str, said: str
) -> None:
    assert before in CODE
    with packages_of(bring(tmp_path, CODE.replace(before, after))):
        with pytest.raises(UserError, match=rf"feature glow: distil-glow 1\.0.*{said}") as error:
            FEATURES["glow"]
        (row,) = [row for row in list_features() if row["name"] == "glow"]
        assert row["problem"] == str(error.value)
        assert FEATURES["eps"].name == "eps"


def test_a_name_that_readers_look_for_in_specs_is_no_name_of_a_feature(tmp_path: Path) -> None:
    code = CODE.replace('"glow"] = "glow"', '"imported"] = "imported"')
    with packages_of(bring(tmp_path, code, name="imported")), pytest.raises(UserError, match="none of by, harmonize"):
        FEATURES["imported"]


def test_a_feature_made_of_one_that_is_not_there_is_refused(tmp_path: Path) -> None:
    inner = """

class RaySpec(Spec):
    feature: Literal["ray"] = "ray"
    algorithm: Literal[1] = 1


class GlowSpec(Spec):
"""
    code = CODE.replace("\n\nclass GlowSpec(Spec):\n", inner).replace("    image: ImageSpec\n", "    ray: RaySpec\n")
    with packages_of(bring(tmp_path, code)), pytest.raises(UserError, match="made of ray, which no package here"):
        FEATURES["glow"]


def test_a_method_of_another_package_is_found_and_others_are_refused(tmp_path: Path) -> None:
    with packages_of(bring(tmp_path / "whole", METHOD, group="methods", target="GLOW")):
        assert find_method("glow").title == "glow alone"
        assert str(METHODS.package("glow")) == "distil-glow 1.0"
    for number, (code, said) in enumerate(
        [
            (METHOD.replace('"glow", title', '"glows", title'), "it is named 'glows'"),
            (METHOD.replace("glow alone", "two\\\\nlines").replace("\\\\", "\\"), "title is not plain text"),
            ("GLOW = 7", "it is no Method"),
        ]
    ):
        site = bring(tmp_path / str(number), code, group="methods", target="GLOW")
        with packages_of(site), pytest.raises(UserError, match=said):
            find_method("glow")
