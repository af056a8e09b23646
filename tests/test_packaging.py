"""The package as it is installed: folders, imports, and which way the code depends."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Collection
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from package_folders import PACKAGES

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())

ALLOWED = {
    "storage": {"errors"},
    "models": {"choices", "errors", "progress", "storage"},
    "metrics": {"choices", "errors", "storage"},
    "cache": {"choices", "errors", "progress", "storage"},
    "images": {"choices", "errors", "cache"},
    "features": {"choices", "errors", "plugins", "images", "cache", "models", "__version__", "progress"},
    "pipeline": {
        "choices",
        "plugins",
        "errors",
        "progress",
        "features",
        "images",
        "cache",
        "metrics",
        "models",
        "storage",
        "__version__",
    },
    "train": {
        "choices",
        "errors",
        "plugins",
        "progress",
        "signals",
        "cache",
        "metrics",
        "models",
        "storage",
        "__version__",
    },
    "inference": {
        "choices",
        "plugins",
        "errors",
        "progress",
        "train",
        "pipeline",
        "features",
        "images",
        "cache",
        "metrics",
        "models",
        "storage",
        "__version__",
    },
    "report": {"errors", "inference", "train", "cache", "metrics", "storage", "__version__"},
    "demo": {
        "errors",
        "progress",
        "report",
        "train",
        "pipeline",
        "cache",
        "metrics",
        "models",
        "storage",
        "__version__",
    },
    "testing": {"cache", "features", "images", "models"},
    "api": {"choices", "errors", "progress", "report", "train", "pipeline", "cache", "storage"},
    "commands": {"choices", "errors", "demo", "report", "inference", "train", "pipeline", "cache", "models", "storage"},
}


def test_the_listed_packages_are_those_of_the_tree() -> None:
    found = {"distil_cache"} | {
        "distil_cache." + ".".join(path.parent.relative_to(ROOT).parts)
        for path in ROOT.glob("*/**/__init__.py")
        if not {"tests", "build", "tools", "benchmarks"} & set(path.relative_to(ROOT).parts)
        and not path.relative_to(ROOT).parts[0].startswith(".")
    }
    assert set(SETTINGS["tool"]["setuptools"]["packages"]) == found


def test_every_data_file_of_the_tree_is_shipped() -> None:
    patterns = SETTINGS["tool"]["setuptools"]["package-data"]
    for package in PACKAGES:
        folder = ROOT / package
        shipped = {
            path
            for name, globs in patterns.items()
            if name == f"distil_cache.{package}" or name.startswith(f"distil_cache.{package}.")
            for pattern in globs
            for path in (ROOT / "/".join(name.split(".")[1:])).glob(pattern)
        }
        there = {
            path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc", ".md", ".png")
        }
        assert there == shipped


def test_what_the_architecture_names_loads_without_torch() -> None:
    files = [path for folder in ("cache", "metrics", "storage", "report") for path in (ROOT / folder).rglob("*.py")]
    files += [ROOT / f"{name}.py" for name in ("choices", "errors", "progress", "signals")]
    files += [
        ROOT / "pipeline" / f"{name}.py"
        for name in ("audit/run", "planning/plan", "record", "scan/scan", "sources/discover")
    ]
    names = [".".join(("distil_cache", *path.relative_to(ROOT).with_suffix("").parts)) for path in files]
    code = (
        "import sys, importlib\n"
        "[importlib.import_module(name) for name in sys.argv[1:]]\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, *names], check=True)


def test_measures_are_imported_without_scikit_learn() -> None:
    code = "import sys, distil_cache.metrics.measures\nassert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["errors", "progress", "signals"])
def test_a_leaf_at_the_root_needs_nothing_but_the_standard_library(name: str) -> None:
    for node in ast.walk(ast.parse((ROOT / f"{name}.py").read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert (node.module or "").split(".")[0] in sys.stdlib_module_names
        elif isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= sys.stdlib_module_names


def test_no_modules_import_each_other_in_a_circle() -> None:
    files = [*ROOT.glob("*.py"), *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))]
    modules = {path.relative_to(ROOT).with_suffix("").parts: path for path in files if path.name != "__init__.py"}
    modules |= {path.parent.relative_to(ROOT).parts: path for path in files if path.name == "__init__.py"}
    modules.pop(())  # the package itself imports nothing: its public names are loaded when they are first used
    TopologicalSorter({name: _imported(path, modules) - {name} for name, path in modules.items()}).prepare()


def test_a_class_name_means_one_thing_in_the_package() -> None:
    files = [*ROOT.glob("*.py"), *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))]
    trees = {path.relative_to(ROOT): ast.parse(path.read_text()) for path in files}
    names = Counter(node.name for tree in trees.values() for node in tree.body if isinstance(node, ast.ClassDef))
    assert [name for name, count in names.items() if count > 1] == []


def _imported(path: Path, modules: Collection[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """Modules of the package that a file imports, also those inside functions and for types alone."""
    found = set()
    folder = path.parent.relative_to(ROOT).parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            home = (*folder[: len(folder) - node.level + 1], *(node.module.split(".") if node.module else ()))
            found |= {(*home, alias.name) if (*home, alias.name) in modules else home for alias in node.names}
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_the_architecture_allows(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        levels_to_root = len(path.relative_to(ROOT).parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or node.level < levels_to_root:
                continue
            names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
            assert set(names) <= ALLOWED[package], f"{path.relative_to(ROOT)} line {node.lineno} imports {names}"
