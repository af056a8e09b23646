"""Packages with entry points, as an installer leaves them: modules, and a folder with the metadata of the distribution."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from distil_cache.features.registry import FEATURES
from distil_cache.train.methods.registry import METHODS

SOURCE = Path(__file__).parents[1] / "plugin"


def write_package(
    site: Path, name: str, version: str, entries: Mapping[str, Mapping[str, str]], modules: Mapping[str, str]
) -> Path:
    """Write a distribution into a folder of packages; ``entries`` are group -> name -> object, ``modules`` name -> code."""
    site.mkdir(parents=True, exist_ok=True)
    for module, code in modules.items():
        (site / f"{module}.py").write_text(code)
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in named.items())
        for group, named in entries.items()
    ]
    (folder / "entry_points.txt").write_text("\n".join(lines))
    return folder


def install_example(site: Path) -> Path:
    """Write the package of the folder ``plugin`` and its metadata, as ``pip install`` would without a network."""
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]
    for package in tomllib.loads((SOURCE / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]:
        shutil.copytree(SOURCE / package, site / package, ignore=shutil.ignore_patterns("__pycache__"))
    return write_package(site, project["name"], project["version"], project["entry-points"], {})


def install_with_pip(site: Path) -> None:
    """Install the same package with pip, which needs setuptools and no network."""
    copy = site.parent / "source"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__", "test_*", "*.json"))
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", str(site), str(copy)], check=True)


def forget() -> None:
    """Let the registries of this process look again at what is installed, as a new process would."""
    importlib.invalidate_caches()
    for registry in (FEATURES, METHODS):
        registry.__dict__.pop("_entries", None)
        registry._loaded.clear()
    for name in [
        name for name in sys.modules if name.partition(".")[0] in ("distil_bands", "distil_contrast", "glow_module")
    ]:
        del sys.modules[name]


@contextmanager
def packages_of(site: Path) -> Iterator[None]:
    """Have the packages of a folder installed."""
    sys.path.insert(0, str(site))
    forget()
    try:
        yield
    finally:
        sys.path.remove(str(site))
        forget()
