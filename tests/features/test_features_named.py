"""How many modules know a feature by its name. Each that does not is one that a new feature leaves alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from distil_cache.features.registry import BUILT_IN
from package_folders import PACKAGES

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = tuple(name for name in PACKAGES if name not in ("demo", "features"))
NAMES = frozenset(feature.name for feature in BUILT_IN) - {"image"}
"""``image`` is left out: it is no feature among others, but what all features are made of."""
SPECS = frozenset(feature.spec_type.__name__ for feature in BUILT_IN) - {"ImageSpec"}
HOME = ("features", "train/methods", "models/diffusion", "pipeline/importing")
"""Folders about features by themselves: their own, the methods', that of the network whose arithmetic some are, and that
of the loose files that the scripts of two papers write, which are features of these names."""
OTHER_MEANING = frozenset({
    "images/decode",  # the preprocessing of DIRE's code
    "images/perturb", "images/spec", "report/sections/robustness",  # noise that a perturbation adds
    "models/efficientnet_lite", "train/engine/distributed",  # the epsilon of a batch normalisation
    "pipeline/sources/discover", "pipeline/sources/folders/census", "pipeline/sources/folders/layouts",  # folders of data
    "inference/feature_specs",  # the kind of an import
    "pipeline/audit/cached", "pipeline/audit/content", "pipeline/audit/files",  # the audit's own embedding
    "choices",  # presets, layouts, kinds of imports, methods, an option
    "commands/build", "commands/exchange", "commands/help_pages", "commands/train",  # the options --noise and --teacher
    "pipeline/planning/make_specs", "train/config", "train/data/examples",  # what these options say
    "commands/checkpoint", "train/runs/reference_checkpoint",  # methods
    "commands/show/bench", "inference/bench/result", "report/sections/bench",  # the method that others are compared with
    "commands/show/demo", "commands/show/train", "train/engine/dry_run", "train/engine/session",  # keys of results
})  # fmt: skip
"""Modules in which such a word is no feature."""
KNOWING = {
    "cache/records/about": "what the rows are in caches that do not say it",
    "inference/explain": "what a picture that explains a verdict shows",
    "pipeline/cost": "keys of a result: images a second of eps alone and with DIRE",
    "pipeline/execution/deviation": "keys of a log: how far eps and DIRE are from float32",
    "train/runs/onnx_export": "which features are bytes in runs whose record does not say it",
}
"""The modules that know a feature by its name, and why."""


def names_in(code: str) -> set[str]:
    """Return the features that code names: as a string, as an attribute or argument, or by the class of their spec."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Constant) and node.value in NAMES:
            found.add(str(node.value))
        elif isinstance(node, ast.Attribute) and node.attr in NAMES:
            found.add(node.attr)
        elif isinstance(node, ast.keyword) and node.arg in NAMES:
            found.add(node.arg)
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names if alias.name in SPECS}
            found |= {part for part in (node.module or "").split(".") if part in NAMES}
    return found


def modules_that_name_features() -> dict[str, set[str]]:
    """Return module -> features that it names."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    names = {path.relative_to(ROOT).with_suffix("").as_posix(): path for path in [*ROOT.glob("*.py"), *paths]}
    found = {
        name: names_in(path.read_text())
        for name, path in names.items()
        if not name.startswith(HOME) and name not in OTHER_MEANING
    }
    return {name: features for name, features in found.items() if features}


def test_no_other_modules_than_these_name_a_feature() -> None:
    found = {name: ", ".join(sorted(features)) for name, features in modules_that_name_features().items()}
    new = {name: features for name, features in found.items() if name not in KNOWING}
    assert new == {}, "a feature should be named where it is defined, and nowhere else"
    assert KNOWING.keys() == found.keys(), "take out of KNOWING what names no feature any more"


def test_no_module_is_excused_that_has_no_such_word() -> None:
    words = {name for name in OTHER_MEANING if names_in((ROOT / f"{name}.py").read_text())}
    assert words == OTHER_MEANING


@pytest.mark.parametrize(
    "code",
    ['wanted["dire"]', "config.teacher", "f(noise=1)", "from ..specs import EpsSpec", "from ..builtin.recon import x"],
)
def test_every_way_to_name_a_feature_counts(code: str) -> None:
    assert len(names_in(code)) == 1


def test_a_word_in_a_sentence_does_not_count() -> None:
    assert names_in('"""Noise, eps and the teacher."""\nprint("needs dire")') == set()
