"""The package as it is installed: folders, imports, and which way the code depends."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("cache", "demo", "inference", "models", "pipeline", "places", "train")

ALLOWED = {
    "places": {"errors"},
    "cache": {"errors", "places"},
    "models": {"errors"},
    "pipeline": {"errors", "progress", "cache", "models", "places", "__version__"},
    "train": {"errors", "progress", "cache", "models", "places", "__version__"},
    "inference": {"errors", "progress", "cache", "models", "places", "pipeline", "train", "__version__"},
    "demo": {"errors", "progress", "cache", "models", "places", "pipeline", "train", "__version__"},
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
    files = [path for folder in ("places", "train/report") for path in (ROOT / folder).glob("*.py")]
    files += [ROOT / f"{name}.py" for name in ("errors", "progress", "signals")]
    files += [ROOT / "pipeline" / f"{name}.py" for name in ("audit", "plan", "record", "scan", "sources")]
    names = [".".join(("distil_cache", *path.relative_to(ROOT).with_suffix("").parts)) for path in files]
    code = (
        "import sys, importlib\n"
        "[importlib.import_module(name) for name in sys.argv[1:]]\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, *names], check=True)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_the_architecture_allows(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        levels_to_root = len(path.relative_to(ROOT).parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or node.level < levels_to_root:
                continue
            names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
            assert set(names) <= ALLOWED[package], f"{path.relative_to(ROOT)} line {node.lineno} imports {names}"


def test_the_cache_imports_no_torch() -> None:
    code = (
        "import sys, pkgutil, importlib, distil_cache.cache as c\n"
        "[importlib.import_module(m.name) for m in pkgutil.iter_modules(c.__path__, 'distil_cache.cache.')]\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_module_is_longer_than_400_lines() -> None:
    long = [
        path
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if len(path.read_text().splitlines()) > 400
    ]
    assert long == []
