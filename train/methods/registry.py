"""The methods that there are, by name and preset."""

from __future__ import annotations

import re
from dataclasses import replace

from ...choices import Preset
from ...errors import UsageError
from ...plugins import Package, Registry
from .cnndet import CNNDET
from .custom import CustomMethod
from .dire import DIRE
from .distildire import DISTILDIRE, DISTILDIRE_CODE
from .dnf import DNF
from .eps import EPS
from .method import Method
from .probe import PROBE
from .score import AEROBLADE, MEAN_DIRE, SEDID

_NAME = re.compile(r"[a-z0-9_]{1,40}")
_TITLE = re.compile(r"[ -~]{1,200}")

BUILT_IN: dict[str, Method] = {
    method.name: method for method in (DISTILDIRE, DIRE, DNF, CNNDET, EPS, PROBE, MEAN_DIRE, SEDID, AEROBLADE)
}
"""The methods of this package by name, in the preset ``paper``."""

PRESETS: dict[tuple[str, Preset], Method] = {
    (method.name, method.preset): method for method in (*BUILT_IN.values(), DISTILDIRE_CODE)
}


def checked(name: str, loaded: object, package: Package) -> Method:
    """Return the method that an entry point of another package loaded; ValueError if it cannot be used."""
    if not isinstance(loaded, Method):
        raise ValueError("it is no Method.")
    if loaded.name != name or not _NAME.fullmatch(name):
        raise ValueError(
            f"it is named {loaded.name!r}, and its entry point {name!r}: both must be the same, of small letters, digits "
            "and underscores."
        )
    if not _TITLE.fullmatch(loaded.title):
        raise ValueError("its title is not plain text on one line, of 200 signs at most.")
    return loaded


METHODS: Registry[Method] = Registry("method", BUILT_IN, checked)
"""By name; those of this package in the preset ``paper``."""


def find_method(
    name: str, preset: Preset = "paper", aug_prob: float | None = None, custom: CustomMethod | None = None
) -> Method:
    """Return a method's definition.

    Parameters
    ----------
    name, preset
        Method and preset.
    aug_prob
        Probability of its blur and JPEG, if not the default.
    custom
        What a file says of a method of this name.

    Raises
    ------
    UsageError
        The method or preset does not exist, or the method has no such probability.
    """
    if custom is not None and name in BUILT_IN:
        raise UsageError(f"method: {name} is the name of a method that there is. Give your file another name.")
    if custom is not None and preset == "paper" and aug_prob is None:
        return custom.method(name)
    if name not in METHODS:
        raise UsageError(
            f"method: unknown method {name!r}; use {', '.join(METHODS)}, a file NAME.toml, or install the package that "
            "provides it."
        )
    method = PRESETS.get((name, preset)) or METHODS[name]
    if method.preset != preset:
        having = ", ".join(sorted(known for known, of in PRESETS if of == preset))
        raise UsageError(f"preset: method {name} has no preset {preset!r}; only {having or 'no method'} has it.")
    if aug_prob is None:
        return method
    if method.degradation is None or not method.degradation.adjustable:
        having = ", ".join(m.name for m in BUILT_IN.values() if m.degradation and m.degradation.adjustable)
        raise UsageError(f"aug_prob: method {name}, preset {preset}, has no probability to set; only {having} has one.")
    return replace(method, degradation=replace(method.degradation, probability=aug_prob))
