"""distil-cache: the expensive features of DistilDIRE computed once, students trained from them many times.

    import distil_cache as dc

    dc.build(["photos"], cache="cache", dataset="mine", profile="small")
    eps = dc.open("cache").dataset("mine").feature("eps").numpy()

Importing the package loads nothing else: each name below is imported when it is first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api.actions import build as build
    from .api.actions import evaluate as evaluate
    from .api.actions import report as report
    from .api.actions import train as train
    from .api.results import BuildSummary as BuildSummary
    from .api.results import EvaluationSummary as EvaluationSummary
    from .api.results import ReportSummary as ReportSummary
    from .api.results import TrainingSummary as TrainingSummary
    from .api.views import DatasetView as DatasetView
    from .api.views import FeatureView as FeatureView
    from .api.views import OpenCache as OpenCache
    from .api.views import open as open  # noqa: A004  (it opens a cache, as h5py.open_file and its like do)
    from .errors import DistilCacheError as DistilCacheError
    from .errors import IntegrityError as IntegrityError
    from .errors import UnreachableError as UnreachableError
    from .errors import UsageError as UsageError
    from .errors import UserError as UserError
    from .inference.detector import Detector as Detector
    from .inference.prediction import Prediction as Prediction

__version__ = "0.1.0"

_HOMES = {
    "BuildSummary": "api.results",
    "DatasetView": "api.views",
    "Detector": "inference.detector",
    "DistilCacheError": "errors",
    "EvaluationSummary": "api.results",
    "FeatureView": "api.views",
    "IntegrityError": "errors",
    "OpenCache": "api.views",
    "Prediction": "inference.prediction",
    "ReportSummary": "api.results",
    "TrainingSummary": "api.results",
    "UnreachableError": "errors",
    "UsageError": "errors",
    "UserError": "errors",
    "build": "api.actions",
    "evaluate": "api.actions",
    "open": "api.views",
    "report": "api.actions",
    "train": "api.actions",
}
"""Public name -> the module that defines it."""

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _CallableFolder(ModuleType):
    """A folder of the package that is called like the function of its name: ``dc.train(...)``, ``dc.report(...)``."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        return __getattr__(self.__name__.rpartition(".")[2])(*args, **settings)

    @property
    def __signature__(self) -> Any:
        import inspect

        return inspect.signature(__getattr__(self.__name__.rpartition(".")[2]))


class _Package(ModuleType):
    """The package. The import system stores a folder under its name here, where a function of that name may be asked for."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _HOMES and isinstance(value, ModuleType):
            value.__class__ = _CallableFolder
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
