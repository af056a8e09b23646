"""The names that Python users rely on, and what importing the package costs."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import get_type_hints

import distil_cache as dc
import pytest
from distil_cache.api.settings import BuildSettings, TrainSettings

NAMES = {
    "BuildSummary",
    "DatasetView",
    "Detector",
    "DistilCacheError",
    "EvaluationSummary",
    "FeatureView",
    "IntegrityError",
    "OpenCache",
    "Prediction",
    "ReportSummary",
    "TrainingSummary",
    "UnreachableError",
    "UsageError",
    "UserError",
    "__version__",
    "build",
    "evaluate",
    "open",
    "report",
    "train",
}
"""The public names: one may be added, none is taken away or changes its meaning within a major version."""

MOST_MODULES = 15
"""Modules of the standard library that the import may add to a bare interpreter's."""


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_the_public_names_are_these() -> None:
    assert set(dc.__all__) == NAMES
    assert set(dir(dc)) >= NAMES


def test_importing_the_package_loads_nothing_but_a_few_modules_of_python() -> None:
    code = (
        "import sys; before = set(sys.modules); import distil_cache; found = set(sys.modules) - before - {'distil_cache'}; "
        "print(*sorted(found))"
    )
    found = _run(code).split()
    assert {name.partition(".")[0] for name in found} <= set(sys.stdlib_module_names)
    assert len(found) <= MOST_MODULES


def test_opening_a_cache_needs_no_torch_dask_xarray_or_webdataset() -> None:
    code = (
        "import sys, distil_cache; distil_cache.open, distil_cache.build, distil_cache.FeatureView; print(*sys.modules)"
    )
    assert not {"torch", "dask", "xarray", "webdataset", "pandas"} & set(_run(code).split())


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = dc.nothing


@pytest.mark.parametrize("name", ["train", "report"])
def test_a_function_with_the_name_of_a_folder_stays_one_when_the_folder_is_imported(name: str) -> None:
    code = (
        f"import inspect, distil_cache; import distil_cache.train.data.select, distil_cache.report.wording\n"
        f"found = distil_cache.{name}\n"
        f"assert found.__name__ == 'distil_cache.{name}' and callable(found)\n"
        "print(*inspect.signature(found).parameters)"
    )
    from distil_cache.api import actions

    assert _run(code).split() == list(inspect.signature(getattr(actions, name)).parameters)


def test_the_settings_of_a_build_are_the_fields_of_its_configuration() -> None:
    from distil_cache.pipeline.config import BuildConfig

    own = {"sources", "cache", "dataset", "device", "origin", "perturb", "splits"}
    assert set(get_type_hints(BuildSettings)) == set(BuildConfig.model_fields) - own


def test_the_settings_of_a_training_are_the_fields_of_its_configuration() -> None:
    pytest.importorskip("torch")
    from distil_cache.train.config import TrainConfig

    assert set(get_type_hints(TrainSettings)) == set(TrainConfig.model_fields) - {"dataset", "custom"}


def test_every_public_name_has_a_docstring() -> None:
    for name in NAMES - {"__version__"}:
        found = dc.__getattr__(name)
        assert inspect.getdoc(found), name
        for method, value in vars(found).items() if inspect.isclass(found) else ():
            if not method.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                assert value.__doc__, f"{name}.{method}"
