"""How many modules know a feature by its name. Each that does not is one that a new feature leaves alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from package_folders import PACKAGES

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = tuple(name for name in PACKAGES if name not in ("demo", "features"))
NAMES = frozenset({"eps", "recon", "dire", "noise", "teacher"})
"""``image`` is left out: it is no feature among others, but what all features are made of."""
SPECS = frozenset({"EpsSpec", "ReconSpec", "DireSpec", "NoiseSpec", "TeacherSpec"})
HOME = ("features", "train/methods", "models/diffusion")
"""Folders and modules that are about features by themselves, and the network whose arithmetic some are."""
OTHER_MEANING = frozenset({
    "images/decode",  # the preprocessing of DIRE's code
    "images/perturb", "images/spec", "report/sections/robustness",  # noise that a perturbation adds
    "models/efficientnet_lite", "train/engine/distributed",  # the epsilon of a batch normalisation
    "pipeline/sources/folders/layouts",  # the folders of DIRE's data
})  # fmt: skip
"""Modules in which such a word is no feature."""
MOST = 36


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


def test_no_more_modules_than_before_name_a_feature() -> None:
    found = modules_that_name_features()
    listed = "\n".join(f"{name}: {', '.join(sorted(features))}" for name, features in sorted(found.items()))
    assert len(found) <= MOST, f"a feature should be named where it is defined, and nowhere else:\n{listed}"
    assert len(found) == MOST, f"lower MOST to {len(found)}, so that it stays there"


@pytest.mark.parametrize(
    "code",
    ['wanted["dire"]', "config.teacher", "f(noise=1)", "from ..specs import EpsSpec", "from ..builtin.recon import x"],
)
def test_every_way_to_name_a_feature_counts(code: str) -> None:
    assert len(names_in(code)) == 1


def test_a_word_in_a_sentence_does_not_count() -> None:
    assert names_in('"""Noise, eps and the teacher."""\nprint("needs dire")') == set()
